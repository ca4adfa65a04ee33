"""Which folder is meant when a run is to be asked; loads torch for a run alone."""

from pathlib import Path

from trainer.errors import TrainError


def asked_folder(folder: Path) -> Path:
    """Return the folder that is asked when a run's is named: `final/`, or else its latest checkpoint.

    Any other folder is returned as it is.

    Raises:
        TrainError: a run that has neither yet.
    """
    is_run = any((folder / name).exists() for name in ("final", "checkpoints", "metrics.jsonl"))
    if not is_run or (folder / "config.json").exists():
        return folder
    if (folder / "final").is_dir():
        return folder / "final"
    from trainer.checkpoint import whole_checkpoints

    found = whole_checkpoints(folder / "checkpoints")
    if not found:
        raise TrainError(f"{folder} is a run without a whole checkpoint yet: wait for its first (see save_every)")
    return found[-1]


def is_step(folder: Path) -> bool:
    """Return whether a folder is a checkpoint to go on from."""
    return (folder / "state.json").is_file()
