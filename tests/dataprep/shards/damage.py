"""Damage as disks, networks and people do it: each kind is a function of a file's bytes and a source of chance."""

from collections.abc import Callable

import numpy as np

Random = np.random.Generator


def overwrite(content: bytearray, random: Random) -> bytes:
    """A few bytes are others."""
    for _ in range(int(random.integers(1, 9))):
        content[random.integers(len(content))] = random.integers(256)
    return bytes(content)


def overwrite_the_head(content: bytearray, random: Random) -> bytes:
    """The same, where HDF5's structures stand: the first two kilobytes."""
    for _ in range(int(random.integers(1, 9))):
        content[random.integers(min(2048, len(content)))] = random.integers(256)
    return bytes(content)


def flip(content: bytearray, random: Random) -> bytes:
    content[random.integers(len(content))] ^= 1 << int(random.integers(8))
    return bytes(content)


def cut(content: bytearray, random: Random) -> bytes:
    return bytes(content[: random.integers(len(content))])


def append(content: bytearray, random: Random) -> bytes:
    return bytes(content) + random.bytes(int(random.integers(1, 2000)))


def insert(content: bytearray, random: Random) -> bytes:
    place = int(random.integers(len(content)))
    return bytes(content[:place]) + random.bytes(int(random.integers(1, 64))) + bytes(content[place:])


def zero_a_block(content: bytearray, random: Random) -> bytes:
    """A sector that was never written."""
    size = min(512, len(content) // 4)
    start = int(random.integers(len(content) // size)) * size
    content[start : start + size] = bytes(size)
    return bytes(content)


def swap_blocks(content: bytearray, random: Random) -> bytes:
    """Two sectors in each other's place."""
    size = min(512, len(content) // 4)
    first, second = sorted(int(n) * size for n in random.choice(len(content) // size, 2, replace=False))
    part = content[first : first + size]
    content[first : first + size] = content[second : second + size]
    content[second : second + size] = part
    return bytes(content)


def repeat_a_block(content: bytearray, random: Random) -> bytes:
    """A sector written over another."""
    size = min(512, len(content) // 4)
    first, second = (int(n) * size for n in random.choice(len(content) // size, 2, replace=False))
    content[second : second + size] = content[first : first + size]
    return bytes(content)


def huge_numbers(content: bytearray, random: Random) -> bytes:
    """A size or an address becomes as large as can be."""
    start = int(random.integers(min(4096, len(content) - 8)))
    content[start : start + 8] = b"\xff" * int(random.integers(1, 8)) + b"\x7f"
    return bytes(content)


def other_type(content: bytearray, random: Random) -> bytes:
    """Another kind of file that got the name."""
    start = (b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"%PDF-1.7", b"\x1f\x8b\x08", b"", b"{}\n", b"\x89HDF\r\n\x1a\n")
    return start[random.integers(len(start))] + random.bytes(int(random.integers(0, 5000)))


DAMAGES: tuple[Callable[[bytearray, Random], bytes], ...] = (
    overwrite,
    overwrite_the_head,
    flip,
    cut,
    append,
    insert,
    zero_a_block,
    swap_blocks,
    repeat_a_block,
    huge_numbers,
    other_type,
)


def damaged(content: bytes, number: int) -> tuple[str, bytes]:
    """Return the kind of damage number `number`, and the damaged file; it always differs from the whole one."""
    random = np.random.default_rng(number)
    kind = DAMAGES[number % len(DAMAGES)]
    while True:
        found = kind(bytearray(content), random)
        if found != content:
            return kind.__name__, found
