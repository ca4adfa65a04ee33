"""Ways in which a line of a jsonl file can be damaged, each a function of the line and a chance."""

import json
import random
from collections.abc import Callable

#: Values that stand where others are expected.
ODD = (None, True, 0, -1, 1.5, 10**30, "", "\0", "x" * 600, "None", [], [[]], {}, {"from": "human"}, ["a", "b"], "../x")
NUMBERS = (b"1e999", b"-1e-999", b"1" * 5000, b"-0", b"NaN", b"Infinity", b"0x10", b"01", b"1.", b"9" * 400 + b".5")


def flip_bits(line: bytes, chance: random.Random) -> bytes:
    damaged = bytearray(line)
    for _ in range(chance.randint(1, 8)):
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def cut(line: bytes, chance: random.Random) -> bytes:
    start, stop = sorted(chance.sample(range(len(line)), 2))
    return chance.choice((line[:stop], line[start:], line[:start] + line[stop:]))


def insert(line: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(line))
    return line[:place] + chance.randbytes(chance.randint(1, 20)) + line[place:]


def repeat_keys(line: bytes, chance: random.Random) -> bytes:
    record = json.loads(line)
    key = chance.choice(sorted(record))
    value = json.dumps(chance.choice((record[key], *ODD))).encode()
    again = json.dumps(key).encode() + b": " + value
    return b"{" + again + b", " + line[1:] if chance.random() < 0.5 else line[:-1] + b", " + again + b"}"


def huge_numbers(line: bytes, chance: random.Random) -> bytes:
    number = chance.choice(NUMBERS)
    key = chance.choice((b'"id"', b'"extra"', b'"image"'))
    return b"{" + key + b": " + number + b", " + line[1:].replace(b'"id"', b'"other"', 1)


def deep_nesting(line: bytes, chance: random.Random) -> bytes:
    depth = chance.choice((50, 999, 1100, 20_000))
    opened, closed = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    nested = opened * depth + b"1" + closed * depth * chance.randrange(2)
    return chance.choice((nested, b'{"extra": ' + nested + b", " + line[1:], b'{"image": ' + nested + b", " + line[1:]))


def nul_bytes(line: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(line))
    return line[:place] + chance.choice((b"\0", b"\\u0000", b"\0" * 1000)) + line[place:]


def surrogates(line: bytes, chance: random.Random) -> bytes:
    lone = chance.choice((b"\\ud800", b"\\udfff", b"\\udc00\\ud800", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xc0\x80"))
    place = chance.choice([index for index in range(len(line)) if line[index : index + 1] == b'"'])
    return line[: place + 1] + lone + line[place + 1 :]


def byte_order_marks(line: bytes, chance: random.Random) -> bytes:
    place = chance.choice((0, 0, len(line), chance.randrange(len(line))))
    mark = chance.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff"))
    return line[:place] + mark + line[place:]


def line_ends(line: bytes, chance: random.Random) -> bytes:
    end = chance.choice((b"\r", b"\r\r", b"\xe2\x80\xa8", b"\xc2\x85", b"\x0c", b"\x1e", b"\n", b"\r\n", b"\n\n \n"))
    place = chance.choice((0, len(line), chance.randrange(len(line))))
    return line[:place] + end + line[place:]


def other_values(line: bytes, chance: random.Random) -> bytes:
    record = json.loads(line)
    where = chance.choice((record, chance.choice(record["conversations"])))
    where[chance.choice(sorted(where))] = chance.choice(ODD)
    return json.dumps(record).encode()


def missing_keys(line: bytes, chance: random.Random) -> bytes:
    record = json.loads(line)
    where = chance.choice((record, chance.choice(record["conversations"])))
    value = where.pop(chance.choice(sorted(where)))
    if chance.random() < 0.5:
        where[chance.choice(("ID", "images", "messages", "role", "content", ""))] = value
    return json.dumps(record).encode()


def two_in_one(line: bytes, chance: random.Random) -> bytes:
    return line + chance.choice((b"", b" ", b",", b"\0")) + line


def other_languages(line: bytes, chance: random.Random) -> bytes:
    text = line.decode()
    return chance.choice((repr(json.loads(line)).encode(), text.encode("utf-16"), b"[%b]" % line, b'"%b"' % line))


def long_texts(line: bytes, chance: random.Random) -> bytes:
    record = json.loads(line)
    record["conversations"][chance.randrange(2)]["value"] = chance.choice(("a ", "图", "\x01", "<image>")) * 20_000
    return json.dumps(record).encode()


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    function.__name__: function
    for function in (
        flip_bits,
        cut,
        insert,
        repeat_keys,
        huge_numbers,
        deep_nesting,
        nul_bytes,
        surrogates,
        byte_order_marks,
        line_ends,
        other_values,
        missing_keys,
        two_in_one,
        other_languages,
        long_texts,
    )
}

#: Too long to be made by the thousand: more than a line may have, and nearly so much.
VERY_LONG = [
    b'{"id": "long", "conversations": [{"from": "human", "value": "' + b"a" * (17 << 20) + b'"}]}',
    b" " * (17 << 20),
    b'{"id": "blank", "conversations": []' + b" " * ((16 << 20) - 99) + b"}",
    b"[" * (15 << 20),
    b"\0" * (33 << 20),
]
