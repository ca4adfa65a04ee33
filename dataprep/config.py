"""What `to-h5` and `mix` make, as YAML: `configs/compile/*.yaml`, `configs/mix/*.yaml`."""

from __future__ import annotations

import hashlib
from pathlib import PurePath
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from configs import StrictConfig
from dataprep.kinds import Kind


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

    template: Literal["plain", "plain_eos", "vicuna_v1", "llama2", "llama3", "chatml", "mistral", "zephyr", "tokenizer"]
    """The wording around the turns (`dataprep/templates/`); `tokenizer`: the tokenizer's own chat template."""

    system: str | None = None
    """System prompt; None: the template's own, empty: none."""

    max_seq_length: int = Field(default=2048, gt=1)
    """Slots of a row, the image slots included."""

    row_width: Literal["fixed", "fit"] = "fixed"
    """`fit` widens the rows by the hole of text-only samples, so that those too may have `max_seq_length` tokens."""

    image: ImageConfig = ImageConfig()

    check_images: Literal["decode", "header", "exists", "none"] = "decode"
    """How thoroughly each distinct picture is looked at."""

    images: Literal["path", "embed"] = "path"
    """`embed` puts each picture into its shard at the tower's size, losslessly; training then needs no image folder."""

    image_pixels: Literal["fast", "exact"] = "fast"
    """Of embedded pictures: `exact` are Pillow's pixels, `fast` may differ from them by 1 or 2 levels."""

    shuffle: int | None = None
    """Seed of the order of the rows; None keeps the order of the input."""

    dedup: Literal["none", "exact"] = "none"
    """`exact` compiles the first of several records with the same conversation and picture."""

    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the records that goes to `holdout/` instead, chosen by a hash of each."""

    holdout_by: Literal["record", "picture"] = "record"
    """What is hashed: conversation and picture, or the picture alone, so that no picture is on both sides."""

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
            names = get_args(type(self).model_fields["template"].annotation)
            fitting = ", ".join(name for name in names if name.startswith("plain") == (self.phase == 1))
            raise ValueError(f"template {self.template} is not one of phase {self.phase}; choose from {fitting}")
        if self.row_width == "fit" and self.phase == 1:
            raise ValueError("row_width fit makes room for text-only samples, and phase 1 has none")
        if self.image_pixels == "exact" and self.images == "path":
            raise ValueError("image_pixels is of embedded pictures: add images=embed (--images embed)")
        if self.holdout_by == "picture" and not self.holdout:
            raise ValueError("holdout_by picture needs a holdout")
        return self

    @property
    def task_rows(self) -> int:
        """Records of one task: a shard's, or so many that their pictures hardly make more than one."""
        return min(self.shard_rows, 1000) if self.images == "embed" else self.shard_rows

    def sha256(self) -> str:
        """Return the hash that shards carry."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class SourceConfig(StrictConfig):
    """One file of a mixture, or a part of it. Without `count`, `max` and `weight`, all of it."""

    file: str = Field(pattern=r"\.jsonl$")
    """The jsonl file, relative to ROOT or absolute."""

    name: str | None = Field(default=None, min_length=1)
    """What the report calls it, and part of what decides which records are drawn; default: the file's stem."""

    kind: Kind | None = None
    """The kind of all its records; default: each is told from its form (`dataprep/kinds.py`)."""

    images: str | None = Field(default=None, min_length=1)
    """Only the records whose image key fits this pattern, where * fits anything (`*coco/*`); none: text-only ones."""

    count: int | None = Field(default=None, gt=0)
    """Exactly so many."""

    max: int | None = Field(default=None, gt=0)
    """At most so many."""

    weight: float | None = Field(default=None, gt=0)
    """Its share among the weighted sources of what `total` leaves them."""

    repeat: bool = False
    """Take records again where `count` or `weight` asks for more than there are: whole passes, and a drawn rest."""

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.name or PurePath(self.file).stem

    @model_validator(mode="after")
    def _consistent(self) -> SourceConfig:
        given = [name for name in ("count", "max", "weight") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} together: give one of them")
        if self.repeat and given not in (["count"], ["weight"]):
            raise ValueError("repeat needs a count or a weight to repeat up to")
        return self


class MixConfig(StrictConfig):
    """What `llava-prep mix` joins, and how much of each. Everything here decides bytes of the mixture."""

    FOLDER: ClassVar[str] = "mix"

    name: str | None = Field(default=None, pattern=r"^\w[\w.-]*$")
    """The mixture is ROOT/mix/NAME.jsonl; default: the name of the YAML file."""

    seed: int = 0
    """Another seed draws other records and another order."""

    shuffle: bool = True
    """Mix the records; otherwise the sources follow each other and their records keep their order."""

    total: int | None = Field(default=None, gt=0)
    """Exactly so many records in all; it takes a source with a weight, or shares, to reach a total."""

    shares: dict[Kind, Annotated[float, Field(gt=0)]] | None = Field(default=None, min_length=1)
    """Proportions of the kinds. A kind that is not named gets nothing. Without `total`: as many records as there can be
    without one twice."""

    sources: list[SourceConfig] = Field(min_length=1)
    """What is joined. No record may belong to two of them."""

    @model_validator(mode="after")
    def _consistent(self) -> MixConfig:
        labels = [source.label for source in self.sources]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]}: give each a name of its own")
        weighted = [source.label for source in self.sources if source.weight is not None]
        counted = [source.label for source in self.sources if source.count is not None]
        if self.shares and weighted + counted:
            raise ValueError(f"shares decide how much of each source: {(weighted + counted)[0]} may have a max only")
        if weighted and self.total is None:
            raise ValueError(f"{weighted[0]} has a weight, which needs a total to be a share of")
        if self.total is not None and not weighted and not self.shares:
            raise ValueError("a total needs a source with a weight, or shares")
        return self
