"""What is known of a picture: found once for each content, and never wrong."""

import os
import shutil

import pytest

from dataprep import verdicts as module
from dataprep.images import ImageFault, check_image
from dataprep.verdicts import ImageVerdicts
from tests.dataprep.test_images import noise


@pytest.fixture
def decoded(monkeypatch):
    """Return the names of the files that were decoded, in order."""
    names = []
    monkeypatch.setattr(module, "check_image", lambda path, check: names.append(path.name) or check_image(path, check))
    return names


def fault_of(verdicts, key):
    with pytest.raises(ImageFault) as caught:
        verdicts.require(key)
    return caught.value.reason, str(caught.value)


def test_a_picture_is_decoded_once_for_all_workers_and_runs(tmp_path, decoded):
    noise(20, 20).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"x")
    for _ in range(2):
        verdicts = ImageVerdicts(tmp_path, "decode", tmp_path / "known.sqlite")
        for _ in range(3):
            verdicts.require("a.png")
            assert fault_of(verdicts, "b.png")[0] == "unreadable_image"
        verdicts.flush()
    assert decoded == ["a.png", "b.png"]


def test_a_changed_file_is_looked_at_again(tmp_path, decoded):
    noise(20, 20).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"x")
    for key, good in (("a.png", True), ("b.png", False)):
        first = ImageVerdicts(tmp_path, "decode", tmp_path / "known.sqlite")
        assert first.good(key) is good
        first.flush()
    noise(30, 30).save(tmp_path / "b.png")
    assert ImageVerdicts(tmp_path, "decode", tmp_path / "known.sqlite").good("b.png")
    status = (tmp_path / "a.png").stat()
    (tmp_path / "a.png").write_bytes(b"x" * status.st_size)
    os.utime(tmp_path / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not ImageVerdicts(tmp_path, "decode", tmp_path / "known.sqlite").good("a.png")
    assert decoded == ["a.png", "b.png", "b.png", "a.png"]


@pytest.mark.parametrize("store", [None, "known.sqlite"])
def test_two_files_of_one_content_are_decoded_once_and_each_is_named(tmp_path, decoded, store):
    noise(20, 20).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    for name in ("a.png", "bad.png"):
        shutil.copy(tmp_path / name, tmp_path / f"copy_of_{name}")
    verdicts = ImageVerdicts(tmp_path, "decode", store and tmp_path / store)
    assert verdicts.good("a.png") and verdicts.good("copy_of_a.png")
    faults = [fault_of(verdicts, key) for key in ("bad.png", "copy_of_bad.png")]
    assert decoded == ["a.png", "bad.png"]
    assert faults[0][1].startswith(f"{tmp_path}/bad.png: OSError")
    assert faults[0][1].replace("bad.png", "copy_of_bad.png") == faults[1][1]


def test_a_file_that_was_only_touched_or_moved_is_not_decoded_again(tmp_path, decoded):
    noise(20, 20).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"x")
    first = ImageVerdicts(tmp_path, "decode", tmp_path / "known.sqlite")
    assert first.good("a.png") and not first.good("b.png")
    first.flush()
    for name in ("a.png", "b.png"):
        os.utime(tmp_path / name, (1, 1))
        (tmp_path / name).rename(tmp_path / f"moved_{name}")
    second = ImageVerdicts(tmp_path, "decode", tmp_path / "known.sqlite")
    assert second.good("moved_a.png") and not second.good("moved_b.png")
    assert decoded == ["a.png", "b.png"]


@pytest.mark.parametrize("check", ["none", "exists", "header", "decode"])
def test_each_check_finds_what_it_looks_for(tmp_path, check):
    noise(40, 40).save(tmp_path / "a.png")
    (tmp_path / "text.png").write_bytes(b"text")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:-40])
    verdicts = ImageVerdicts(tmp_path, check, tmp_path / "known.sqlite")
    found = [key for key in ("a.png", "cut.png", "text.png", "no.png", "../a.png") if verdicts.good(key)]
    assert (
        found == ["a.png", "cut.png", "text.png", "no.png"][: {"none": 4, "exists": 3, "header": 2, "decode": 1}[check]]
    )


def test_what_is_known_is_kept_within_bounds(tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(module, "MAX_KNOWN", 3)
    monkeypatch.setattr(module, "BATCH", 2)
    for index in range(8):
        noise(20 + index, 20).save(tmp_path / f"{index}.png")
    verdicts = ImageVerdicts(tmp_path, "decode", tmp_path / "known.sqlite")
    for _ in range(2):
        assert all(verdicts.good(f"{index}.png") for index in range(8))
        assert len(verdicts._known) <= 3
    assert len(decoded) == 8


def test_a_damaged_store_of_verdicts_is_done_without(tmp_path):
    noise(20, 20).save(tmp_path / "a.png")
    (tmp_path / "known.sqlite").write_bytes(b"no database" * 100)
    verdicts = ImageVerdicts(tmp_path, "decode", tmp_path / "known.sqlite")
    verdicts.require("a.png")
    verdicts.flush()
    assert verdicts.good("a.png")
