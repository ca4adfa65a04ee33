"""TensorBoard and Weights & Biases: imported only where a config asks for them."""

import importlib
import os
import secrets
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from trainer.config import LogConfig
from trainer.errors import TrainError


class Tracker(Protocol):
    """What is told the numbers of a run besides its own files."""

    def write(self, part: str, step: int, values: Mapping[str, float | None]) -> None:
        """Take the numbers of a step; `part` is `train` or `evaluation`."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def check_trackers(config: LogConfig) -> None:
    """Refuse to start a run that could not be logged as asked.

    Raises:
        TrainError: a package is missing.
    """
    for name, asked in (("tensorboard", config.tensorboard), ("wandb", config.wandb is not None)):
        if asked and find_spec(name) is None:
            raise TrainError(f"log.{name}: the package {name} is not installed; `pip install {name}`, or do not ask")


def open_trackers(
    config: LogConfig, folder: Path, done: int, settings: Mapping[str, Any], say: Callable[[str], None] = print
) -> list[Tracker]:
    """Return the trackers that a config asks for.

    Args:
        folder: of the run, in which they keep their files.
        done: steps that are done; what was tracked of later ones is hidden.
        settings: of the run, for the tracker to show.
        say: takes a sentence where a tracker cannot do all that is asked of it.
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoard(folder / "tensorboard", done))
    if config.wandb is not None:
        trackers.append(Wandb(config.wandb, folder, settings, say))
    return trackers


class TensorBoard:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Whoever reads the files leaves out what an earlier, killed run said of steps from here on.
        self._writer = SummaryWriter(folder, purge_step=done + 1 if done else None)

    def write(self, part: str, step: int, values: Mapping[str, float | None]) -> None:
        """Add a point to the curve of each number."""
        for name, value in values.items():
            if value is not None and name != "step":
                self._writer.add_scalar(f"{part}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; offline (`wandb sync` sends it later) where no account or no network is at hand.

    A resumed run goes on under its id, which lies in `wandb-id` in the run's folder.
    """

    def __init__(self, project: str, folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
        # By name, since type checkers run where it is not installed.
        wandb = importlib.import_module("wandb")
        options = {"project": project, "dir": str(folder), "config": dict(settings), "resume": "allow"}
        options["id"] = _lasting_id(folder / "wandb-id")
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_account(wandb) else "offline")
        try:
            self._run = wandb.init(**options, mode=mode)
        except wandb.errors.Error as error:
            say(f"log.wandb: {error}; going on offline, `wandb sync` sends it later".replace("\n", " "))
            wandb.teardown()  # its helper process still holds the id of the run that did not start
            self._run = wandb.init(**options, mode="offline")

    def write(self, part: str, step: int, values: Mapping[str, float | None]) -> None:
        """Log the numbers of a step; an evaluation belongs to the step before it."""
        numbers = {f"{part}/{name}": value for name, value in values.items() if value is not None and name != "step"}
        self._run.log(numbers, step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


def _lasting_id(path: Path) -> str:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4), encoding="ascii")
    return path.read_text(encoding="ascii")


def _has_account(wandb: Any) -> bool:
    """Return whether a key is at hand, so that nobody is asked for one at a terminal that nobody watches."""
    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)
