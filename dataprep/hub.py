"""Where a tokenizer comes from: a folder, or a Hugging Face hub id (offline when it is cached)."""

from __future__ import annotations

from pathlib import Path

from dataprep.errors import CommandError
from dataprep.shards.fingerprint import TOKENIZER_FILES


def tokenizer_folder(path_or_id: str) -> Path:
    """Return the folder with the tokenizer's files.

    Raises:
        CommandError: neither a folder nor an id that can be had.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    if path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") != 1:
        raise CommandError(f"--tokenizer {path_or_id}: no such folder, and not a hub id of the form owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path_or_id, allow_patterns=[*TOKENIZER_FILES, "tokenizer.model"]))
    except Exception as error:  # the hub's client raises its own, requests' and the OS's errors
        reason = str(error).strip().partition("\n")[0]
        raise CommandError(
            f"--tokenizer {path_or_id}: no such folder here, and the hub did not give it: {reason}"
        ) from None
