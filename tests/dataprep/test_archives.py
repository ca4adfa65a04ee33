"""Archives as people download them: what is taken out of them, where it goes, and what is said."""

import os
import shutil
import stat
import tarfile
import zipfile

import pytest

from dataprep.archives import expect_own, unpack_archives
from dataprep.errors import CommandError
from tests.dataprep.archive_files import (
    FILES,
    KINDS,
    NOISE,
    OTHERS,
    PATTERNS,
    chartqa,
    made,
    tar_bytes,
    tar_entry,
    tree,
    zip_bytes,
)
from tests.dataprep.datasets.test_cases import CASES

pytestmark = pytest.mark.usefixtures("no_sync")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wanted_is_taken_out_and_counted(tmp_path, kind):
    archive, said = made(tmp_path, kind, {"train/": b"", **FILES, **OTHERS}), []
    into = tmp_path / "raw" / "chartqa"
    assert unpack_archives(archive, into, PATTERNS, said.append) == into
    assert tree(into) == FILES
    count = ": 5 files" if kind == "zip" else ""
    assert said == [f"unpacking {archive}{count}", f"data.{kind}: 5 files unpacked, 1 passed over"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_archives_of_a_folder_are_unpacked_into_it_and_only_once(tmp_path, kind):
    made(tmp_path, kind, {"b/2.png": b"2"}, "b")
    made(tmp_path, "zip", {"a/1.png": b"1"}, "A")
    (tmp_path / "notes.txt").write_text("n")
    (tmp_path / "._b.zip").write_bytes(b"a trace of macOS")
    (tmp_path / "folder.zip").mkdir()
    said = []
    assert unpack_archives(tmp_path, tmp_path / "other", say=said.append) == tmp_path
    assert [line for line in said if "unpacked" in line] == ["A.zip: 1 files unpacked", f"b.{kind}: 1 files unpacked"]
    assert (tmp_path / "a/1.png").read_bytes() + (tmp_path / "b/2.png").read_bytes() == b"12"
    assert not (tmp_path / "other").exists()
    (tmp_path / "a/1.png").unlink()
    assert unpack_archives(tmp_path, tmp_path / "other", say=said.append) == tmp_path
    assert len(said) == 4 and not (tmp_path / "a/1.png").exists()


def test_other_archives_and_other_patterns_are_looked_at_again(tmp_path):
    archive, said, into = made(tmp_path, "zip", FILES), [], tmp_path / "out"
    unpack_archives(archive, into, ("*.json",), said.append)
    unpack_archives(archive, into, PATTERNS, said.append)
    assert said[-1] == "data.zip: 4 files unpacked, 1 already there"
    made(tmp_path, "zip", FILES | {"train/png/0.png": bytes(3000)})
    unpack_archives(archive, into, PATTERNS, said.append)
    assert said[-1] == "data.zip: 0 files unpacked, 4 already there, 1 replaced, since their content was another"
    assert tree(into) == FILES | {"train/png/0.png": bytes(3000)}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_long_file_that_differs_late_is_replaced_as_a_whole(tmp_path, kind):
    content = NOISE.randbytes(2_500_000)
    archive, into, said = made(tmp_path, kind, {"a.bin": content}), tmp_path / "out", []
    into.mkdir()
    (into / "a.bin").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    unpack_archives(archive, into, say=said.append)
    assert tree(into) == {"a.bin": content}
    assert said[-1].endswith(": 0 files unpacked, 1 replaced, since their content was another")


def test_other_files_are_left_alone(tmp_path):
    for name in ("a.json", "images.tar.bz2", "images.zip.part"):
        (tmp_path / name).write_bytes(b"x")
        assert unpack_archives(tmp_path / name, tmp_path / "out") == tmp_path / name
    assert not (tmp_path / "out").exists()


def test_numbered_folders_get_no_folder_around_them_and_nested_archives_stay_packed(tmp_path):
    files = {"00453/004539375.jpg": b"j", "inner.zip": zip_bytes({"x.jpg": b"x"})}
    into = unpack_archives(made(tmp_path, "zip", files, "images"), tmp_path / "out")
    assert tree(into) == files


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_suffix_is_wanted_in_capitals_too_a_folder_is_not(tmp_path, kind):
    files = {
        "Images/A.PNG": b"1",
        "images/b.Png": b"2",
        "images/c.png": b"3",
        "images/d/e.png": b"4",
        "images/png": b"5",
    }
    into = unpack_archives(made(tmp_path, kind, files), tmp_path / "out", ("images/*.png",))
    assert sorted(tree(into)) == ["images/b.Png", "images/c.png"]


def test_harmless_spellings_of_a_name_are_put_right(tmp_path):
    into = unpack_archives(made(tmp_path, "tar", {"./": b"", "./a/": b"", "./a//b.png": b"1"}), tmp_path / "out")
    assert tree(into) == {"a/b.png": b"1"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_in_any_script_are_kept(tmp_path, kind):
    names = {"图/é ü.png": b"1", "n" * 251 + ".png": b"2", "new\nline.png": b"3"}
    assert tree(unpack_archives(made(tmp_path, kind, names), tmp_path / "out")) == names


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_the_tree_depends_on_the_content_alone(tmp_path, kind):
    first = unpack_archives(made(tmp_path, kind, FILES), tmp_path / "one")
    entries = [tar_entry(name, size=0, mode=0o4777, uid=9, mtime=5) for name in ("train/png/empty.png",)]
    others = {name: FILES[name] for name in reversed(FILES) if name != "train/png/empty.png"}
    (tmp_path / "two.tar").write_bytes(tar_bytes(others, *entries, format=tarfile.GNU_FORMAT))
    second = unpack_archives(tmp_path / "two.tar", tmp_path / "two")
    assert tree(first) == tree(second) == FILES
    umask = os.umask(0)
    os.umask(umask)
    for path in second.rglob("*.png"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
        assert path.stat().st_mtime > 1e9 and path.stat().st_uid == os.geteuid()


def test_the_users_own_links_are_followed(tmp_path):
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train").symlink_to(tmp_path / "big-disk")
    unpack_archives(made(tmp_path, "zip", FILES), tmp_path / "out")
    assert (tmp_path / "big-disk" / "train_human.json").read_bytes() == b"[]"
    assert tree(tmp_path / "out", hidden=True).keys() > {"val/png/2.png"}


def test_an_empty_archive_is_whole(tmp_path):
    for kind in ("zip", "tar", "tgz"):
        said = []
        unpack_archives(made(tmp_path, kind, {}), tmp_path / "out", say=said.append)
        assert said[-1] == f"data.{kind}: 0 files unpacked"


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_a_dataset_in_an_archive_gives_the_jsonl_of_the_folder(tmp_path, command, kind):
    words = ["preprocess", "--dataset", "chartqa", "--max-refused", 1]
    raw, jsonl = tmp_path / "data/raw/chartqa", tmp_path / "data/jsonl/phase2/chartqa.jsonl"
    shutil.copytree(CASES / "chartqa" / "raw", raw)
    assert command(*words).returncode == 0
    expected = jsonl.read_bytes()
    assert expected.count(b"\n") == 3
    shutil.rmtree(raw)
    jsonl.unlink()

    archive = chartqa(tmp_path / "downloads", kind)
    done = command(*words, "--input", archive)
    assert done.returncode == 0, done.stderr
    assert f"ChartQA.{kind}: 3 files unpacked, 1 passed over\n" in done.stderr
    assert jsonl.read_bytes() == expected
    shutil.rmtree(raw)
    jsonl.unlink()

    chartqa(raw, kind)
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert jsonl.read_bytes() == expected
    assert "unpack" not in command(*words).stderr
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(raw, elsewhere)
    assert command(*words, "--input", elsewhere, "--output", "else.jsonl").returncode == 0
    moved = (tmp_path / "else.jsonl").read_bytes()
    assert moved.replace(b'"image":"elsewhere/', b'"image":"raw/chartqa/') == expected


def test_a_changed_archive_of_equal_size_is_read_again(tmp_path):
    archive, out = made(tmp_path, "tar", {"a.json": b"one"}), tmp_path / "out"
    unpack_archives(archive, out)
    content = archive.read_bytes().replace(b"one", b"two")
    archive.write_bytes(content)
    os.utime(archive, ns=(1, 1))
    unpack_archives(archive, out)
    assert (out / "a.json").read_text() == "two"


def test_two_archives_do_not_overwrite_each_others_files(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    one, two = raw / "one.zip", raw / "two.zip"
    for path in (one, two):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.json", path.stem)
    unpack_archives(one, out)
    with pytest.raises(CommandError, match=r"two\.zip: 'a\.json' is there with other content, maybe from one\.zip"):
        unpack_archives(two, out)
    assert (out / "a.json").read_text() == "one"
    shutil.copy(one, two)
    assert tree(unpack_archives(two, out)) == {"a.json": b"one"}


def test_an_archive_is_not_mixed_with_data_of_others(tmp_path):
    archive, own = made(tmp_path, "zip", FILES), tmp_path / "own"
    expect_own(archive, own)
    own.mkdir()
    (own / ".hidden").write_text("x")
    expect_own(archive, own)
    (own / "mine.json").write_text("[]")
    with pytest.raises(CommandError, match=r"own: holds data that is not from data\.zip \(mine\.json, "):
        expect_own(archive, own)
    expect_own(own / "mine.json", own)
    expect_own(archive, unpack_archives(archive, tmp_path / "out"))


def test_archives_in_the_folders_of_a_folder_are_unpacked_beside_themselves(tmp_path):
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True)
    shutil.copy(made(tmp_path, "zip", {"train/1/image.png": b"x"}), raw / "images")
    assert unpack_archives(raw, tmp_path / "default") == raw
    assert (raw / "images" / "train" / "1" / "image.png").read_bytes() == b"x"
