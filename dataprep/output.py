"""The folder that `to-h5` writes: what a run has done, and what it leaves.

shard-00000.h5 ...    the rows (`dataprep/shards/README.md`)
manifest.json         layout, config, inputs, accounting; sha256, content hash and rows of every shard
data_params.json      the Model Zoo's summary, with image_patch_info.image_patch_start_idx
refused.jsonl         every refused record: reason, detail, file, line, id
README.md             the dataset card
report.html           a page about it all (`dataprep/report`)
tokenizer/            the tokenizer's files, so that the shards can be read back as text
.tasks/               a record for each finished task; a rerun does what has none
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dataprep.compiler import Result, Tally, Work
from dataprep.errors import CommandError, Exit
from dataprep.provenance import differences
from dataprep.report.card import card
from dataprep.shards.fingerprint import TOKENIZER_FILES
from dataprep.shards.layout import FORMAT_VERSION, RowLayout
from dataprep.shards.manifest import MANIFEST_NAME, file_sha256
from dataprep.shards.writer import ShardImage, publish

#: The folder of the rows that `holdout` keeps from training, inside the output folder.
HOLDOUT_NAME = "holdout"


class OutputFolder:
    """The output of one run, and the record of what is already there.

    Args:
        identity: what decides the bytes: config, tokenizer, inputs, image root. A folder made for another is refused.

    Raises:
        CommandError: the folder holds another run's shards (exit 4), naming what differs.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self.identity = identity
        self.tasks = folder / ".tasks"
        self._claim(identity)

    def without_identity(self) -> OutputFolder:
        """Return the folder for a process that only adds shards to it."""
        folder = copy.copy(self)
        folder.identity = {}
        return folder

    def _claim(self, identity: dict[str, Any]) -> None:
        path = self.tasks / "run.json"
        if path.is_file():
            before = _read(path)
            if before is None:
                raise CommandError(f"{path}: damaged; delete {self.folder} and start anew", Exit.CONFLICT)
            changed = list(differences(before, json.loads(json.dumps(identity))))
            if changed and self._came_to_nothing():
                self._begin_anew(identity)
                return
            if changed:
                raise CommandError(
                    f"{self.folder}: holds shards of another run: {'; '.join(changed[:5])}."
                    " Name another --output, or delete the folder",
                    Exit.CONFLICT,
                )
            return
        strange = sorted(path.name for path in self.folder.glob("*") if not path.name.startswith("."))
        if strange:
            raise CommandError(
                f"{self.folder}: holds files that this command did not write, such as {strange[0]}; name another"
                " --output",
                Exit.CONFLICT,
            )
        self.tasks.mkdir(parents=True, exist_ok=True)
        publish(path, _json(identity))

    def _came_to_nothing(self) -> bool:
        """Return whether a run has ended here without a single row, as it does with a wrong image root."""
        return (self.folder / MANIFEST_NAME).is_file() and not any(self.folder.rglob("*.h5"))

    def _begin_anew(self, identity: dict[str, Any]) -> None:
        (self.folder / MANIFEST_NAME).unlink()
        for path in self.tasks.iterdir():
            if path.is_file():
                path.unlink()
        publish(self.tasks / "run.json", _json(identity))

    def done(self, task: Work, good: Callable[[str], bool]) -> dict[str, Any] | None:
        """Return the record of a finished task, or None if there is something to do.

        That is so where a shard is missing or damaged, or where a picture that was refused can be used now.

        Args:
            good: says of an image key whether its picture can be used.
        """
        record = _read(self._record_path(task))
        if record is None or not all(self._whole(shard) for shard in record["shards"]):
            return None
        if any(good(refusal["image"]) for refusal in record["refusals"] if "image" in refusal):
            return None
        return record

    def record(self, task: Work) -> dict[str, Any]:
        """Return the record of a finished task.

        Raises:
            CommandError: there is none.
        """
        record = _read(self._record_path(task))
        if record is None:
            raise CommandError(f"{self._record_path(task)}: no record of task {task.index}; run the same command again")
        return record

    def left(self, tasks: Sequence[Work]) -> Iterator[Work]:
        """Yield the tasks that are not done, told from their records and the sizes of their shards."""
        there = set(os.listdir(self.tasks))
        for task in tasks:
            path = self._record_path(task)
            record = _read(path) if path.name in there else None
            if record is None or not all(self._sized(shard) for shard in record["shards"]):
                yield task

    def _sized(self, shard: dict[str, Any]) -> bool:
        try:
            return os.stat(self.folder / shard["file"]).st_size == shard["bytes"]
        except FileNotFoundError:
            return False

    def forget(self, task: Work) -> None:
        """Take a task's record away, so that it counts as not done."""
        self._record_path(task).unlink(missing_ok=True)

    def _whole(self, shard: dict[str, Any]) -> bool:
        file = self.folder / shard["file"]
        return file.is_file() and file_sha256(file) == shard["sha256"]

    def make(self, task: Work, compile_task: Callable[[Work, Callable[[ShardImage], None]], Result]) -> dict[str, Any]:
        """Compile a task, publish each of its shards when it is closed, then the record that says they are whole.

        Args:
            compile_task: gives each shard to its second argument: several of them need not be in memory together.
        """
        shards: list[dict[str, Any]] = []
        first = {"file": task.first.file, "line": task.first.line}

        def keep(image: ShardImage) -> None:
            name = f"shard-{task.index:05d}{f'-{len(shards)}' if shards else ''}.h5"
            publish(self.folder / name, image.content)
            hashes = {"sha256": image.sha256, "content_sha256": image.content_sha256}
            shards.append({"file": name, "rows": image.num_rows, "bytes": len(image.content), **hashes, "from": first})

        result = compile_task(task, keep)
        record = {"shards": shards, "refusals": result.refusals, "tally": result.tally.as_dict()}
        publish(self._record_path(task), _json(record))
        return record

    def finish(
        self,
        records: Sequence[dict[str, Any]],
        layout: RowLayout,
        identity: dict[str, Any],
        deduplicated: int = 0,
        held_out: Tally | None = None,
    ) -> Tally:
        """Write everything that describes the run as a whole; the manifest last, since it makes the folder readable.

        Args:
            deduplicated: records that no task holds, since an equal one comes before them.
            held_out: what became of the records of `holdout/`, where there is such a folder in this one.
        """
        tally = Tally(records=deduplicated, deduplicated=deduplicated)
        for record in records:
            tally.add(Tally.from_dict(record["tally"]))
        shards = [shard for record in records for shard in record["shards"]]
        refusals = [refusal for record in records for refusal in record["refusals"]]
        publish(self.folder / "refused.jsonl", b"".join(_json(refusal, None) for refusal in refusals))
        publish(self.folder / "data_params.json", _json(data_params(layout, tally, identity)))
        manifest = {
            "format_version": FORMAT_VERSION,
            "layout": layout.attributes(),
            "accounting": {**tally.as_dict(), "num_refused": tally.num_refused},
            **identity,
            **_told_of(held_out),
            "shards": shards,
        }
        publish(self.folder / "README.md", card(manifest).encode("utf-8"))
        publish(self.folder / MANIFEST_NAME, _json(manifest))
        return tally

    def keep_tokenizer(self, source: Path) -> None:
        """Copy the tokenizer's files beside the shards."""
        target = self.folder / "tokenizer"
        target.mkdir(exist_ok=True)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                publish(target / name, (source / name).read_bytes())

    def _record_path(self, task: Work) -> Path:
        return self.tasks / f"{task.index:05d}.json"


