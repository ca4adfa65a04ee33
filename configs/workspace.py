"""The workspace file: what a user would otherwise type with every command.

# llava-prep.yaml, in the working directory
root: data                          # raw/, jsonl/, h5/ ... lie here
tokenizer: models/vicuna-7b-v1.5    # a folder or a hub id
train: configs/train/phase2_7b.yaml # what `torchrun trainer/run.py` trains when it is given no config
"""

from __future__ import annotations

from pathlib import Path

from configs.loading import StrictConfig, load

FILE_NAME = "llava-prep.yaml"


class Workspace(StrictConfig):
    """The defaults of every command in one working directory."""

    root: Path = Path("data")
    """Folder of `raw/`, `images/`, `jsonl/`, `mix/`, `reports/` and `h5/`."""

    tokenizer: str | None = None
    """Folder with a `tokenizer.json`, or a Hugging Face hub id."""

    train: str | None = None
    """Training config that `trainer/run.py` uses when the command names none."""


def load_workspace(folder: Path | str = ".") -> Workspace:
    """Return the workspace of `folder`: its `llava-prep.yaml`, or the defaults where there is none."""
    path = Path(folder) / FILE_NAME
    return load(Workspace, path if path.is_file() else None)
