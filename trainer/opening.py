"""The shards of a run, opened and known to fit the model and the config before anything is allocated."""

from dataprep.shards import ShardReader
from trainer.config import TrainConfig
from trainer.errors import TrainError
from trainer.fingerprint import check_fingerprint
from trainer.heldout import chosen_rows
from trainer.model import LlavaConfig


def open_training(config: TrainConfig) -> ShardReader:
    """Return the shards to train on.

    Raises:
        TrainError: there are none, or there is no model; the sentence says which command makes them.
        ShardError: they cannot be read.
    """
    shards = config.data.shards
    if shards is None or not shards.is_dir():
        raise TrainError(f"data.shards: {shards} is no folder; `llava-prep to-h5 --phase {config.phase}` makes one")
    if not config.model.is_dir():
        raise TrainError(
            f"model: {config.model} is no folder; `llava-convert components trainer` makes starting weights"
        )
    rows = ShardReader(shards)
    if len(rows) == 0:
        raise TrainError(f"data.shards: {shards} holds no rows")
    return rows


def check_training(config: TrainConfig, rows: ShardReader, model: LlavaConfig) -> None:
    """Refuse shards that were not compiled for this model, do not fit `max_tokens` or lack their pictures.

    Raises:
        TrainError: what does not fit.
    """
    check_fingerprint(rows.layout, rows.lengths, model, config.model, config.phase)
    packed = config.data.packing == "packed"
    longest = int(rows.lengths.max(initial=0)) if packed else rows.layout.max_seq_length
    what = "the longest sample has" if packed else "with packing: none every row takes"
    _check_budget(config, longest, what)
    _check_image_dir(config, rows)


def open_evaluation(config: TrainConfig, training: ShardReader, model: LlavaConfig) -> ShardReader | None:
    """Return the shards to evaluate on, after the checks that those of the training pass; None: nobody asks.

    Raises:
        TrainError, ShardError: what does not fit; every sentence begins with `evaluation.shards`.
    """
    shards = config.evaluation.shards
    if shards is None:
        return None
    if not shards.is_dir():
        raise TrainError(f"evaluation.shards: {shards} is no folder; `llava-prep to-h5 --holdout 0.01` makes one")
    rows = ShardReader(shards)
    try:
        check_fingerprint(rows.layout, rows.lengths, model, config.model, config.phase)
        _check_alike(training, rows)
        _check_budget(config, int(rows.lengths.max(initial=0)), "the longest sample has")
        _check_image_dir(config, rows)
        if not rows.num_loss_tokens[chosen_rows(len(rows), config.evaluation.max_samples)].sum():
            raise TrainError(f"{shards} holds no trained token: there is nothing to evaluate")
    except TrainError as error:
        raise type(error)(f"evaluation.shards: {error}") from None
    return rows


def _check_alike(training: ShardReader, evaluation: ShardReader) -> None:
    for name in ("template", "template_sha256", "system_prompt", "image_fit"):
        trained, evaluated = getattr(training.layout, name), getattr(evaluation.layout, name)
        if trained != evaluated:
            raise TrainError(f"{name}: the training's shards were compiled with {trained}, these with {evaluated}")


def _check_budget(config: TrainConfig, longest: int, what: str) -> None:
    if longest > config.max_tokens:
        raise TrainError(f"max_tokens: {what} {longest} tokens, a micro-batch holds {config.max_tokens}")


def _check_image_dir(config: TrainConfig, rows: ShardReader) -> None:
    """Look for one picture that no shard holds, so that a wrong root is found now and not by every worker."""
    from_files = (rows.has_image & ~rows.has_embedded).nonzero()[0]
    if not len(from_files):
        return
    key, image_dir = rows[int(from_files[0])].img_path, config.data.image_dir
    if key is not None and (image_dir is None or not (image_dir / key).is_file()):
        missing = f"{image_dir} does not hold" if image_dir else "none is given, and no shard holds"
        raise TrainError(
            f"data.image_dir: {missing} {key}, the picture of row {from_files[0]};"
            " give the folder that the image keys are relative to"
        )