def made_anew(made: int, tasks: int) -> str | None:
    """Return what a run that found some of its tasks done has compiled, as a sentence; None of one that found none."""
    if made == tasks:
        return None
    there = tasks - made
    if not made:
        return f"nothing was compiled anew: {f'all {tasks} tasks were' if tasks > 1 else 'its one task was'} there"
    verbs = ["was" if count == 1 else "were" for count in (made, there)]
    return f"{made} of {tasks} tasks {verbs[0]} missing and compiled now; {there} {verbs[1]} there"


def _told_of(held_out: Tally | None) -> dict[str, Any]:
    """Return what the manifest of a folder says of the `holdout/` in it."""
    if held_out is None:
        return {}
    return {"holdout": {name: getattr(held_out, name) for name in ("records", "written", "rows")}}


def data_params(layout: RowLayout, tally: Tally, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the Model Zoo's summary of a data folder (its keys, where we have the value)."""
    num_tokens = tally.rows * layout.max_seq_length
    return {
        "setup": {"output_dir": ".", "input": [entry["file"] for entry in identity["inputs"]]},
        "processing": {"max_seq_length": layout.max_seq_length, "eos_id": layout.eos_id, "pad_id": layout.pad_id},
        "dataset": {"is_multimodal": True, "num_patches": layout.num_patches, "template": layout.template},
        "post-process": {
            "processed_files": tally.records,
            "successful_files": tally.written,
            "discarded_files": tally.num_refused,
            "n_examples": tally.rows,
            "eos_id": layout.eos_id,
            "pad_id": layout.pad_id,
            "vocab_size": layout.vocab_size,
        },
        "h5_dataset_stats": {
            "num_sequences": tally.rows,
            "num_tokens": num_tokens,
            "non_pad_tokens": tally.attended_tokens,
            "loss_valid_tokens": tally.loss_tokens,
        },
        "image_patch_info": {"image_patch_start_idx": layout.image_start_idx},
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a file of ours holds, None where it is missing or damaged."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _json(value: Any, indent: int | None = 1) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8") + b"\n"
