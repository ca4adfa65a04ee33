"""The command line of the trainer: config in, exit code out, one sentence for what a user can put right."""

import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from configs import ConfigError, load, shipped
from configs.workspace import FILE_NAME, load_workspace
from dataprep.shards import ShardError
from trainer.config import TrainConfig
from trainer.distributed import World, open_world, pick_device
from trainer.errors import EXIT_CONFLICT, EXIT_INTEGRITY, EXIT_NO_SPACE, EXIT_USAGE, ConflictError, TrainError
from trainer.loop import train
from trainer.model import FolderConflict, FolderError
from trainer.stopping import StopSignal, catching

USAGE = """usage: torchrun trainer/run.py [CONFIG] [key=value ...]

Trains from shards. CONFIG is a YAML file or the name of a shipped one ({shipped}); without it, the one that
`train:` names in llava-prep.yaml. key=value sets one setting, such as optimizer.peak_lr=1e-4; all of them stand in
trainer/config.py. The same command goes on where a stopped run left off."""

#: How long a rank other than the first waits before it speaks: torchrun ends it as soon as the first has spoken.
SECONDS_FOR_THE_FIRST_RANK = 5

#: `errno` of a disk, or of a user's share of it, that takes no more.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(USAGE.format(shipped=", ".join(shipped(TrainConfig.FOLDER))))
        return 0
    try:
        return _run(read_config(arguments))
    except TrainError as error:
        return _fail(error, error.exit_code)
    except ConfigError as error:
        return _fail(error, EXIT_USAGE)
    except FolderConflict as error:
        return _fail(error, EXIT_CONFLICT)
    except (ShardError, FolderError) as error:
        return _fail(error, EXIT_INTEGRITY)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return _fail(error, EXIT_NO_SPACE)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def read_config(arguments: Sequence[str], folder: Path | str = ".") -> TrainConfig:
    """Return the config that the command names, its places filled in from the workspace in `folder`.

    Raises:
        ConfigError: none is named, there is no such file, or it holds what it should not.
    """
    names = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    if len(names) > 1 or any(name.startswith("-") for name in names):
        raise ConfigError(f"command line: {' '.join(names)}: expected one CONFIG, then key=value")
    workspace = load_workspace(folder)
    name = names[0] if names else workspace.train
    if name is None:
        choices = ", ".join(shipped(TrainConfig.FOLDER))
        raise ConfigError(f"no config: name one ({choices}, or a YAML file), or say `train: NAME` in {FILE_NAME}")
    return load(TrainConfig, name, overrides).with_workspace(workspace.root)


def _run(config: TrainConfig) -> int:
    stop = StopSignal()
    with open_world(pick_device(config.device)) as world, catching(stop):
        lock = _lock(config.output_dir, world)
        try:
            return train(config, world, stop)
        finally:
            lock.release()


def _lock(output_dir: Path, world: World) -> FileLock:
    """Keep a second run out of the output folder; the lock ends with the process, however that ends."""
    lock = FileLock(output_dir / ".lock")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if world.is_first:
            lock.acquire(timeout=0)
    except Timeout:
        raise ConflictError(f"{output_dir} is being written to by another run") from None
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise TrainError(f"output_dir: {output_dir} is no folder that can be written to: {error.strerror}") from None
    return lock


def _fail(error: Exception, exit_code: int) -> int:
    """Say what is wrong, once: all ranks find most faults alike, and the first speaks for them."""
    rank = int(os.environ.get("RANK", "0"))
    speaker = ""
    if rank != 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_FOR_THE_FIRST_RANK)
        speaker = f" (rank {rank})"
    print(f"error{speaker}: {error}", file=sys.stderr, flush=True)
    return exit_code
