"""The figures of a report: those of the rows, read from the small columns alone, in bounded memory."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from dataprep.report import gather as gathering
from dataprep.report.gather import gather
from dataprep.shards import ShardError, ShardReader
from dataprep.shards.layout import Source
from tests.dataprep.report.folders import layout_for, row, write_folder


@pytest.fixture
def many(tmp_path, tiny_tokenizer_dir):
    """Write a folder of `count` shards of five rows each, lengths and sources by a pattern."""

    def write(count, name="many"):
        layout = layout_for(tiny_tokenizer_dir)
        shards = []
        for shard in range(count):
            rows = []
            for number in range(5):
                image = f"{number}.jpg" if number % 3 else None
                source = Source(f"{(shard + number) % 4}.jsonl", shard, f"{shard}-{number}")
                rows.append(row(layout, [260] * (3 + (7 * shard + number) % 50), [261] * (1 + number), image, source))
            shards.append(rows)
        return write_folder(tmp_path / name, tiny_tokenizer_dir, layout, shards)

    return write


def test_the_figures_are_those_of_the_rows(compiled):
    columns = gather(compiled).columns
    with ShardReader(compiled) as rows:
        by_length = np.zeros_like(columns.lengths)
        by_trained = np.zeros_like(columns.trained)
        by_file = {}
        for each in rows:
            by_length[int(each.has_image), each.length] += 1
            by_trained[int(each.loss_mask.sum())] += 1
            before = by_file.get(each.source.file, np.zeros(4, int))
            by_file[each.source.file] = before + [1, each.has_image, each.length, each.loss_mask.sum()]
        assert (columns.lengths == by_length).all() and (columns.trained == by_trained).all()
        assert {file: tuple(totals) for file, totals in columns.sources.items()} == {
            file: tuple(totals) for file, totals in by_file.items()
        }
        assert columns.num_rows == len(rows) > 50
        assert columns.sample.index.tolist() == list(range(len(rows)))
        assert columns.sample.length.tolist() == rows.lengths.tolist()
        assert columns.sample.has_image.tolist() == rows.has_image.tolist()


def test_of_many_rows_a_sample_is_kept_always_the_same_and_the_totals_stay_exact(many, monkeypatch):
    folder = many(60)
    whole = gather(folder)
    monkeypatch.setattr(gathering, "MAX_SAMPLE", 100)
    found = gather(folder)
    assert (found.columns.lengths == whole.columns.lengths).all() and found.columns.sources == whole.columns.sources
    sample = found.columns.sample
    assert 60 < len(sample.index) < 140 and found.whole
    assert (whole.columns.sample.length[sample.index] == sample.length).all()
    assert (whole.columns.sample.source[sample.index] == sample.source).all()
    assert (gather(folder).columns.sample.index == sample.index).all()


def test_of_many_shards_some_are_opened_evenly(many, monkeypatch):
    folder = many(60)
    monkeypatch.setattr(gathering, "MAX_SHARDS", 10)
    found = gather(folder)
    assert not found.whole and found.columns.num_shards == 10 and found.columns.num_rows == 50
    shards = sorted(set((found.columns.sample.index // 5).tolist()))
    assert shards[0] == 0 and shards[-1] == 59 and max(np.diff(shards)) <= 7


def test_the_rows_themselves_are_not_read(many, monkeypatch):
    folder = many(3)
    read = []
    original = h5py.Dataset.__getitem__

    def watched(dataset, *arguments, **options):
        read.append(dataset.name)
        return original(dataset, *arguments, **options)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    gather(folder)
    assert len(read) == 12 and set(read) == {"/length", "/num_loss_tokens", "/has_image", "/source/file"}


def edit(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture
def unhashed(monkeypatch):
    """Every folder counts as one that is too large to be hashed."""
    monkeypatch.setattr(gathering, "HASHED_BYTES", -1)


def test_a_folder_too_large_to_be_hashed_has_the_same_figures(many, unhashed, monkeypatch):
    folder = many(3)
    found = gather(folder)
    monkeypatch.undo()
    hashed = gather(folder)
    assert (found.hashed, hashed.hashed) == (False, True)
    assert (found.columns.lengths == hashed.columns.lengths).all() and found.columns.sources == hashed.columns.sources


def test_shards_that_contradict_the_manifest_are_refused(many, unhashed):
    folder = many(2)
    with h5py.File(folder / "shard-00001.h5", "r+") as file:
        file["length"][2] += 1
    edit(folder, lambda manifest: [shard.pop("bytes") for shard in manifest["shards"]])
    with pytest.raises(ShardError, match=r"the shards hold \d+ attended tokens, manifest.json says \d+; .*verify"):
        gather(folder)


def test_any_flipped_bit_is_found_by_the_hash(many):
    folder = many(1)
    path = folder / "shard-00000.h5"
    whole = path.read_bytes()
    for place in np.random.default_rng(1).integers(0, len(whole), 20).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ShardError, match=r"shard-00000\.h5: damaged: sha256"):
            gather(folder)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "bytes, the manifest says"),
        (lambda path: path.write_bytes(b"x" * path.stat().st_size), "not a shard"),
        (lambda path: path.unlink(), "there is no such file"),
    ],
)
def test_a_damaged_shard_is_named(many, unhashed, damage, sentence):
    folder = many(2)
    damage(folder / "shard-00001.h5")
    with pytest.raises(ShardError, match=rf"shard-00001\.h5: .*{sentence}"):
        gather(folder)


@pytest.mark.parametrize(
    ("column", "value"), [("length", 401), ("length", -1), ("num_loss_tokens", 9999), ("source/file", 4)]
)
def test_a_value_out_of_its_range_is_refused(many, unhashed, column, value):
    folder = many(1)
    edit(folder, lambda manifest: [shard.pop("bytes") for shard in manifest["shards"]])
    with h5py.File(folder / "shard-00000.h5", "r+") as file:
        file[column][0] = value
    with pytest.raises(ShardError, match="out of its range"):
        gather(folder)


CHANGES = {
    "a size that is text": lambda manifest: manifest["layout"].update(max_seq_length="400"),
    "a size without end": lambda manifest: manifest["layout"].update(max_seq_length=10**12),
    "a count that is missing": lambda manifest: manifest["accounting"].pop("loss_tokens"),
    "a negative count": lambda manifest: manifest["accounting"].update(records=-1),
    "refusals that are a list": lambda manifest: manifest["accounting"].update(refused=[1]),
    "a refusal that is no count": lambda manifest: manifest["accounting"].update(refused={"a": "b"}),
    "inputs that are numbers": lambda manifest: manifest.update(inputs=[1]),
    "a config that is text": lambda manifest: manifest.update(config="x"),
    "bytes that are text": lambda manifest: manifest["shards"][0].update(bytes="x"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_with_other_kinds_of_values_is_refused_in_a_sentence(many, name):
    folder = many(1)
    edit(folder, CHANGES[name])
    with pytest.raises(ShardError):
        gather(folder)


def test_a_folder_without_rows_can_be_told(tmp_path, tiny_tokenizer_dir):
    folder = write_folder(tmp_path / "empty", tiny_tokenizer_dir, layout_for(tiny_tokenizer_dir), [])
    facts = gather(folder)
    assert facts.columns.num_rows == 0 and facts.num_bytes == 0 and replace(facts).whole
