"""The file of answers: one line a question, with the original LLaVA repository's keys.

    {"question_id": "human-1", "prompt": "How many ...", "text": "14", "answer_id": "f0c1...", "model_id": "run_final",
     "metadata": {"benchmark": "chartqa", "answers": ["14"], "kind": "human", "options": [], "image": "/data/.../1.png",
                  "num_tokens": 3, "ended": true}}

The keys are those of its `llava/eval/model_vqa_loader.py`; its scoring scripts read the first five. `metadata` holds
all that our scoring needs, so that a score takes this file alone. `image` is the picture's absolute path, null without
one; `group` is there where several questions count as one. A question that could not be answered has `text: ""` and
`error: "REASON: detail"`. `answer_id` is a hash of model, question and prompt: the same run writes the same file.

A question is known by `question_id` and `prompt` together: LLaVA's file for TextVQA names questions by their picture.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from dataprep.errors import CommandError, Exit
from trainer.evaluation.benchmarks.base import Asked
from trainer.evaluation.metrics import Truth

KEYS = ("question_id", "prompt", "text", "answer_id", "model_id", "metadata")

Record = dict[str, Any]


class Given(NamedTuple):
    """What became of one question."""

    text: str
    num_tokens: int = 0
    ended: bool = False
    error: str | None = None
    """`REASON: detail` where it could not be answered."""


def record_of(asked: Asked, given: Given, benchmark: str, model_id: str, model_sha256: str, tagged: bool) -> Record:
    """Return the line of a question.

    Args:
        tagged: write the picture's tag into the prompt.
    """
    prompt = f"<image>\n{asked.prompt}" if tagged and asked.image is not None else asked.prompt
    metadata: Record = {
        "benchmark": benchmark,
        "answers": list(asked.answers),
        "kind": asked.kind,
        "options": list(asked.options),
        "image": None if asked.image is None else str(asked.image),
        "num_tokens": given.num_tokens,
        "ended": given.ended,
    }
    if asked.group is not None:
        metadata["group"] = asked.group
    if given.error is not None:
        metadata["error"] = given.error
    named = json.dumps([model_sha256, asked.id, prompt], ensure_ascii=False)
    answer_id = hashlib.sha256(named.encode("utf-8", "surrogatepass")).hexdigest()[:22]
    values = (asked.id, prompt, given.text, answer_id, model_id, metadata)
    return dict(zip(KEYS, values, strict=True))


def encode(record: Record) -> bytes:
    """Return a record as a line."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_answers(path: Path) -> list[Record]:
    """Return the records of a file that `run` has finished.

    Raises:
        CommandError: a line is torn, is no answer, is of another benchmark than the first, or answers a question again;
            the sentence names it.
    """
    if not path.is_file():
        unfinished = parts_folder(path).is_dir()
        said = "; its run is not finished: run the same command again" if unfinished else ""
        raise CommandError(f"{path}: no such file{said}")
    records: list[Record] = []
    places: dict[tuple[Any, str], int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            record = _record(line, path, number)
            first = places.setdefault((record["question_id"], record["prompt"]), number)
            if first != number:
                name = record["question_id"]
                raise _damaged(path, number, f"question {name!r} was answered in line {first} already")
            if records and record["metadata"]["benchmark"] != records[0]["metadata"]["benchmark"]:
                kinds = f"{record['metadata']['benchmark']!r}, and line 1 is of {records[0]['metadata']['benchmark']!r}"
                raise _damaged(path, number, f"is of the benchmark {kinds}")
            records.append(record)
    if not records:
        raise CommandError(f"{path}: holds no answers")
    return records


def truth_of(record: Record) -> Truth | None:
    """Return what is known about a record's question; None where no reference answer is."""
    metadata = record["metadata"]
    if not metadata["answers"]:
        return None
    return Truth(tuple(metadata["answers"]), tuple(metadata["options"]), record["prompt"])


def parts_folder(output: Path) -> Path:
    """Return the folder where an unfinished run keeps what it has."""
    return output.with_name(f"{output.name}.parts")


def _record(line: bytes, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        torn = " (torn: it has no end)" if not line.endswith(b"\n") else ""
        raise _damaged(path, number, f"is not JSON{torn}: {error}") from None
    missing = [key for key in KEYS if not isinstance(record, dict) or key not in record]
    if missing:
        raise _damaged(path, number, f"has no {', '.join(missing)}")
    metadata = record["metadata"]
    if not isinstance(metadata, dict) or not isinstance(metadata.get("benchmark"), str):
        raise CommandError(
            f"{path}, line {number}: metadata names no benchmark, so nothing is known about the question; expected a"
            " file that `python -m trainer.evaluation.run` wrote"
        )
    texts = (record["prompt"], record["text"], record["model_id"], metadata.get("kind", ""))
    lists = [metadata.setdefault("answers", []), metadata.setdefault("options", [])]
    if not all(isinstance(text, str) for text in texts) or not all(_is_texts(value) for value in lists):
        raise _damaged(
            path, number, "expected texts in prompt, text, model_id and kind, and lists of texts in answers and options"
        )
    if not isinstance(record["question_id"], str | int):
        raise _damaged(path, number, f"question_id is {record['question_id']!r:.40}")
    for name, kind in (("image", str), ("error", str), ("group", str | int)):
        if not isinstance(metadata.get(name), kind | None):
            raise _damaged(path, number, f"{name} is {metadata[name]!r:.40}")
    return record


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _damaged(path: Path, number: int, what: str) -> CommandError:
    return CommandError(f"{path}, line {number}: {what}", Exit.INTEGRITY)
