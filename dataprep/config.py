"""One compile run, as YAML: `configs/compile/*.yaml`."""

from __future__ import annotations

import hashlib
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from configs import StrictConfig


class ImageConfig(StrictConfig):
    """How pictures reach the tower. The defaults are OpenAI CLIP ViT-L/14 at 336 pixels, LLaVA-1.5's tower."""

    size: int = Field(default=336, gt=0)
    """Side of the tower's input, pixels."""

    patch_size: int = Field(default=14, gt=0)
    """Side of one patch, pixels."""

    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Normalisation mean, RGB, of values in 0 to 1."""

    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    """Normalisation standard deviation, RGB."""

    fit: Literal["pad", "crop"] = "pad"
    """`pad` to a square with the mean colour, or scale the short side and `crop` the middle."""

    @model_validator(mode="after")
    def _whole_patches(self) -> ImageConfig:
        if self.size % self.patch_size:
            raise ValueError(f"size {self.size} is not a multiple of patch_size {self.patch_size}")
        return self

    @property
    def num_patches(self) -> int:
        """Image slots of a row."""
        return (self.size // self.patch_size) ** 2


class CompileConfig(StrictConfig):
    """What `llava-prep to-h5` makes of a jsonl file. Everything here decides bytes of the shards."""

    FOLDER: ClassVar[str] = "compile"

    phase: Literal[1, 2]
    """1: captions, the projector learns; 2: conversations."""

    template: Literal["plain", "plain_eos", "vicuna_v1"]
    """The wording around the turns (`dataprep/templates.py`)."""

    max_seq_length: int = Field(default=2048, gt=1)
    """Slots of a row, the image slots included."""

    image: ImageConfig = ImageConfig()

    check_images: Literal["decode", "header", "exists", "none"] = "decode"
    """How thoroughly each distinct picture is looked at."""

    overlong: Literal["truncate", "drop", "split"] = "truncate"
    """What becomes of a sample longer than the row: its end is cut off, it is refused, or it is cut between turns."""

    dtype: Literal["int32", "uint16"] = "int32"
    """Of `data`. The Model Zoo writes int32; uint16 halves the bytes to decode where the vocabulary fits."""

    shard_rows: int = Field(default=10_000, gt=0, le=10_000)
    """Records of the input that make one shard."""

    shard_megabytes: int = Field(default=128, gt=0)
    """A shard that grows beyond this is closed and another begun."""

    @model_validator(mode="after")
    def _consistent(self) -> CompileConfig:
        if self.template.startswith("plain") != (self.phase == 1):
            raise ValueError(f"template {self.template} is not one of phase {self.phase}")
        return self

    def sha256(self) -> str:
        """Return the hash that shards carry."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
