"""Where a model comes from: a folder, or a Hugging Face hub id (`owner/name`), offline once it is cached."""

import re
from fnmatch import fnmatch
from pathlib import Path

from converters.errors import UnsupportedError

#: Files beside the weights that any format here reads.
SETTINGS = (
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "*.yaml",
    "mm_projector.bin",
    "non_lora_trainables.bin",
    "adapter_model.*",
)

#: Weights, the first kind that a repository holds: many hold the same ones two or three times.
WEIGHTS = (("*.safetensors",), ("pytorch_model*.bin",), ("*.mdl",))

#: Copies of the weights for other uses, as hub repositories hold them.
NEVER = ("onnx/*", "original/*", "*/.*", "openvino/*", "coreml/*", "*fp32*", "*non_ema*")

#: How long the hub may take to say what a repository holds.
SECONDS = 20

_ID = re.compile(r"[\w.-]+/[\w.-]+")


def folder_of(path_or_id: str) -> Path:
    """Return a folder (or file) as it is, or the cached folder of a hub repository.

    Raises `UnsupportedError` for a name that is neither, or that the hub does not give.
    """
    path = Path(path_or_id).expanduser()
    if path.exists():
        return path
    if not _ID.fullmatch(path_or_id) or path_or_id.startswith("."):
        raise UnsupportedError(f"{path_or_id}: no such folder, and not a hub id of the form owner/name")
    return _from_hub(path_or_id)


def _from_hub(repo_id: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Asked once: without network, what is cached is taken at once, and not after half a minute of trying again.
        names = [file.rfilename for file in HfApi().model_info(repo_id, timeout=SECONDS).siblings or ()]
        return Path(snapshot_download(repo_id, allow_patterns=wanted(names)))
    except Exception as error:  # the hub's client raises its own, its network library's and the OS's errors
        try:
            # Whatever is cached was asked for by this program before, whole.
            return Path(snapshot_download(repo_id, local_files_only=True))
        except LocalEntryNotFoundError:
            reason = " ".join(str(error).split())[:300]
            raise UnsupportedError(
                f"{repo_id}: no such folder here, and the hub did not give it: {reason or type(error).__name__}"
            ) from None


def wanted(names: list[str]) -> list[str]:
    """Return which files of a repository a conversion needs: settings, and its weights once."""
    kept = [name for name in names if not any(fnmatch(name, pattern) for pattern in NEVER)]
    settings = [name for name in kept if _fits(name, SETTINGS)]
    for kind in WEIGHTS:
        if weights := [name for name in kept if _fits(name, kind)]:
            return sorted({*settings, *weights})
    return sorted(settings)


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name.rpartition("/")[2], pattern) for pattern in patterns)
