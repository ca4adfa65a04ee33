"""The sizes of a model, as `config.json` of a checkpoint folder holds them."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs import StrictConfig


class VisionConfig(StrictConfig):
    """A CLIP vision tower; defaults are those of transformers' `CLIPVisionConfig`."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    image_size: PositiveInt
    """Height and width of the pictures, in pixels."""
    patch_size: PositiveInt
    """Height and width of one patch, in pixels."""
    layer_norm_eps: PositiveFloat = 1e-5
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    select_layer: int = -2
    """Which hidden state feeds the projector, counted as transformers does: 0 is the input of the first layer,
    -1 the output of the last, -2 (LLaVA's choice) the output of the last but one."""
    select_feature: Literal["patch", "cls_patch"] = "patch"
    """`patch` drops the class token, `cls_patch` keeps it in front."""

    @property
    def num_patches(self) -> int:
        """Vectors that one picture gives to the language model (576 for CLIP-L/14 at 336 pixels)."""
        return self.num_positions - (self.select_feature == "patch")

    @property
    def num_positions(self) -> int:
        """Tokens inside the tower: the class token and the patches."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def num_layers_run(self) -> int:
        """Layers up to the selected hidden state; those above it are kept as weights, but not run."""
        return self.select_layer if self.select_layer >= 0 else self.num_layers + 1 + self.select_layer

    @model_validator(mode="after")
    def _fits_together(self) -> "VisionConfig":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size {self.patch_size} is larger than image_size {self.image_size}")
        if not 0 <= self.num_layers_run <= self.num_layers:
            raise ValueError(f"select_layer {self.select_layer} is outside a tower of {self.num_layers} layers")
        return self


class ProjectorConfig(StrictConfig):
    """What maps the tower's width to the decoder's: one layer, or two with a GELU between."""

    kind: Literal["linear", "mlp2x_gelu"] = "mlp2x_gelu"


class LanguageConfig(StrictConfig):
    """A Llama-family decoder."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    """Heads of keys and values; fewer than `num_heads` is grouped-query attention."""
    head_dim: PositiveInt
    rope_theta: PositiveFloat = 10000.0
    rms_norm_eps: PositiveFloat = 1e-5
    attention_bias: bool = False
    """Biases on q, k, v and o, as `LlamaConfig.attention_bias` of transformers."""
    tie_embeddings: bool = False
    """The output layer is the embedding table; `language.lm_head.weight` does not exist."""
    max_position_embeddings: PositiveInt

    @model_validator(mode="after")
    def _fits_together(self) -> "LanguageConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs of values")
        return self


class LlavaConfig(StrictConfig):
    """A whole model, and how its tower wants pixels normalised."""

    vision: VisionConfig
    projector: ProjectorConfig = Field(default_factory=ProjectorConfig)
    language: LanguageConfig
    image_mean: tuple[float, float, float]
    """Mean of red, green and blue, of values from 0 to 1."""
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Standard deviation of red, green and blue, of values from 0 to 1."""

    @classmethod
    def from_json(cls, path: Path) -> "LlavaConfig":
        """Read a `config.json`; unknown or missing keys raise pydantic's `ValidationError`, a `ValueError`."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))

    def to_json(self, path: Path) -> None:
        """Write a `config.json` that `from_json` reads."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
