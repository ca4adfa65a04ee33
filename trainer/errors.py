"""What ends a run with one sentence and an exit code instead of a traceback."""

#: Exit codes, as DESIGN section 8 lists them.
EXIT_USAGE = 2
EXIT_CONFLICT = 4
EXIT_INTEGRITY = 5
EXIT_NO_SPACE = 6


class TrainError(ValueError):
    """Something that the user can put right; `exit_code` is what the process ends with."""

    exit_code = EXIT_USAGE


class ConflictError(TrainError):
    """A folder that holds another run, or that another run is writing to."""

    exit_code = EXIT_CONFLICT


class IntegrityError(TrainError):
    """Data, checkpoint or numbers that are not what they were promised to be."""

    exit_code = EXIT_INTEGRITY


class StorageError(TrainError):
    """A disk that does not take what is to be written, as a rule because it is full."""

    exit_code = EXIT_NO_SPACE
