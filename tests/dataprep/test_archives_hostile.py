"""Archives cut short, damaged, or made up by somebody hostile."""

import gzip
import os
import random
import shutil
import stat
import struct
import tarfile
import zlib

import pytest

from dataprep import archives
from dataprep.archives import unpack_archives
from dataprep.errors import CommandError, Exit
from tests.dataprep.archive_files import (
    FILES,
    FULL,
    KINDS,
    chartqa,
    made,
    refusal,
    tar_bytes,
    tar_entry,
    tree,
    zip_bytes,
    zip_entry,
)

pytestmark = pytest.mark.usefixtures("no_sync")

HOSTILE = {
    "/etc/x.png": "is absolute",
    "../x.png": "leaves the folder",
    "a/../../x.png": "leaves the folder",
    "..": "leaves the folder",
    "../": "leaves the folder",
    "C:/x.png": "begins with a drive",
    "a\\..\\x.png": "holds a backslash",
    "a\0b.png": "holds a NUL",
    "n" * 256: "is too long",
    "n/" * 1600 + "x": "is too long",
}


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("members", [("*",), ("*.json",)])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_ends_the_command_wanted_or_not(tmp_path, kind, members, name):
    archive = tmp_path / "in" / f"a.{kind}"
    archive.parent.mkdir()
    entry = tar_entry("x", pax_headers={"path": name})
    archive.write_bytes(zip_bytes(FILES, zip_entry(name)) if kind == "zip" else tar_bytes(FILES, entry))
    text = refusal(archive, tmp_path / "in" / "out", members)
    assert f" {HOSTILE[name]}; the archive is not to be trusted" in text
    assert repr(name[:200].rstrip("/"))[:-1] in text
    assert list(tree(tmp_path)) == [f"in/a.{kind}"]


def test_a_zip_member_without_a_name_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_bytes({}, zip_entry("")))
    assert "'' is empty; the archive" in refusal(tmp_path / "a.zip", tmp_path / "out")


def test_links_and_devices_are_never_made_but_counted(tmp_path):
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    entries = [tar_entry(f"e{index}", kind, linkname="/etc/passwd") for index, kind in enumerate(kinds)]
    folder_link = tar_entry("train", tarfile.SYMTYPE, linkname=str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.tar").write_bytes(tar_bytes(FILES, folder_link, *entries))
    links = [zip_entry(f"e{kind}", kind | 0o777) for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR)]
    (tmp_path / "a.zip").write_bytes(zip_bytes(FILES, *links, zip_entry("folder", stat.S_IFDIR)))
    for name, count in (("a.tar", 6), ("a.zip", 3)):
        said = []
        into = unpack_archives(tmp_path / name, tmp_path / f"out-{name}", say=said.append)
        assert said[-1] == f"{name}: 5 files unpacked, {count} links or devices not made"
        assert tree(into) == FILES
        assert not any(path.is_symlink() for path in into.rglob("*"))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_that_stands_there_twice_is_refused(tmp_path, kind):
    if kind == "zip":
        content = zip_bytes({}, zip_entry("a/b.png"), zip_entry("a/c.png"))
        content = content.replace(b"a/c.png", b"a/b.png")
    else:
        content = tar_bytes({}, tar_entry("a/b.png"), tar_entry("./a/b.png"))
    (tmp_path / f"a.{kind}").write_bytes(content)
    assert "'a/b.png' stands in it twice" in refusal(tmp_path / f"a.{kind}", tmp_path / "out")
    made(tmp_path, kind, {"a/b.png": b"1", "a/B.png": b"2"}, "case")
    assert len(tree(unpack_archives(tmp_path / f"case.{kind}", tmp_path / "case"))) == 2


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_file_in_the_place_of_a_folder_is_said_to_be(tmp_path, kind):
    archive = made(tmp_path, kind, {"a": b"1", "a/b.png": b"2"})
    assert "'a/b.png' cannot be written to" in refusal(archive, tmp_path / "out")
    archive = made(tmp_path, kind, {"b/c": b"1", "b": b"2"})
    assert "'b' cannot be written to" in refusal(archive, tmp_path / "other")


def patched(content: bytes, name: bytes, field: int, value: bytes) -> bytes:
    """A zip with one field of a member's entry in the index written over."""
    position = content.rindex(name) - 46
    assert content[position : position + 4] == b"PK\1\2"
    return content[: position + field] + value + content[position + field + len(value) :]


def test_an_encrypted_or_unknown_packing_is_named_if_it_is_wanted(tmp_path):
    archive = tmp_path / "a.zip"
    plain = zip_bytes(FILES)
    archive.write_bytes(patched(plain, b"val/png/2.png", 8, b"\1\0"))
    text = refusal(archive, tmp_path / "out", code=Exit.USAGE)
    assert "'val/png/2.png' is encrypted; unpack it with another program" in text
    archive.write_bytes(patched(plain, b"val/png/2.png", 10, b"\x09\0"))
    assert "is packed by method 9, which is not read here" in refusal(archive, tmp_path / "out", code=Exit.USAGE)
    assert tree(unpack_archives(archive, tmp_path / "out", ("*.json",))) == {"train/train_human.json": b"[]"}


