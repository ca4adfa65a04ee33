"""Shards that others wrote: the Cerebras Model Zoo's, Release 2.3.

    examples_<shard>_<process>.h5  data int32 (N, 4, L), gzip, chunks (1, 4, L); img_path S (N, 1); attribute n_examples
    data_params.json               post-process.{pad_id, eos_id, vocab_size}, image_patch_info.image_patch_start_idx

The features are not named in the files; their order is the one of the Model Zoo's loader (`layout.FEATURES`).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from dataprep.shards.audit import ForeignPromise
from dataprep.shards.fingerprint import num_ids, tokenizer_fingerprint
from dataprep.shards.guarded import Guards
from dataprep.shards.layout import RowLayout, ShardError
from dataprep.shards.once import check_all, check_once
from dataprep.shards.reader import ShardFile

#: OpenAI CLIP's normalisation: the Model Zoo's shards hold paths, its training config the constants.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def describe(
    folder: Path, tokenizer: Path, image_start_idx: int, num_patches: int, image_size: int
) -> tuple[list[ShardFile], RowLayout, ForeignPromise]:
    """Return the files of a folder, the layout that the caller and `data_params.json` give them, and what they must be.

    Every file is read through in child processes first, unless that was done on this node (`once.py`).

    Raises:
        ShardError: no shards there, or a shard is damaged or of another layout (named in the message).
    """
    paths = sorted(folder.glob("*.h5"))
    if not paths:
        raise ShardError(f"{folder}: no *.h5 file there")
    ids = num_ids(tokenizer)
    params = _params(folder, {"eos_id": 2, "pad_id": 0, "vocab_size": ids})
    vocab_size = max(params["vocab_size"], ids)
    promise = ForeignPromise(image_start_idx, num_patches, vocab_size)
    with Guards() as guards:
        check_all(paths, partial(_audit, guards=guards, promise=promise))
    slots, files = 0, []
    for path in paths:
        num_rows, found = _shape(path)
        if slots not in (0, found):
            raise ShardError(f"{path}: rows of {found} slots beside rows of {slots}")
        slots = found
        files.append(ShardFile(path, num_rows, None))
    # Its phase 1 puts the picture straight behind the bos, its phase 2 a `▁` before it that text-only rows mask too.
    phase = 1 if image_start_idx == 1 else 2
    hole_start = image_start_idx if phase == 1 else image_start_idx - 1
    layout = RowLayout(
        max_seq_length=slots,
        num_patches=num_patches,
        image_start_idx=image_start_idx,
        hole_start=hole_start,
        hole_length=image_start_idx + num_patches - hole_start,
        phase=phase,
        template="plain_eos" if phase == 1 else "vicuna_v1",
        bos_id=1,
        eos_id=params["eos_id"],
        pad_id=params["pad_id"],
        vocab_size=params["vocab_size"],
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        image_size=image_size,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        image_fit="pad",
        config_sha256="",
    )
    return files, layout, promise


def _audit(path: Path, guards: Guards, promise: ForeignPromise) -> None:
    def check() -> None:
        with guards.one() as child:
            child.audit_foreign(path, promise)

    check_once(path, promise.key(), check)


def _shape(path: Path) -> tuple[int, int]:
    """Return rows and slots of a file that was audited."""
    with h5py.File(path, "r", locking=False) as file:
        data: Any = file["data"]
        return data.shape[0], data.shape[2]


def _params(folder: Path, defaults: dict[str, int]) -> dict[str, int]:
    """Return what `data_params.json` says of the tokens, and the defaults where it says nothing."""
    path = folder / "data_params.json"
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else {}
        params = {name: content.get("post-process", {}).get(name, value) for name, value in defaults.items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ShardError(f"{path}: not the Model Zoo's data_params.json: {error}") from None
    for name, value in params.items():
        if type(value) is not int or not 0 <= value < 1 << 31:
            raise ShardError(f"{path}: post-process.{name} is {value!r}, expected an id")
    return params
