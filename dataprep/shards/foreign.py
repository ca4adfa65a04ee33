"""Shards that others wrote: the Cerebras Model Zoo's, Release 2.3.

    examples_<shard>_<process>.h5  data int32 (N, 4, L), gzip, chunks (1, 4, L); img_path S (N, 1); attribute n_examples
    data_params.json               post-process.{pad_id, eos_id, vocab_size}, image_patch_info.image_patch_start_idx

The features are not named in the files; their order is the one of the Model Zoo's loader (`layout.FEATURES`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py

from dataprep.shards.layout import FEATURES, RowLayout, ShardError
from dataprep.shards.reader import ShardFile

#: OpenAI CLIP's normalisation: the Model Zoo's shards hold paths, its training config the constants.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def describe(
    folder: Path, fingerprint: str, image_start_idx: int, num_patches: int, image_size: int
) -> tuple[list[ShardFile], RowLayout]:
    """Return the files of a folder and the layout that the caller and `data_params.json` give them.

    Raises:
        ShardError: no shards there, or shards of another layout (named in the message).
    """
    paths = sorted(folder.glob("*.h5"))
    if not paths:
        raise ShardError(f"{folder}: no *.h5 file there")
    slots, files = 0, []
    for path in paths:
        num_rows, found = _shape(path)
        if slots not in (0, found):
            raise ShardError(f"{path}: rows of {found} slots beside rows of {slots}")
        slots = found
        files.append(ShardFile(path, num_rows, None))
    params = _params(folder)
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
        eos_id=int(params.get("eos_id", 2)),
        pad_id=int(params.get("pad_id", 0)),
        vocab_size=int(params.get("vocab_size", 32000)),
        tokenizer_fingerprint=fingerprint,
        image_size=image_size,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        image_fit="pad",
        config_sha256="",
    )
    return files, layout


def _shape(path: Path) -> tuple[int, int]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            data: Any = file["data"]
            shape = data.shape
            names = set(file)
    except (OSError, KeyError) as error:
        raise ShardError(f"{path}: not a Model Zoo shard: {error}") from None
    if "img_data_loc" in names or (len(shape) == 3 and shape[1] == len(FEATURES) + 1):
        raise ShardError(
            f"{path}: data of shape {shape}, with token_modality_idx or img_data_loc: written by a release after 2.3;"
            " only Release 2.3's four features are read"
        )
    if len(shape) != 3 or shape[1] != len(FEATURES) or "img_path" not in names:
        raise ShardError(f"{path}: data of shape {shape} and {sorted(names)}; expected (rows, 4, slots) and img_path")
    return shape[0], shape[2]


def _params(folder: Path) -> dict[str, Any]:
    path = folder / "data_params.json"
    return json.loads(path.read_text("utf-8")).get("post-process", {}) if path.is_file() else {}
