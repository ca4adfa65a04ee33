"""Our shards are the Model Zoo's file format and rows, and each side's reader reads the other's files.

The golden files were written by its Release 2.3 `create_hdf5_dataset.py`, whose faults are baked in; ordinary samples
are those it does not damage.
"""

import json

import h5py
import numpy as np
import pytest

from dataprep.config import CompileConfig
from dataprep.pipeline import Job, run_job
from dataprep.shards import FEATURES, ShardReader

TEMPLATE = {1: "plain_eos", 2: "vicuna_v1"}

#: Rows that both sides write and that differ on purpose: its ftfy rewrites quotes and ligatures, and its phase 2
#: leaves a trailing newline where the picture's tag stood last. Each is one of `docs/decisions.md`.
DIFFERENT = {1: ["0005-unicode-nfc"], 2: ["0001-img-last-1turn", "0005-unicode-nfc"]}


@pytest.fixture(scope="module", params=[1, 2])
def phase(request):
    return request.param


@pytest.fixture(scope="module")
def ours(shared, tmp_path_factory, phase):
    """Its own input, compiled here."""
    output = tmp_path_factory.mktemp(f"phase{phase}")
    goldens = shared / "goldens"
    job = Job(
        config=CompileConfig(phase=phase, template=TEMPLATE[phase], overlong="drop"),
        tokenizer=shared / "tokenizer-llama2",
        inputs=(goldens / f"cerebras/input_phase{phase}.jsonl",),
        image_root=goldens / "images",
        output=output,
    )
    run_job(job, 1, lambda *_: None)
    return output


@pytest.fixture(scope="module")
def theirs(shared, phase):
    return shared / f"goldens/cerebras/examples_phase{phase}_0_0.h5"


def test_the_files_have_the_same_datasets_dtypes_and_order(ours, theirs):
    with h5py.File(next(ours.glob("*.h5"))) as mine, h5py.File(theirs) as golden:
        assert mine["data"].dtype == golden["data"].dtype == np.int32
        assert mine["data"].shape[1:] == golden["data"].shape[1:] == (4, 2048)
        assert mine["data"].chunks == golden["data"].chunks
        assert mine["data"].compression == golden["data"].compression == "gzip"
        assert mine["img_path"].dtype.kind == golden["img_path"].dtype.kind == "S"
        assert mine["img_path"].shape[1:] == golden["img_path"].shape[1:] == (1,)
        assert mine.attrs["n_examples"] == mine["data"].shape[0]
        assert set(golden) <= set(mine)
        assert tuple(mine.attrs["features"]) == FEATURES


def test_data_params_has_its_keys(ours, shared, phase):
    mine = json.loads((ours / "data_params.json").read_text())
    golden = json.loads((shared / f"goldens/cerebras/data_params_phase{phase}.json").read_text())
    assert mine["image_patch_info"] == golden["image_patch_info"]
    for key in ("eos_id", "pad_id", "vocab_size"):
        assert mine["post-process"][key] == golden["post-process"][key]
    assert set(mine["h5_dataset_stats"]) <= set(golden["h5_dataset_stats"])


def read_as_the_model_zoo_does(path):
    """Its map-style loader: `data` cast to int32, features by position, the path decoded."""
    with h5py.File(path) as file:
        data, paths = file["data"][:].astype(np.int32), file["img_path"][:, 0]
        names = ("text_input_ids", "loss_mask", "labels", "key_padding_mask")
        return [
            {**dict(zip(names, row, strict=True)), "img_path": image.decode()}
            for row, image in zip(data, paths, strict=True)
        ]


def test_ordinary_rows_are_the_same(ours, theirs, shared, phase):
    arrays = np.load(shared / f"goldens/cerebras/cerebras_phase{phase}.npz", allow_pickle=False)
    golden = dict(zip(arrays["sample_id"].tolist(), read_as_the_model_zoo_does(theirs), strict=True))
    with ShardReader(ours) as reader:
        ids = [row.source.id for row in reader]
    mine = dict(zip(ids, read_as_the_model_zoo_does(next(ours.glob("*.h5"))), strict=True))
    same = [key for key in mine if key in golden and _same(mine[key], golden[key])]
    different = sorted(key for key in mine if key in golden and key not in same)
    assert different == DIFFERENT[phase]
    assert len(same) == {1: 3, 2: 6}[phase]


def _same(mine, golden):
    attended = golden["key_padding_mask"] == 0
    learned = golden["loss_mask"] == 1
    return (
        (mine["key_padding_mask"] == golden["key_padding_mask"]).all()
        and (mine["text_input_ids"] == golden["text_input_ids"])[attended].all()
        and (mine["loss_mask"] == golden["loss_mask"]).all()
        and (mine["labels"] == golden["labels"])[learned].all()
        and mine["img_path"] == golden["img_path"]
    )


def test_our_reader_reads_its_files(theirs, shared, tmp_path, phase):
    (tmp_path / theirs.name).symlink_to(theirs)
    start = {1: 1, 2: 35}[phase]
    reader = ShardReader.open_cerebras(tmp_path, shared / "tokenizer-llama2", start)
    expected = read_as_the_model_zoo_does(theirs)
    assert len(reader) == len(expected) > 5
    for row, golden in zip(reader, expected, strict=True):
        assert (row.text_input_ids == golden["text_input_ids"]).all()
        assert (row.labels == golden["labels"]).all()
        assert row.length == (golden["key_padding_mask"] == 0).sum()
        assert (row.img_path or "None") == golden["img_path"]
    assert reader.lengths.tolist() == [row.length for row in reader]