def test_a_sparse_file_in_a_tar_is_named(tmp_path):
    sparse = {"GNU.sparse.map": "0,3", "GNU.sparse.size": "9", "GNU.sparse.numblocks": "1"}
    (tmp_path / "a.tar").write_bytes(tar_bytes({}, tar_entry("a.bin", size=3, pax_headers=sparse)))
    assert "'a.bin' is a file with holes" in refusal(tmp_path / "a.tar", tmp_path / "out", code=Exit.USAGE)


@pytest.mark.parametrize("size", [0, 100, 999, 1001, 5000])
@pytest.mark.parametrize("checked", [0, 1])
def test_a_zip_member_of_another_size_than_the_index_says_is_damaged(tmp_path, size, checked):
    content = b"a" * 1000
    archive = tmp_path / "a.zip"
    liar = patched(zip_bytes({"a.png": content}), b"a.png", 24, struct.pack("<I", size))
    archive.write_bytes(patched(liar, b"a.png", 16, struct.pack("<I", zlib.crc32(content[: size + checked]))))
    text = refusal(archive, tmp_path / "out")
    assert "damaged (" in text and "'a.png'" in text and text.endswith("); download it again")
    assert tree(tmp_path / "out") == {}


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_bomb_is_not_unpacked(tmp_path, kind):
    archive = tmp_path / f"a.{kind}"
    blank = bytes(80 << 20)
    archive.write_bytes(zip_bytes({"a.png": blank}) if kind == "zip" else gzip.compress(tar_bytes({"a.png": blank})))
    text = refusal(archive, tmp_path / "out")
    assert " unpacks " in text and text.endswith("the archive is not to be trusted")
    assert tree(tmp_path / "out") == {}


def test_zip_members_that_share_their_bytes_are_refused(tmp_path):
    shared = patched(zip_bytes(FILES), b"val/png/2.png", 42, bytes(4))
    (tmp_path / "a.zip").write_bytes(shared)
    assert "share bytes; the archive is not" in refusal(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>", bytes(9), b"PK\3\4", b"\x1f\x8b", b"{" * 2000])
def test_what_is_no_archive_is_damaged(tmp_path, kind, content):
    archive = tmp_path / f"a.{kind}"
    archive.write_bytes(content)
    text = refusal(archive, tmp_path / "out")
    assert f"{archive}: damaged (" in text and text.endswith("); download it again")


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
def test_an_archive_cut_anywhere_never_looks_complete(tmp_path, kind):
    whole = made(tmp_path, kind, FILES).read_bytes()
    step = 1 if FULL else 37
    cuts = {*range(0, len(whole), step), *range(0, len(whole), 512), *range(len(whole) - 30, len(whole))}
    archive = tmp_path / f"cut.{kind}"
    last_end = len(tar_bytes(FILES).rstrip(b"\0")) if kind == "tar" else len(whole)
    refused = 0
    for number, cut in enumerate(sorted(cuts)):
        archive.write_bytes(whole[:cut])
        into = tmp_path / str(number)
        try:
            assert tree(unpack_archives(archive, into)) == FILES
            # The end mark is two blocks of zeros, and more for padding; one is enough to know the end by.
            assert kind == "tar" and cut >= last_end + 512
        except CommandError as error:
            assert error.code == Exit.INTEGRITY and "download it again" in str(error)
            assert tree(into, hidden=True).items() <= FILES.items()
            refused += 1
        shutil.rmtree(into)
    assert refused > 50


def test_a_tar_cut_between_two_members_is_noticed(tmp_path):
    whole = tar_bytes({"a.png": bytes(512), "b.png": bytes(512)})
    (tmp_path / "a.tar").write_bytes(whole[: 2 * 512])
    text = refusal(tmp_path / "a.tar", tmp_path / "out")
    assert "damaged (it ends without an end mark); download it again" in text
    with tarfile.open(tmp_path / "a.tar") as lenient:
        assert lenient.getnames() == ["a.png"]


def test_a_broken_header_in_a_tar_is_not_its_end(tmp_path):
    whole = bytearray(tar_bytes({"a.png": bytes(512), "b.png": bytes(512)}))
    whole[2 * 512] ^= 1
    (tmp_path / "a.tar").write_bytes(whole)
    assert "damaged (bad checksum)" in refusal(tmp_path / "a.tar", tmp_path / "out")


@pytest.mark.parametrize("kind", ["tar", "tgz"])
def test_what_follows_the_end_mark_is_not_dropped(tmp_path, kind):
    parts = [tar_bytes({"a.png": b"1"}), tar_bytes({"b.png": b"2"})]
    joined = b"".join(gzip.compress(part) if kind == "tgz" else part for part in parts)
    (tmp_path / f"a.{kind}").write_bytes(joined)
    assert "something follows its end mark" in refusal(tmp_path / f"a.{kind}", tmp_path / "out")


def test_gzip_in_several_pieces_is_read_on(tmp_path):
    whole = tar_bytes(FILES)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(whole[:3000]) + gzip.compress(whole[3000:]))
    assert tree(unpack_archives(tmp_path / "a.tgz", tmp_path / "out")) == FILES


def with_checksum(header: bytes) -> bytes:
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


@pytest.mark.parametrize("size", [-1, -512, -513, 1 << 40, 1 << 62])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.SYMTYPE])
def test_a_header_with_a_senseless_size_neither_hangs_nor_fills_the_memory(tmp_path, size, kind):
    header = tar_entry("a.png", kind).tobuf(tarfile.GNU_FORMAT)
    field = (
        struct.pack(">B3xq", 0x80 if size > 0 else 0xFF, size) if size > 0 else b"\xff" * 4 + struct.pack(">q", size)
    )
    content = with_checksum(header[:124] + field + header[136:]) + tar_bytes(FILES)
    (tmp_path / "a.tgz").write_bytes(gzip.compress(content))
    into = tmp_path / "out"
    if (kind == tarfile.SYMTYPE and size > 0) or (kind == tarfile.XHDTYPE and size == -1):
        # A link has no content, whatever it says; less than one byte of attributes is none.
        assert tree(unpack_archives(tmp_path / "a.tgz", into)) == FILES
    else:
        text = refusal(tmp_path / "a.tgz", into)
        assert "damaged (" in text or "'' is empty" in text
        assert tree(into) == {}


