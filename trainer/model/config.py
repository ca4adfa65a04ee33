"""The sizes of a model, as `config.json` of a checkpoint folder holds them."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from configs import StrictConfig


class VisionConfig(StrictConfig):
    """A CLIP or SigLIP vision tower; defaults are those of transformers' `CLIPVisionConfig`."""

    kind: Literal["clip", "siglip"] = "clip"
    """SigLIP has no class token, no norm before the layers, and a bias on its patches."""
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    image_size: PositiveInt
    """Height and width of the pictures, in pixels."""
    patch_size: PositiveInt
    """Height and width of one patch, in pixels."""
    layer_norm_eps: PositiveFloat = 1e-5
    hidden_act: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"] = "quick_gelu"
    select_layer: int = -2
    """Which hidden state feeds the projector, counted as transformers does: 0 is the input of the first layer,
    -1 the output of the last, -2 (LLaVA's choice) the output of the last but one."""
    select_feature: Literal["patch", "cls_patch"] = "patch"
    """`patch` drops the class token, `cls_patch` keeps it in front; SigLIP has patches alone."""

    @property
    def num_patches(self) -> int:
        """Vectors that one picture gives to the language model (576 for CLIP-L/14 at 336 pixels)."""
        return self.num_positions - (self.has_class_token and self.select_feature == "patch")

    @property
    def num_positions(self) -> int:
        """Tokens inside the tower: the class token, where there is one, and the patches."""
        return (self.image_size // self.patch_size) ** 2 + self.has_class_token

    @property
    def has_class_token(self) -> bool:
        """Whether a token that is no patch stands in front."""
        return self.kind == "clip"

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
        if not self.has_class_token and self.select_feature != "patch":
            raise ValueError(f"select_feature {self.select_feature}: {self.kind} has no class token; use patch")
        return self


class ProjectorConfig(StrictConfig):
    """What maps the tower's width to the decoder's: one layer, or two with a GELU between."""

    kind: Literal["linear", "mlp2x_gelu"] = "mlp2x_gelu"


class RopeScaling(StrictConfig):
    """Rotary positions stretched beyond the length that a decoder was first trained on."""

    kind: Literal["linear", "llama3"]
    """`linear` divides all frequencies by `factor`; `llama3` the low ones, with a smooth passage to the high ones."""
    factor: PositiveFloat
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    original_max_position_embeddings: PositiveInt = 8192


class LanguageConfig(StrictConfig):
    """A Llama-family decoder."""

    family: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama"
    """Its class in transformers. Qwen2 (and 2.5) has biases on q, k and v; Qwen3 norms on q and k."""
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
    """Biases on q, k, v and o, as `attention_bias` of transformers' `LlamaConfig` and `Qwen3Config`."""
    rope_scaling: RopeScaling | None = None
    sliding_window: PositiveInt | None = None
    """Tokens that a token sees, itself included (Mistral 0.1: 4096). Longer samples are refused, not cut."""
    tie_embeddings: bool = False
    """The output layer is the embedding table; `language.lm_head.weight` does not exist."""
    max_position_embeddings: PositiveInt

    @model_validator(mode="after")
    def _fits_together(self) -> "LanguageConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs of values")
        if self.attention_bias and self.family in ("mistral", "qwen2"):
            raise ValueError(f"attention_bias: {self.family} has none to choose")
        return self

    @property
    def qkv_bias(self) -> bool:
        """Whether q, k and v have biases."""
        return self.attention_bias or self.family == "qwen2"

    @property
    def has_qk_norm(self) -> bool:
        """Whether each head's queries and keys are normalised before they are turned."""
        return self.family == "qwen3"


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
