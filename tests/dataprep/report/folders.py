"""Folders of shards written row by row, so that every string in them can be chosen."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dataprep.encoding import TextEncoder
from dataprep.shards.fingerprint import tokenizer_fingerprint
from dataprep.shards.layout import FEATURES, FORMAT_VERSION, Row, RowLayout, Source
from dataprep.shards.writer import ShardWriter

NUM_PATCHES = 4


@dataclass
class Strings:
    """Everything in a folder that is a string of somebody else's."""

    text: str = "what?"
    answer: str = "that"
    id: str = "r1"
    file: str = "a.jsonl"
    image: str = "pictures/0.jpg"
    template: str = "vicuna_v1"
    reason: str = "missing_image"
    detail: str = "no such file"
    setting: str = "crop"
    rule: str = "null_image"
    anything: str = "x"
    more: dict = field(default_factory=dict)

    @classmethod
    def all_of(cls, text: str) -> "Strings":
        """The same in every field; what HDF5 and the file system cannot hold is taken out where they must hold it."""
        storable = text.encode("utf-8", "ignore").decode().replace("\0", "")
        stored = {name: storable for name in ("text", "answer", "id", "file", "image", "template")}
        kept = {name: text for name in ("reason", "detail", "setting", "rule", "anything")}
        return cls(**stored, **kept)


def layout_for(tokenizer: Path, template: str = "vicuna_v1", slots: int = 400, image_size: int = 28) -> RowLayout:
    encoder = TextEncoder(tokenizer)
    return RowLayout(
        max_seq_length=slots,
        num_patches=NUM_PATCHES,
        image_start_idx=1,
        hole_start=1,
        hole_length=NUM_PATCHES,
        phase=2,
        template=template,
        bos_id=encoder.bos_id,
        eos_id=encoder.eos_id,
        pad_id=encoder.pad_id,
        vocab_size=encoder.vocab_size,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        image_size=image_size,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        image_fit="pad",
        config_sha256="0" * 64,
    )


def row(layout: RowLayout, question: list[int], answer: list[int], image: str | None, source: Source) -> Row:
    """A row of `<s>`, the picture or its hole, a question, and an answer with `</s>` that are trained."""
    image_slots = [layout.pad_id] * layout.num_patches
    ids = np.array([layout.bos_id, *image_slots, *question, *answer, layout.eos_id], np.int32)
    trained = np.zeros(len(ids), bool)
    trained[len(ids) - len(answer) - 1 :] = True
    attended = np.ones(len(ids), bool)
    if image is None:
        attended[1 : 1 + layout.num_patches] = False
    keep = layout.max_seq_length + 1
    ids, trained, attended = ids[:keep], trained[:keep], attended[:keep]
    places = np.flatnonzero(attended)
    data = {name: np.zeros(layout.max_seq_length, np.int32) for name in FEATURES}
    data["key_padding_mask"][:] = 1
    data["text_input_ids"][: len(ids) - 1] = ids[:-1]
    data["labels"][places[:-1]] = ids[places[1:]]
    data["loss_mask"][places[:-1]] = trained[places[1:]]
    data["key_padding_mask"][places[:-1]] = 0
    stacked = np.stack([data[name] for name in FEATURES])
    return Row(stacked, image, len(places) - 1, int(data["loss_mask"].sum()), source)


def write_folder(folder: Path, tokenizer: Path, layout: RowLayout, shards: Sequence[Sequence[Row]], **more) -> Path:
    """Write shards, their manifest, the tokenizer; `more` is merged into the manifest."""
    folder.mkdir(parents=True)
    shutil.copytree(tokenizer, folder / "tokenizer")
    entries = []
    for number, rows in enumerate(shards):
        writer = ShardWriter(layout)
        for each in rows:
            writer.write(each)
        image = writer.finish()
        name = f"shard-{number:05d}.h5"
        (folder / name).write_bytes(image.content)
        hashes = {"sha256": hashlib.sha256(image.content).hexdigest(), "content_sha256": image.content_sha256}
        entries.append({"file": name, "rows": len(rows), "bytes": len(image.content), **hashes})
    every = [each for rows in shards for each in rows]
    accounting = {
        **{"records": len(every), "written": len(every), "deduplicated": 0, "rows": len(every), "truncated": 0},
        **{"text_only": sum(each.img_path is None for each in every), "split": 0, "refused": {}, "normalised": {}},
        **{"attended_tokens": sum(each.length for each in every), "num_refused": 0},
        **{"loss_tokens": sum(each.num_loss_tokens for each in every)},
    }
    accounting |= more.pop("accounting", {})
    manifest = {"format_version": FORMAT_VERSION, "layout": layout.attributes(), "accounting": accounting, **more}
    (folder / "manifest.json").write_text(json.dumps({"shards": entries, "inputs": [], "config": {}, **manifest}))
    return folder


def folder_of_strings(folder: Path, tokenizer: Path, image_root: Path, strings: Strings) -> Path:
    """A folder whose every string is of `strings`: a row with a good picture, one with the key given, one without."""
    encoder = TextEncoder(tokenizer)
    layout = replace(layout_for(tokenizer), template=strings.template)
    source = Source(strings.file, 7, strings.id)
    # Cut to the row, so that each has its answer, and made alike, so that the charts are too.
    asked, answered = encoder.encode(strings.text)[:150], encoder.encode(strings.answer)[:100]
    images = ("pictures/0.jpg", strings.image or "x", None)
    rows = [row(layout, asked, answered, image, source) for image in images]
    write_folder(
        folder,
        tokenizer,
        layout,
        [rows],
        image_root=str(image_root),
        accounting={"refused": {strings.reason: 2}, "normalised": {strings.rule: 1}, "num_refused": 2, "records": 5},
        config={
            strings.anything: strings.setting,
            "image": {"fit": strings.setting, strings.anything: [strings.setting]},
        },
        inputs=[{"file": strings.file, "bytes": 5, "sha256": strings.anything}],
    )
    refused = {
        "reason": strings.reason,
        "detail": strings.detail,
        "file": strings.detail,
        "line": 3,
        "id": strings.detail,
    }
    (folder / "refused.jsonl").write_text(2 * (json.dumps(refused) + "\n"))
    return folder
