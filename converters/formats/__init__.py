"""The formats, written out by hand: a new one is a file here and a line in `FORMATS`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from converters.errors import UnsupportedError
from converters.formats import hf, trainer
from converters.hub import Hub


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which a model lies on disk."""

    title: str
    suits: Callable[[Path], bool]
    read: Callable[[Path], Hub]
    write: Callable[[Hub, Path, int], None]
    """`write(hub, folder, max_shard_bytes)`."""


#: Every format by the name that the command line gives it.
FORMATS: dict[str, Format] = {
    "trainer": Format("llava-prep's own checkpoint folder", trainer.suits, trainer.read, trainer.write),
    "hf": Format("transformers' LlavaForConditionalGeneration", hf.suits, hf.read, hf.write),
}


def detect(folder: Path) -> str:
    """Return the name of the format of a folder; raises `UnsupportedError` when no format knows it."""
    for name, known in FORMATS.items():
        if known.suits(folder):
            return name
    raise UnsupportedError(f"{folder} holds no model in a format that is known here: {', '.join(FORMATS)}")
