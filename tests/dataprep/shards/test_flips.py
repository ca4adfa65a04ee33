"""Every flipped bit of a shard is found: by `verify`, and by the reader before it returns a row.

`make test` flips a sample, `make test-long` (LLAVA_PREP_PROOFS=full) 1,000 bits: each tenth of them anywhere, the
others in turn in every kind of place that the file has, the addresses of chunks included.
"""

import os

import h5py
import numpy as np
import pytest

from dataprep.shards import ShardError, ShardReader
from dataprep.verification import verify
from tests.dataprep.shards import made

NUM_FLIPS = 1000 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 60


def places(path) -> dict[str, list[int]]:
    """Where each kind of thing stands in the file: the positions of its bytes."""
    content = path.read_bytes()
    with h5py.File(path) as file:
        chunks: list = []
        file["data"].id.chunk_iter(chunks.append)
        found = {
            "superblock": list(range(96)),
            "chunk data": [byte for c in chunks for byte in range(c.byte_offset, c.byte_offset + c.size)],
            "chunk addresses": [byte for c in chunks for byte in words(content, c.byte_offset, 8)],
            "chunk sizes": [byte for c in chunks for byte in words(content, c.size, 4)],
            "attributes": text(content, b"vicuna_v1") + text(content, b"f" * 64) + text(content, b"image_start_idx"),
            "names": text(content, b"num_loss_tokens") + text(content, b"img_path") + text(content, b"source"),
        }
        columns = ("img_path", "length", "num_loss_tokens", "has_image", "source/file", "source/line", "source/id")
        for name in columns:
            start = file[name].id.get_offset()
            found[name] = list(range(start, start + file[name].id.get_storage_size()))
    for mark in (b"TREE", b"HEAP", b"SNOD", b"OHDR"):
        if mark in content:
            found[mark.decode()] = [byte for start in text(content, mark)[::4] for byte in range(start, start + 24)]
    inside = {byte for positions in found.values() for byte in positions}
    found["headers and the rest"] = sorted(set(range(len(content))) - inside)
    return found


def words(content: bytes, value: int, size: int) -> list[int]:
    return text(content, value.to_bytes(size, "little"))


def text(content: bytes, wanted: bytes) -> list[int]:
    """Every position of every occurrence."""
    positions, start = [], content.find(wanted)
    while start >= 0:
        positions += range(start, start + len(wanted))
        start = content.find(wanted, start + 1)
    return positions


@pytest.fixture
def shard(tmp_path):
    made.write_folder(tmp_path / "shards", made.rows(5))
    return tmp_path / "shards/shard-0.h5"


def test_the_places_are_those_of_a_shard(shard):
    found = places(shard)
    assert {"chunk addresses", "chunk data", "TREE", "HEAP", "SNOD"} <= set(found)
    assert all(found.values())
    assert len(found["chunk addresses"]) == 5 * 8  # each of the five rows is pointed to from one place


def test_every_flipped_bit_is_found_by_verify_and_before_a_row_is_returned(shard):
    found, content, random = places(shard), shard.read_bytes(), np.random.default_rng(1)
    kinds = sorted(found)
    assert verify(shard.parent).faults == []
    for number in range(NUM_FLIPS):
        kind = kinds[number % len(kinds)]
        anywhere = number % 10 == 0
        byte = int(random.integers(len(content)) if anywhere else random.choice(found[kind]))
        bit = int(random.integers(8))
        damaged = bytearray(content)
        damaged[byte] ^= 1 << bit
        shard.write_bytes(damaged)
        place = f"bit {bit} of byte {byte} ({kind})"
        (fault,) = verify(shard.parent).faults
        assert f"{shard}: damaged: sha256" in fault, place
        for use in (lambda reader: reader[int(random.integers(5))], lambda reader: reader.lengths):
            with pytest.raises(ShardError, match="damaged: sha256"), ShardReader(shard.parent) as reader:
                use(reader)
                pytest.fail(f"{place} was not seen")
    shard.write_bytes(content)
    assert verify(shard.parent).faults == []


@pytest.mark.parametrize("forget", [True, False])
def test_a_bit_flipped_after_a_node_has_checked_a_shard_is_found_when_it_is_opened_again(shard, monkeypatch, forget):
    monkeypatch.setattr("dataprep.shards.once.SETTLED_NS", -(1 << 62))  # or the test would wait two seconds
    os.utime(shard, (1, 1))
    reader = ShardReader(shard.parent)
    assert made.same(reader[1], made.rows(2)[1])
    reader.close()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    with pytest.raises(ShardError, match="damaged: sha256"):
        (ShardReader(shard.parent) if forget else reader)[1]


def test_a_bit_of_an_open_shards_row_is_found_by_the_rows_own_checksum(shard):
    """After its first use a shard's bytes are the file system's business; a row has deflate's Adler-32 still."""
    reader = ShardReader(shard.parent)
    reader[0]
    with h5py.File(shard, "r", locking=False) as file:
        chunk = file["data"].id.get_chunk_info(3)
    with open(shard, "r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(ShardError, match=r"shard-0\.h5: row 3: damaged"):
        reader[3]
