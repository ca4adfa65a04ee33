"""A hub id stands where a folder can: fetched once, and taken from the cache without network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from converters.sources import wanted
from tests.dataprep.hub_server import hub_server

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def convert(tmp_path):
    """Run llava-convert in a process of its own, with a cache of its own."""

    def run(*words, **environment: str) -> subprocess.CompletedProcess[str]:
        own = {"HF_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        program = [sys.executable, "-c", "from converters.cli import main; main()", *map(str, words)]
        return subprocess.run(
            program, cwd=tmp_path, env={**kept, **own, **environment}, capture_output=True, text=True, timeout=240
        )

    return run


def pickled(folder: Path) -> None:
    """Leave the weights as older repositories hold them."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_starting_weights_come_from_two_repositories_in_one_command(convert, components, tmp_path):
    vision, language = components
    pickled(language)
    (vision / "tf_model.h5").write_bytes(b"the same once more")
    shutil.copytree(language, tmp_path / "local")
    out = ["components", "trainer", "--vision", str(vision), "--language", "some/vicuna"]
    with hub_server(language, "some/vicuna", kind="models") as address:
        done = convert(*out, "online", HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    done = convert(*out, "offline", HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    done = convert(*out, "hub-is-away", HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    shutil.move(tmp_path / "local", tmp_path / "some-vicuna")
    done = convert("components", "trainer", "--vision", vision, "--language", "some-vicuna", "from-folder")
    assert done.returncode == 0, done.stderr
    tensors = [
        load_file(tmp_path / name / "model.safetensors") for name in ("online", "offline", "hub-is-away", "from-folder")
    ]
    assert all(torch.equal(other[name], value) for other in tensors[1:] for name, value in tensors[0].items())


def test_only_what_is_needed_is_fetched(convert, components, tmp_path):
    vision, language = components
    (vision / "tf_model.h5").write_bytes(b"large")
    (vision / "pytorch_model.bin").write_bytes(b"the same as the safetensors")
    with hub_server(vision, "some/clip", kind="models") as address:
        done = convert(
            "components", "trainer", "--vision", "some/clip", "--language", language, "out", HF_ENDPOINT=address
        )
    assert done.returncode == 0, done.stderr
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert {"config.json", "model.safetensors"} <= fetched
    assert fetched.isdisjoint({"tf_model.h5", "pytorch_model.bin"})


def test_a_repository_that_there_is_not_is_one_sentence(convert, components):
    vision, language = components
    words = ["components", "trainer", "--vision", "some/none", "--language", str(language), "out"]
    with hub_server(vision, "some/clip", kind="models") as address:
        done = convert(*words, HF_ENDPOINT=address)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "some/none: no such folder here, and the hub did not give it" in done.stderr
    done = convert(*words, HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


@pytest.mark.parametrize("name", ["./missing", "/missing/folder", "missing", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(run, tmp_path, name):
    result = run("info", name)
    assert (result.exit_code, "no such folder, and not a hub id" in result.stderr) == (2, True)


def test_weights_are_chosen_once():
    names = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
    assert wanted([*names, "tf_model.h5", "README.md"]) == sorted(names[:3])
    assert wanted(["config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "x.msgpack"]) == [
        "config.json",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]
    assert wanted(["text_model_llava/config.json", "image_model/model.safetensors", "original/a.safetensors"]) == [
        "image_model/model.safetensors",
        "text_model_llava/config.json",
    ]
    assert wanted(["config.json", "mm_projector.bin"]) == ["config.json", "mm_projector.bin"]
