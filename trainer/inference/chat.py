"""Talk to a model: `python -m trainer.inference.chat MODEL --image P`, or one answer with `--prompt`."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trainer.inference.asking import Sampling

if TYPE_CHECKING:
    from trainer.inference.assistant import Assistant

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

_MODEL_OPTIONS = (
    click.option("--base", type=click.Path(exists=True, path_type=Path), help="What an adapter or a run began with."),
    click.option("--template", help="For a model that does not say which template it was trained with."),
    click.option("--force-template", is_flag=True, help="Take --template although training's was another."),
    click.option("--system", help="The system prompt, in place of training's; '' for none."),
    click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1 ..."),
    click.option("--dtype", default="auto", help="auto, float32, bfloat16 or float16."),
)
_SAMPLING_OPTIONS = (
    click.option("--max-new-tokens", type=click.IntRange(min=1), default=512, help="An answer is cut after so many."),
    click.option(
        "--temperature", type=click.FloatRange(min=0), default=0.0, help="0 takes the likeliest token always."
    ),
    click.option("--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0),
    click.option("--top-k", type=click.IntRange(min=1), help="Draw from so many of the likeliest tokens."),
    click.option("--seed", type=int, default=0, help="The same seed and question give the same answer."),
)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def add(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return add


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--image", type=FILE, help="The picture to talk about.")
@click.option("--prompt", help="Ask this, print the answer alone, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --prompt: one JSON object on stdout.")
@_options(*_MODEL_OPTIONS)
@_options(*_SAMPLING_OPTIONS)
def main(
    model: Path,
    image: Path | None,
    prompt: str | None,
    as_json: bool,
    base: Path | None,
    template: str | None,
    force_template: bool,
    system: str | None,
    device: str,
    dtype: str,
    **sampling: Any,
) -> None:
    """Talk to MODEL: a checkpoint folder, an export, any format that llava-convert reads, or a run that goes on.

    Questions are asked as training asked them: template, system prompt and picture come from the fingerprint of the
    shards that the folder keeps.
    """
    if as_json and prompt is None:
        raise click.UsageError("--json prints one answer: give --prompt")
    try:
        chosen = Sampling(**sampling)
    except ValueError as error:  # click's ranges let `nan` through
        raise click.UsageError(str(error)) from None
    with _sentences():
        from trainer.inference.loading import open_assistant

        assistant = open_assistant(
            model,
            device=device,
            dtype=dtype,
            template=template,
            system=system,
            base=base,
            force_template=force_template,
        )
        if prompt is None:
            from trainer.inference.dialogue import talk

            talk(assistant, image, chosen)
        else:
            _answer_once(assistant, image, prompt, chosen, as_json)


def _answer_once(assistant: "Assistant", image: Path | None, prompt: str, sampling: Sampling, as_json: bool) -> None:
    from trainer.inference.asking import Request
    from trainer.inference.dialogue import printable

    (answer,) = assistant.answer([Request([prompt], image)], sampling)
    if as_json:
        facts = {"template": assistant.template, "image": None if image is None else str(image), "prompt": prompt}
        click.echo(json.dumps(asdict(answer) | facts, ensure_ascii=False))
    else:
        click.echo(printable(answer.text) if sys.stdout.isatty() else answer.text)


@contextmanager
def _sentences() -> Iterator[None]:
    """End with one sentence and an exit code for what a user can put right."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read the answers has gone; what Python still holds of them must not fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        from trainer.inference.prompts import sentence

        code = _exit_code(error)
        if code is None:
            raise
        click.echo(f"error: {sentence(error)}", err=True)
        sys.exit(code)


def _exit_code(error: Exception) -> int | None:
    """Return the exit code of what a user can cause; None for a fault of the program."""
    import torch

    from converters.errors import ConversionError, UnsupportedError
    from dataprep.conversation import Refusal
    from dataprep.images import ImageFault
    from trainer.errors import EXIT_INTEGRITY, EXIT_USAGE, TrainError
    from trainer.model import FolderError

    if isinstance(error, TrainError):
        return error.exit_code
    if isinstance(error, FolderError | ConversionError | ImageFault):
        return EXIT_INTEGRITY
    return EXIT_USAGE if isinstance(error, UnsupportedError | Refusal | torch.OutOfMemoryError) else None


if __name__ == "__main__":
    main()
