"""The streaming writer against the safetensors library."""

import errno
import json
import os
import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from converters.errors import ConversionError
from converters.files import DTYPES, LazyTensor, read_file, read_tensors, write_tensors


def lazy(name, tensor):
    return LazyTensor(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


def test_the_library_reads_what_is_streamed(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{name}.{shape}": torch.randint(0, 2, shape, generator=generator).to(dtype)
        for name, dtype in DTYPES.items()
        for shape in ((3, 5), (7,), (), (0, 4))
    }
    write_tensors(tmp_path, [lazy(name, tensor) for name, tensor in tensors.items()], 10**9)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_values_survive_to_the_bit_and_views_are_written_as_they_look(tmp_path):
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]).reshape(2, 2)
    write_tensors(tmp_path, [lazy("odd", odd), lazy("turned", torch.arange(6.0).reshape(2, 3).T)], 10**9)
    found = {tensor.name: tensor.load() for tensor in read_tensors(tmp_path)}
    assert torch.equal(found["odd"].view(torch.int32), odd.view(torch.int32))
    assert found["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_only_one_tensor_is_in_memory_at_a_time(tmp_path):
    alive = weakref.WeakSet()
    most = 0

    def load():
        nonlocal most
        tensor = torch.ones(1000)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    write_tensors(tmp_path, [LazyTensor(f"t{i}", (1000,), torch.float32, load) for i in range(8)], 9000)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    # The next is read before the name of the last is given up.
    assert 1 <= most <= 2


def test_shards_have_an_index_that_names_every_tensor(tmp_path):
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    write_tensors(tmp_path, [lazy(name, tensor) for name, tensor in tensors.items()], 800)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 5 * 400
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
    assert {t.name for t in read_tensors(tmp_path)} == tensors.keys()


def test_a_tensor_larger_than_a_shard_gets_one_of_its_own(tmp_path):
    write_tensors(tmp_path, [lazy("a", torch.ones(10)), lazy("b", torch.ones(1000)), lazy("c", torch.ones(10))], 100)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3


def test_a_tensor_that_is_not_what_was_announced_is_refused(tmp_path):
    announced = LazyTensor("w", (2, 3), torch.float32, lambda: torch.ones(3, 2))
    with pytest.raises(ConversionError, match=r"w: expected \(2, 3\) torch.float32, found \(3, 2\) torch.float32"):
        write_tensors(tmp_path, [announced], 10**9)


def test_pickled_weights_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConversionError, match="a checkpoint of ours is safetensors alone"):
        read_tensors(tmp_path)


def test_a_dtype_that_is_not_known_is_refused(tmp_path):
    save_file({"w": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="w is of dtype F8_E4M3"):
        read_tensors(tmp_path)


def stored(tmp_path, count=5):
    """A file of tensors of different widths, and the same unread."""
    generator = torch.Generator().manual_seed(3)
    dtypes = [torch.float32, torch.bfloat16, torch.uint8, torch.float16, torch.int64]
    tensors = {f"t{n}": (torch.randn(7 + n, 3, generator=generator) * 50).to(dtypes[n % 5]) for n in range(count)}
    save_file(tensors, tmp_path / "source.safetensors")
    return tensors, read_file(tmp_path / "source.safetensors")


@pytest.mark.parametrize("refusal", [None, errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP])
def test_bytes_that_stay_are_copied_or_read_where_the_system_cannot(tmp_path, monkeypatch, refusal):
    tensors, lazy = stored(tmp_path)
    assert all(tensor.place for tensor in lazy)
    called = []

    def copy(*arguments):
        called.append(arguments)
        if refusal:
            raise OSError(refusal, "not between these files")
        # A few bytes at a time, as the system may.
        return real(arguments[0], arguments[1], min(arguments[2], 11), *arguments[3:])

    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", copy)
    doubled = lazy[0].mapped(lambda values: values * 2).renamed("twice")
    assert doubled.place is None
    write_tensors(tmp_path, [*(tensor.renamed(f"new.{tensor.name}") for tensor in lazy), doubled], 10**9)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == {f"new.{name}" for name in tensors} | {"twice"}
    assert all(torch.equal(found[f"new.{name}"], values) for name, values in tensors.items())
    assert torch.equal(found["twice"], tensors["t0"] * 2)
    assert len(called) >= len(tensors)


def test_a_source_that_is_cut_meanwhile_is_named(tmp_path):
    _, lazy = stored(tmp_path)
    with (tmp_path / "source.safetensors").open("r+b") as file:
        file.truncate(lazy[-1].place.begin + 1)
    with pytest.raises(ConversionError, match=r"source\.safetensors became shorter while it was read"):
        write_tensors(tmp_path, [lazy[-1]], 10**9)


def test_a_disk_error_while_copying_is_not_taken_for_another_way(tmp_path, monkeypatch):
    _, lazy = stored(tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path, lazy, 10**9)
