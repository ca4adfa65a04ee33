"""What decides the answers of a run, so that a file never mixes two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.evaluation.benchmarks.base import Asked

#: Files up to this size go into a model's hash whole; of a larger one a block of every stretch of this size. The
#: projector, in which alone two models of a first phase differ, is several times as large.
WHOLE_BYTES = 1 << 20
BLOCK_BYTES = 4096

#: What a model's folder holds of the model, whatever else was put there.
MODEL_FILES = (".safetensors", ".distcp", ".bin", ".pt", ".pth", ".mdl", ".json", ".yaml", ".model", ".jinja", ".txt")

#: How the name of a run's settings ends.
RUN_FILE = ".run.json"

#: Folders whose name says nothing without that of the run.
PLAIN_NAMES = ("final", "checkpoint", "step")


@dataclass(frozen=True, slots=True)
class Settings:
    """What may not change between a run and its continuation, but for where things lie."""

    benchmark: str
    split: str
    limit: int | None
    template: str | None
    dtype: str
    max_new_tokens: int
    model: str
    """The folder; may change."""
    model_sha256: str
    base: str | None
    """The folder of an adapter's base; may change."""
    data: str
    """May change, as long as the questions stay."""
    questions_sha256: str

    def differences(self, before: dict) -> list[str]:
        """Return what is another setting now, in words."""
        now = asdict(self)
        found = [
            f"{name} was {before.get(name)}, is {now[name]}"
            for name in ("benchmark", "split", "limit", "template", "dtype", "max_new_tokens")
            if before.get(name) != now[name]
        ]
        if before.get("model_sha256") != self.model_sha256:
            moved = "" if before.get("model") == self.model else f", was {before.get('model')}"
            found.append(f"the model is another one ({self.model}{moved})")
        elif not found and before.get("questions_sha256") != self.questions_sha256:
            found.append(f"the questions of {self.data} are others")
        return found


def model_name(folder: Path) -> str:
    """Return what a model is called in the file of answers: as LLaVA's `get_model_name_from_path`."""
    folder = folder.absolute()
    if folder.parent.name == "checkpoints":  # of a run that goes on
        return f"{folder.parent.parent.name}_{folder.name}"
    return f"{folder.parent.name}_{folder.name}" if folder.name.startswith(PLAIN_NAMES) else folder.name


def model_digest(folders: Sequence[Path]) -> str:
    """Return a hash by which a model is known again, however large it is: of sizes, and of blocks of every file."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in [folder] if folder.is_file() else sorted(filter(_is_models, folder.rglob("*"))):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode("utf-8", "surrogateescape"))
            # Unbuffered: nothing is read ahead between the blocks.
            with open(path, "rb", buffering=0) as file:
                if size <= WHOLE_BYTES:
                    digest.update(file.read())
                    continue
                for place in (*range(0, size - BLOCK_BYTES, WHOLE_BYTES), size - BLOCK_BYTES):
                    file.seek(place)
                    digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _is_models(path: Path) -> bool:
    return path.suffix in MODEL_FILES and not path.name.endswith(RUN_FILE) and path.is_file()


def questions_digest(questions: Sequence[Asked]) -> str:
    """Return a hash of what is asked, wherever the pictures lie."""
    digest = hashlib.sha256()
    for asked in questions:
        named = [asked.id, asked.prompt, asked.answers, asked.image.name if asked.image else None]
        digest.update(json.dumps(named).encode("utf-8") + b"\n")
    return digest.hexdigest()
