"""Model Zoo folders that are damaged, or made to do harm, end a conversion with one sentence."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from converters.formats.cerebras_mdl import read_mdl

INSIDE = "model.model."
Q = "text_model.transformer_decoder.layers.0.self_attn.proj_q_dense_layer.weight"

#: Cuts and flips of a checkpoint that are tried.
NUM_DAMAGES = 400 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 10


@pytest.fixture
def exported(run, make_checkpoint, tmp_path):
    assert run("trainer", "cerebras", make_checkpoint(), tmp_path / "zoo").exit_code == 0
    return tmp_path / "zoo"


@pytest.fixture
def convert(run, exported, tmp_path):
    """Convert the folder; nothing may be left when that fails."""

    def call():
        result = run("cerebras", "trainer", exported, tmp_path / "back")
        assert result.exit_code == 0 or not [path for path in tmp_path.iterdir() if "back" in path.name]
        return result

    return call


def refused(result, exit_code, said):
    assert (result.exit_code, said in result.stderr) == (exit_code, True), result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def aliases(depth):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "params.yaml: expected a table, found a NoneType"),
        ("- model", "params.yaml: expected a table, found a list"),
        ("model: [", "params.yaml is not plain YAML"),
        ("model: {}\nmodel: {}\n", "is not plain YAML: 'model' stands twice in one table"),
        ("model: 3", "params.yaml: model: expected a table, found a int"),
        ("model: {}", "model.image_model: expected a table, found a NoneType"),
        ("other: {}", "params.yaml has neither a section model nor trainer.init.model"),
        ("trainer: [{init: {}}]", "has neither a section model nor trainer.init.model"),
        ("? [a, b]\n: 3", "params.yaml is not plain YAML"),
        ("model: " + "[" * 5000, "params.yaml is not plain YAML"),
        ("# " + "x" * (1 << 20), "bytes; a config has at most"),
        (aliases(40), "has neither a section model"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_yaml_that_is_none_is_refused(exported, convert, content, said):
    (exported / "params.yaml").write_text(content)
    refused(convert(), 5, said)


def test_a_yaml_that_is_not_text_is_refused(exported, convert):
    (exported / "params.yaml").write_bytes(b"model: \xff\xfe")
    refused(convert(), 5, "params.yaml is not UTF-8")


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir [{ran}]", "!!python/object/new:os.mkdir [{ran}]", "!!python/name:os.mkdir ''"],
)
def test_a_yaml_makes_nothing_but_plain_values(exported, convert, tmp_path, tag):
    (exported / "params.yaml").write_text("model: " + tag.format(ran=tmp_path / "ran"))
    refused(convert(), 5, "params.yaml is not plain YAML: could not determine a constructor")
    assert not (tmp_path / "ran").exists()


def test_a_yaml_that_is_cut_anywhere_is_never_another_model(exported, convert):
    text = (exported / "params.yaml").read_text()
    lines = text[: text.index("\ntrain_input:")].splitlines(keepends=True)
    for count in random.Random(0).sample(range(len(lines) - 6), 12):
        (exported / "params.yaml").write_text("".join(lines[:count]))
        result = convert()
        assert result.exit_code in (2, 5), count
        assert result.stderr.count("\n") == 1


def edit(folder, change):
    with h5py.File(folder / "model.mdl", "a") as file:
        change(file)


def replaced(name, **dataset):
    def change(file):
        attributes = dict(file[INSIDE + name].attrs)
        del file[INSIDE + name]
        file.create_dataset(INSIDE + name, **dataset).attrs.update(attributes)

    return change


def linked(link):
    def change(file):
        del file[INSIDE + Q]
        file[INSIDE + Q] = link

    return change


def virtual(file):
    layout = h5py.VirtualLayout((32, 32), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (32, 32), "f4")
    del file[INSIDE + Q]
    file.create_virtual_dataset(INSIDE + Q, layout)


def group(file):
    del file[INSIDE + Q]
    file.create_group(INSIDE + Q)


DAMAGES = {
    "a tensor is missing": (lambda f: f.__delitem__(INSIDE + Q), 5, "not found: language.layers.0.attention.q.weight"),
    "a tensor too many": (lambda f: f.copy(INSIDE + Q, f"{INSIDE}text_model.x"), 5, "no rule for text_model.x"),
    "another shape": (
        replaced("text_model.lm_head.weight", data=np.ones((400, 31), "f4")),
        5,
        "language.lm_head.weight (400, 31), expected (400, 32)",
    ),
    "no whole heads": (replaced(Q, data=np.ones((30, 32), "f4")), 5, "(30, 32), which are no whole heads of 8 rows"),
    "no dimension": (replaced(Q, data=np.float32(1)), 5, "(), which are no whole heads of 8 rows"),
    "text for values": (replaced(Q, data=["x"]), 5, "expected a tensor, found TorchTensorH5Type of object"),
    "no values": (replaced(Q, shape=(32, 32), dtype="f4"), 5, "has a place, but no values"),
    "another kind": (
        lambda f: f[INSIDE + Q].attrs.update({"__H5_TYPE__": "ObjectH5Type"}),
        5,
        "expected a tensor, found ObjectH5Type",
    ),
    "bfloat16 in four bytes": (lambda f: f[INSIDE + Q].attrs.update({"is_bfloat16": True}), 5, "expected a tensor"),
    "a link to another file": (linked(h5py.ExternalLink("/etc/hostname", "x")), 5, "found a group or a link elsewhere"),
    "a link in the file": (linked(h5py.SoftLink("/x")), 5, "found a group or a link elsewhere"),
    "values of another file": (
        replaced(Q, shape=(32, 32), dtype="f4", external=[("/etc/passwd", 0, 4096)]),
        5,
        "found a group or a link elsewhere",
    ),
    "a virtual dataset": (virtual, 5, "found a group or a link elsewhere"),
    "a group": (group, 5, "found a group or a link elsewhere"),
    "a newer format": (lambda f: f.attrs.update({"__version__": 0.5}), 2, "format np.float64(0.5); read is up to 0.4"),
    "no number of a format": (lambda f: f.attrs.update({"__version__": "x"}), 2, "checkpoint format 'x'"),
    "nothing": (lambda f: f.clear(), 5, "model.mdl holds no model: it is empty"),
}


@pytest.mark.parametrize(("change", "exit_code", "said"), DAMAGES.values(), ids=DAMAGES)
def test_a_checkpoint_that_is_none_is_refused(exported, convert, change, exit_code, said):
    edit(exported, change)
    refused(convert(), exit_code, said)


def test_a_copy_that_differs_is_refused(exported, convert):
    edit(exported, replaced("text_model.ln_f.weight", data=np.ones(32, "f4")))
    refused(convert(), 5, "text_model.transformer_decoder.norm.weight and text_model.ln_f.weight differ")


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_pickle_inside_a_checkpoint_is_not_read(exported, convert, tmp_path):
    edit(exported, lambda file: file.attrs.update({"__spec__": pickle.dumps(Evil(tmp_path / "ran")).hex()}))
    assert convert().exit_code == 0
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("nested", [True, False])
def test_a_pickled_checkpoint_that_runs_is_not_run(exported, convert, tmp_path, nested):
    (exported / "model.mdl").unlink()
    evil = {"x": Evil(tmp_path / "ran")}
    torch.save({"model": evil} if nested else evil, exported / "model.mdl")
    refused(convert(), 5, "which is no tensor and was not run")
    assert not (tmp_path / "ran").exists()


def test_a_text_for_a_checkpoint_is_refused(exported, convert):
    (exported / "model.mdl").write_text("not weights")
    refused(convert(), 5, "model.mdl is not an archive as torch.save writes it")


def test_two_checkpoints_are_one_too_many(exported, convert):
    (exported / "checkpoint_2000.mdl").touch()
    refused(convert(), 5, "expected one file *.mdl, found checkpoint_2000.mdl, model.mdl")


def test_a_checkpoint_without_its_yaml_is_refused(exported, convert):
    (exported / "params.yaml").unlink()
    refused(convert(), 5, "expected one file *.yaml, found none")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("[]", "expected a table, found a list"),
        ('{"family": 3}', "family: expected a word, found 3"),
        ("{", "not JSON"),
    ],
)
def test_a_record_of_another_kind_is_named(exported, convert, record, said):
    (exported / "llava_prep.json").write_text(record)
    refused(convert(), 5, said)


DAMAGED = """
import collections, json, os, random, sys
from pathlib import Path
from converters.cli import main

