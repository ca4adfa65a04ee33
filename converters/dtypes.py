"""Another dtype than the source's, tensor by tensor as they stream."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from converters.errors import ConversionError
from converters.files import LazyTensor
from converters.hub import Hub

#: What `--dtype` may ask for.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def in_dtype(hub: Hub, name: str) -> Hub:
    """Return a model with all floating-point tensors in a dtype; a note says which were rounded.

    Loading a value that the dtype cannot hold (fp16 ends at 65,504) raises `ConversionError`.
    """
    dtype = DTYPES[name]
    narrowed = {
        str(t.dtype).removeprefix("torch.") for t in hub.tensors if torch.promote_types(t.dtype, dtype) != dtype
    }
    notes = [f"weights are rounded from {' and '.join(sorted(narrowed))} to {name}"] if narrowed else []
    tensors = [_in_dtype(tensor, dtype) if tensor.dtype.is_floating_point else tensor for tensor in hub.tensors]
    return replace(hub, tensors=tensors, notes=[*hub.notes, *notes])


def _in_dtype(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    return tensor if tensor.dtype == dtype else tensor.mapped(partial(_cast, dtype, tensor.name))


def _cast(dtype: torch.dtype, name: str, values: Tensor) -> Tensor:
    cast = values.to(dtype)
    if not values.is_meta and not torch.equal(cast.isfinite(), values.isfinite()):
        largest = values[values.isfinite()].abs().max().item()
        raise ConversionError(
            f"{name}: {largest:.4g} does not fit into {str(dtype).removeprefix('torch.')},"
            f" which ends at {torch.finfo(dtype).max:.4g}; bfloat16 holds it"
        )
    return cast
