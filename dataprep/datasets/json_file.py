"""Any LLaVA json: an array (as LLaVA, ShareGPT4V and their kin are published) or jsonl.

    [{"id": "000000033471", "image": "coco/train2017/000000033471.jpg", "conversations": [...]}, ...]

Read record by record, however large the file. `id`, `image` and `conversations` are kept, other keys are not. Image
paths are taken as they are: relative to the image root that `to-h5` will be given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dataprep.conversation import Refusal, parse, read_lines, validate
from dataprep.datasets.base import Dataset, Item, Options, Part, Refused, Written
from dataprep.errors import CommandError
from dataprep.json_stream import array_elements, is_array


def parts(source: Path, options: Options) -> list[Part]:
    """Return a part a file: the file given, or every .json and .jsonl of a folder, sorted by name."""
    if source.is_file():
        return [Part(source, "")]
    files = sorted(path for suffix in ("*.json", "*.jsonl") for path in source.glob(suffix))
    if not files:
        raise CommandError(f"{source}: no .json or .jsonl file there")
    return [Part(path, "") for path in files]


def read(part: Part, options: Options) -> Iterator[Item]:
    """Yield every record that can be trained on, unchanged but for the named normalisations."""
    for number, raw in _records(part.path):
        try:
            conversation, rules = parse(raw)
            validate(conversation)
        except Refusal as refusal:
            yield Refused(refusal.reason, refusal.detail, part.path.name, number, refusal.record_id)
            continue
        yield Written(conversation, rules=tuple(rules))


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    if is_array(path):
        yield from enumerate(array_elements(path), 1)
        return
    for number, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


DATASET = Dataset("json", "any LLaVA json array or jsonl file", (1, 2), (), parts, read)
