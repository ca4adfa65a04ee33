"""Weight files whose header lies: each is refused in one sentence, and nothing is left behind."""

import json
import resource
import struct

import pytest
from safetensors.torch import load_file

NAME = "language.norm.weight"


def entry(dtype="F32", shape=(32,), offsets=(0, 128)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def file_of(header: object, size: int = 128, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * size


HOSTILE = {
    "empty": b"",
    "seven bytes": b"\x10\0\0\0\0\0\0",
    "header of 2^63 bytes": file_of({}, length=2**63),
    "header of 2^64 - 1 bytes": file_of({}, length=2**64 - 1),
    "header beyond the end": file_of({NAME: entry()}, length=10_000),
    "header of 200 MB": file_of({}, length=200 << 20),
    "no JSON": file_of(b"{" * 64),
    "nested too deeply": file_of(b"[" * 100_000),
    "not UTF-8": file_of(b'{"\xff\xfe": 1}'),
    "a list": file_of([entry()]),
    "no table for a tensor": file_of({NAME: 7}),
    "a name twice": file_of(f'{{"{NAME}": {json.dumps(entry())}, "{NAME}": {json.dumps(entry())}}}'.encode(), 256),
    "end before begin": file_of({NAME: entry(offsets=(128, 0))}),
    "negative begin": file_of({NAME: entry(offsets=(-128, 0))}),
    "end beyond the file": file_of({NAME: entry(offsets=(0, 1 << 40), shape=(1 << 38,))}),
    "two tensors in one place": file_of({NAME: entry(), "language.embed.weight": entry()}),
    "a hole": file_of({NAME: entry(), "b": entry(offsets=(256, 384))}, 384),
    "bytes that belong to nobody": file_of({NAME: entry()}, 4096),
    "shape and bytes differ": file_of({NAME: entry(shape=(31,))}),
    "a shape that overflows": file_of({NAME: entry(shape=(1 << 32, 1 << 32, 4))}),
    "a negative shape": file_of({NAME: entry(shape=(-32,))}),
    "a shape of fractions": file_of({NAME: entry(shape=(0.5,))}),
    "an unknown dtype": file_of({NAME: entry(dtype="F4096")}),
    "a dtype that is a path": file_of({NAME: entry(dtype="../../x")}),
    "cut short": file_of({NAME: entry()}, 64),
    "a pickle": b"cos\nsystem\n(S'touch executed'\ntR." + b"\0" * 64,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("source", ["trainer", "hf"])
def test_a_header_that_lies_is_refused(run, make_checkpoint, tmp_path, content, source):
    folder = make_checkpoint()
    if source == "hf":
        run("trainer", "hf", folder, tmp_path / "hf")
        folder = tmp_path / "hf"
    (folder / "model.safetensors").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = run(source, "trainer" if source == "hf" else "hf", folder, tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (5, 1), result.stderr
    assert str(folder / "model.safetensors") in result.stderr or "tensors" in result.stderr
    assert not (tmp_path / "out").exists()
    # No header is believed about how much memory to take: half a gigabyte would show.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize("place", ["/etc/hostname", "../outside.safetensors", "a\0b"])
def test_an_index_that_leads_out_of_the_folder_is_refused(run, make_checkpoint, tmp_path, place):
    folder = make_checkpoint()
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, place)}))
    result = run("trainer", "hf", folder, tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (5, 1), result.output
    assert not (tmp_path / "out").exists()
