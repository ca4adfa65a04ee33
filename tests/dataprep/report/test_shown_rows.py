"""The rows of a report: which they are, what their colours say, and their pictures."""

import base64
import io
import json
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from PIL import Image

from dataprep.images import load_image, pad_colour
from dataprep.pipeline import run_job
from dataprep.report.gather import gather
from dataprep.report.rows import MAX_PICTURE_BYTES, MAX_ROWS, Decoder, chosen_rows, data_uri, runs, shown_rows
from dataprep.shards import ShardReader


def test_the_median_the_longest_the_shortest_and_each_source_are_shown(compiled):
    chosen = chosen_rows(gather(compiled))
    assert len({index for _, index in chosen}) == len(chosen) <= MAX_ROWS
    named = " ".join(why for why, _ in chosen)
    assert all(word in named for word in ("median", "longest", "shortest", "without a picture", "large source"))
    with ShardReader(compiled) as rows:
        by_why = {why: rows[index] for why, index in chosen}
        assert next(row.length for why, row in by_why.items() if "longest" in why) == max(rows.lengths)
        assert next(row.length for why, row in by_why.items() if "shortest" in why) == min(rows.lengths)
        assert {row.source.file for row in by_why.values()} == {"seen.jsonl", "read.jsonl"}


def test_the_runs_say_what_is_trained_and_hold_every_token(compiled):
    facts = gather(compiled)
    decoder = Decoder(compiled / "tokenizer", facts.layout)
    with ShardReader(compiled) as reader:
        for row in list(reader)[::7]:
            found = runs(row, facts.layout, decoder)
            assert sum(run.num_tokens for run in found if run.kind == "trained") == row.loss_mask.sum()
            held = facts.layout.hole_length if not row.has_image else 0
            # The first token is read and never a target, and the last is a target and never read.
            assert sum(run.num_tokens for run in found) == row.length + 1 + held
            kinds = [kind for kind, _ in groupby(run.kind for run in found)]
            assert kinds[:3] == ["masked", "image" if row.has_image else "hole", "masked"]
            assert kinds[3] == "trained"


def test_texts_read_as_they_were_written_and_control_tokens_are_told_from_text(compiled):
    facts = gather(compiled)
    with ShardReader(compiled) as reader:
        row = next(row for row in reader if row.source.id == "r105" or row.source.line == 6 and not row.has_image)
        found = runs(row, facts.layout, Decoder(compiled / "tokenizer", facts.layout))
    assert [(run.text, run.control) for run in found if run.control] == [("<s>", True), ("</s>", True)]
    assert " q 日本 </s> ASSISTANT:" in "".join(run.text for run in found)
    assert [run.text for run in found if run.kind == "trained"] == [" é\n✓ <b>", "</s>"]


def test_a_picture_is_what_the_tower_sees(compiled, image_root):
    facts = gather(compiled)
    shown, fault = shown_rows(facts)
    assert fault is None
    pictures = [entry for entry in shown if entry.picture]
    assert len(pictures) >= 2 and all(entry.row.has_image for entry in pictures)
    for entry in pictures:
        seen = decoded(entry.picture)
        expected = load_image(image_root / entry.row.img_path, 28, "pad", pad_colour(facts.layout.image_mean))
        assert np.abs(seen.astype(int) - expected).mean() < 4  # as JPEG


def decoded(uri):
    head, _, content = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.mark.parametrize("side", [28, 336, 448, 1344])
def test_a_picture_takes_little_room_however_it_looks(side):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    uri = data_uri(noise)
    assert len(uri) < MAX_PICTURE_BYTES * 4 / 3 + 50
    assert decoded(uri).shape[0] >= min(side, 112)


def test_embedded_pictures_need_no_files(job):
    job = replace(job, config=job.config.model_copy(update={"images": "embed", "image_pixels": "exact"}))
    run_job(job, 1, lambda *_: None)
    for path in job.image_root.glob("pictures/*"):
        path.unlink()
    shown, _ = shown_rows(gather(job.output))
    assert all(bool(entry.picture) == entry.row.has_image for entry in shown)
    assert sum(bool(entry.picture) for entry in shown) >= 2


def change(folder, **values):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **values}))


def test_pictures_that_cannot_be_reached_are_told_without_a_path(compiled):
    change(compiled, image_root="/somewhere/else")
    shown, _ = shown_rows(gather(compiled))
    told = {entry.no_picture for entry in shown if entry.row.has_image}
    assert told == {"the picture cannot be shown here: missing image"}
    assert all(entry.no_picture is None for entry in shown if not entry.row.has_image)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda file: file.unlink(), "tokenizer.json is not there"),
        (lambda file: file.write_text("{"), "cannot be read"),
        (
            lambda file: file.write_text(file.read_text().replace("<0x41>", "<0x>41").replace("<0x42>", "<0x41>")),
            "is not the one",
        ),
    ],
)
def test_without_the_tokenizer_rows_are_shown_and_texts_are_not(compiled, damage, sentence):
    damage(compiled / "tokenizer" / "tokenizer.json")
    shown, fault = shown_rows(gather(compiled))
    assert sentence in fault
    assert shown and all(run.text == "" for entry in shown for run in entry.runs)