def test_headers_stacked_on_headers_are_damage(tmp_path):
    header = tar_entry("x", tarfile.GNUTYPE_LONGNAME, size=512).tobuf(tarfile.GNU_FORMAT) + b"n".ljust(512, b"\0")
    (tmp_path / "a.tar").write_bytes(header * 3000 + tar_bytes(FILES))
    assert "damaged (" in refusal(tmp_path / "a.tar", tmp_path / "out")


def mutant(content: bytes, kind: str, chance: random.Random) -> bytes:
    """An archive with a few bytes changed; the headers of a tar get a checksum that fits, half the time."""
    changed = bytearray(content)
    spots = range(len(content)) if chance.random() < 0.5 else [i for i, byte in enumerate(content) if byte][-600:]
    for _ in range(chance.randint(1, 4)):
        changed[chance.choice(spots)] = chance.choice([0, 1, 0x2E, 0x2F, 0x5C, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    if kind == "tar" and chance.random() < 0.8:
        for start in range(0, len(content), 512):
            if content[start + 257 : start + 262] == b"ustar":
                changed[start : start + 512] = with_checksum(bytes(changed[start : start + 512]))
    return bytes(changed)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_mutant_escapes_the_folder_or_the_sentence(tmp_path, kind):
    long_name = {"train/" + "n" * 120 + ".png": b"long"}
    content = zip_bytes(FILES) if kind == "zip" else tar_bytes(FILES | long_name | {"é.png": b"pax"})
    chance, outcomes = random.Random(3), {"whole": 0, "refused": 0}
    archive, base = tmp_path / f"a.{kind}", tmp_path / "base"
    for _ in range(10_000 if FULL else 150):
        archive.write_bytes(mutant(content, kind, chance))
        try:
            unpack_archives(archive, base / "out")
            outcomes["whole"] += 1
        except CommandError as error:
            assert error.code in (Exit.INTEGRITY, Exit.NO_SPACE, Exit.USAGE) and str(archive) in str(error)
            outcomes["refused"] += 1
            assert not (base / "out" / f".a.{kind}.unpacked.json").exists()
        assert [path.name for path in base.iterdir()] == ["out"]
        assert not any(path.is_symlink() or path.name == archives.TEMPORARY for path in (base / "out").rglob("*"))
        shutil.rmtree(base)
    assert sorted(os.listdir(tmp_path)) == [f"a.{kind}"]
    assert min(outcomes.values()) > 0


def test_a_damaged_archive_ends_the_command_with_5(tmp_path, command):
    archive = chartqa(tmp_path / "downloads", "tgz")
    archive.write_bytes(archive.read_bytes()[:-9])
    done = command("preprocess", "--dataset", "chartqa", "--input", archive)
    assert done.returncode == Exit.INTEGRITY
    assert done.stderr.endswith("ended before the end-of-stream marker was reached); download it again\n")


def test_a_name_that_is_not_utf8_is_refused_where_it_is_wanted(tmp_path):
    archive = made(tmp_path, "tar", {"\udcff.png": b"4", "a.json": b"[]"})
    assert "udcff.png' has a name that is not UTF-8" in refusal(archive, tmp_path / "out")
    assert tree(unpack_archives(archive, tmp_path / "some", ("*.json",))) == {"a.json": b"[]"}