def convert(folder, out):
    try:
        main(["cerebras", "trainer", folder, out])
    except SystemExit as end:
        return end.code
    return 0

folder, out, path = sys.argv[1], sys.argv[2], Path(sys.argv[1], "model.mdl")
whole, generator, codes = path.read_bytes(), random.Random(0), collections.Counter()
for number in range(int(sys.argv[3])):
    damaged = bytearray(whole)
    if number % 2:
        del damaged[generator.randrange(len(damaged)) :]
    else:  # the tables at the front and between the values are what matters
        for _ in range(4):
            damaged[generator.randrange(min(len(damaged), 1 << 14))] ^= 1 << generator.randrange(8)
    path.write_bytes(damaged)
    sys.stderr.flush()
    if not (child := os.fork()):
        code = convert(folder, f"{out}-{number}")
        sys.stderr.flush()
        os._exit(code)
    codes[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] += 1
print(json.dumps(codes))
"""


def test_cuts_and_flips_end_in_a_sentence_or_in_values(exported, tmp_path):
    """HDF5 has no checksums by default: a flipped value is a value. What must not be is a crash, or half a folder."""
    command = [sys.executable, "-c", DAMAGED, exported, tmp_path / "back", str(NUM_DAMAGES)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    codes = {int(code): count for code, count in json.loads(done.stdout).items()}
    assert codes.keys() <= {0, 2, 5}, (codes, done.stderr[-2000:])
    assert codes[5] >= NUM_DAMAGES / 2
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == NUM_DAMAGES - codes.get(0, 0)
    left = [path for path in tmp_path.iterdir() if "back-" in path.name]
    assert len(left) == codes.get(0, 0)


KILLED = """
import os, signal, sys
from converters.formats import cerebras_mdl
original, left = cerebras_mdl._as_array, [int(sys.argv[1])]
def dying(tensor):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(tensor)
cerebras_mdl._as_array = dying
from converters.cli import main
main(["trainer", "cerebras", sys.argv[2], sys.argv[3]])
"""


@pytest.mark.parametrize("num_written", [0, 40, 80])
def test_a_kill_in_the_middle_leaves_no_folder_under_the_name(make_checkpoint, tmp_path, num_written):
    arguments = [sys.executable, "-c", KILLED, str(num_written), str(make_checkpoint()), str(tmp_path / "zoo")]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "zoo").exists()


def packed(file, code=None, **filters):
    attributes, values = dict(file[INSIDE + Q].attrs), file[INSIDE + Q][...]
    del file[INSIDE + Q]
    if code is None:
        file.create_dataset(INSIDE + Q, data=values, **filters)
    else:  # a filter that this machine has not, which HDF5 lets stand there if it may be left out
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(values.shape)
        plist.set_filter(code, h5py.h5z.FLAG_OPTIONAL)
        space, name = h5py.h5s.create_simple(values.shape), (INSIDE + Q).encode()
        h5py.h5d.create(file.id, name, h5py.h5t.IEEE_F32LE, space, plist).write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    file[INSIDE + Q].attrs.update(attributes)


def test_values_that_are_packed_are_read(exported, convert):
    before = {tensor.name: tensor.load() for tensor in read_mdl(exported / "model.mdl")[0]}
    edit(exported, lambda file: packed(file, compression="gzip", shuffle=True))
    assert all(torch.equal(tensor.load(), before[tensor.name]) for tensor in read_mdl(exported / "model.mdl")[0])
    assert convert().exit_code == 0


def test_values_packed_as_the_model_zoo_packs_them_are_read(exported):
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="LZ4 is read through hdf5plugin, which is optional")
    before = {tensor.name: tensor.load() for tensor in read_mdl(exported / "model.mdl")[0]}
    edit(exported, lambda file: packed(file, **hdf5plugin.LZ4()))
    assert all(torch.equal(tensor.load(), before[tensor.name]) for tensor in read_mdl(exported / "model.mdl")[0])


def test_a_filter_that_is_not_there_is_named(exported, convert):
    edit(exported, lambda file: packed(file, code=32099))
    refused(convert(), 5, "is compressed by HDF5 filter 32099 (32004 is LZ4): pip install hdf5plugin")
