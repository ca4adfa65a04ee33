"""The `llava-convert` command: each pair of formats by name, and `components`, `formats`, `info`, `verify`."""

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from pydantic import ValidationError

from converters.dtypes import DTYPES, in_dtype
from converters.errors import ConversionError, UnsupportedError
from converters.formats import FORMATS, components, llava_projector, read_with
from converters.hub import Hub, read_tokenizer
from converters.info import as_text, describe
from converters.sources import folder_of
from trainer.model import FolderConflict, FolderError, whole_folder


class Source(click.ParamType):
    """A folder, or a hub id in its place."""

    name = "folder or hub id"

    def __init__(self, or_file: bool = False) -> None:
        self.or_file = or_file

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the folder, from the hub if need be."""
        if isinstance(value, Path):
            return value
        found = folder_of(value)
        if not (found.is_dir() or self.or_file):
            self.fail(f"{value} is a file, expected a folder", param, ctx)
        return found


FOLDER = Source()
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FOLDER = click.Path(path_type=Path)

#: What a user can cause -> exit code; the first that fits.
EXIT_CODES: tuple[tuple[type[Exception], int], ...] = (
    (FolderConflict, 4),
    (FolderError, 5),
    (ConversionError, 5),
    (UnsupportedError, 2),
    (ValidationError, 2),
)
NO_SPACE = 6


class Door(click.Group):
    """A group that says a user's error in one sentence on stderr, and ends with its exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand."""
        try:
            return super().invoke(ctx)
        except tuple(kind for kind, _ in EXIT_CODES) as error:
            code = next(code for kind, code in EXIT_CODES if isinstance(error, kind))
            click.echo(f"error: {_sentence(error)}", err=True)
            ctx.exit(code)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            click.echo(f"error: no space left for {error.filename or 'the new folder'}", err=True)
            ctx.exit(NO_SPACE)


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{error.title}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error)


@click.group(cls=Door, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="llava-prep")
def main() -> None:
    """Convert LLaVA weights between formats, exactly.

    \b
    llava-convert components trainer --vision CLIP --language VICUNA weights/start
    llava-convert trainer hf runs/phase2/final exported
    llava-convert verify runs/phase2/final exported
    """


class Size(click.ParamType):
    """A number of bytes such as 5GB or 500MB (powers of 1000)."""

    name = "size"
    _UNITS = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes."""
        if isinstance(value, int):
            return value
        for unit, factor in self._UNITS.items():
            number = value.upper().removesuffix(unit)
            if number != value.upper() and number.replace(".", "", 1).isdigit() and float(number) > 0:
                return int(float(number) * factor)
        self.fail(f"{value!r} is not a size such as 5GB or 500MB", param, ctx)


DEFAULT_SHARD_BYTES = 5 * 10**9
SHARD_SIZE = click.option("--shard-size", type=Size(), default="5GB", help="Largest weight file; more become shards.")
DTYPE = click.option(
    "--dtype", type=click.Choice(list(DTYPES)), help="Of the weights written.  [default: the source's]"
)


def convert(hub: Hub, target: str, folder: Path, max_shard_bytes: int, dtype: str | None) -> None:
    """Write a model in a format: complete under its name, or not at all."""
    if FORMATS[target].one_file and max_shard_bytes != DEFAULT_SHARD_BYTES:
        raise UnsupportedError(f"--shard-size: the weights of {target} are one file")
    hub = in_dtype(hub, dtype) if dtype else hub
    with whole_folder(folder) as unfinished:
        FORMATS[target].write(hub, unfinished, max_shard_bytes)
        if finish := FORMATS[target].finish:
            finish(unfinished, folder)
    for loss in [*hub.notes, *FORMATS[target].losses(hub)]:
        click.echo(f"note: {loss}", err=True)
    click.echo(f"{folder}: {FORMATS[target].title}, from a model of {len(hub.tensors)} tensors", err=True)


def _pair(source: str, target: str) -> click.Command:
    @click.command(name=target, help=f"{FORMATS[source].title} SRC -> {FORMATS[target].title} DST.")
    @click.argument("src", type=Source(or_file=FORMATS[source].is_file))
    @click.argument("dst", type=NEW_FOLDER)
    @SHARD_SIZE
    @DTYPE
    def command(src: Path, dst: Path, shard_size: int, dtype: str | None, **others: Path | None) -> None:
        convert(read_with(source, src, _given(others)), target, dst, shard_size, dtype)

    return _with_others(command, FORMATS[source].others)


def _given(others: Mapping[str, Path | None]) -> dict[str, Path]:
    return {name: folder for name, folder in others.items() if folder is not None}


def _with_others(command: Any, others: Mapping[str, str]) -> Any:
    for name, explained in others.items():
        command = click.option(f"--{name}", type=FOLDER, help=explained)(command)
    return command


#: Whatever folders reading any format may need besides.
ALL_OTHERS = {name: explained for known in FORMATS.values() for name, explained in known.others.items()} | {
    "base": "The model that an adapter or a projector belongs to.",
    "tokenizer": "A folder with the tokenizer, for a source that has none.",
}


def _group(source: str) -> click.Group:
    group = click.Group(name=source, help=f"From {FORMATS[source].title}.")
    for target in FORMATS:
        if target != source:
            group.add_command(_joining(target) if source == "components" else _pair(source, target))
    return group


def _joining(target: str) -> click.Command:
    @click.command(target)
    @click.option("--vision", type=FOLDER, help="CLIP or SigLIP, whole or its tower, as transformers saves it.")
    @click.option("--language", type=FOLDER, help="A Llama, Mistral or Qwen and its tokenizer, likewise.")
    @click.option("--projector", type=click.Choice(["mlp2x_gelu", "linear"]), default="mlp2x_gelu")
    @click.option("--seed", type=int, default=0, help="Decides the projector's fresh weights.")
    @click.option("--projector-file", type=FILE, help="A trained projector (mm_projector.bin) in place of a fresh one.")
    @click.option("--tokenizer", type=FOLDER, help="A folder whose tokenizer stands in place of the decoder's.")
    @click.argument("folders", nargs=-1, required=True, metavar="[SRC] DST")
    @SHARD_SIZE
    @DTYPE
    def command(folders: tuple[str, ...], shard_size: int, dtype: str | None, **parts: Any) -> None:
        *source, dst = folders
        if len(source) > 1:
            raise click.UsageError(f"expected [SRC] DST, found {len(folders)} folders: {' '.join(folders)}")
        hub = _joined(folder_of(source[0]) if source else None, **parts)
        convert(hub, target, Path(dst), shard_size, dtype)

    command.help = (
        f"A tower and a decoder, joined by a projector, -> {FORMATS[target].title} DST: those that --vision and"
        " --language name, or the folders image_model/, text_model/ and projector/ in SRC."
    )
    return command


def _joined(
    source: Path | None,
    vision: Path | None,
    language: Path | None,
    projector: str,
    seed: int,
    projector_file: Path | None,
    tokenizer: Path | None,
) -> Hub:
    if source is not None and (vision or language):
        raise click.UsageError("SRC holds the tower and the decoder: leave --vision and --language out, or SRC")
    if source is not None:
        hub = components.read(source, tokenizer)
    elif vision and language:
        hub = components.join(vision, language, projector, seed, tokenizer)
    else:
        raise click.UsageError(
            "give --vision and --language, or the folder SRC that holds image_model/ and text_model/"
        )
    return llava_projector.join(hub, projector_file) if projector_file else hub


for _name in FORMATS:
    main.add_command(_group(_name))


@main.command("tokenizer")
@click.argument("src", type=FOLDER)
@click.argument("dst", type=NEW_FOLDER)
def tokenizer_command(src: Path, dst: Path) -> None:
    """Write SRC's tokenizer into DST, with the tokenizer.json that shards need, made from tokenizer.model."""
    files = read_tokenizer(src)
    with whole_folder(dst) as unfinished:
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
    click.echo(f"{dst}: {', '.join(sorted(files))}", err=True)


@main.command("formats")
def formats_command() -> None:
    """List the formats; any pair converts."""
    for name, known in FORMATS.items():
        click.echo(f"{name:16} {known.title}")


@main.command("info")
@click.argument("folder", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def info_command(folder: Path, as_json: bool, **others: Path | None) -> None:
    """Say what is in a model folder."""
    description = describe(folder, _given(others))
    click.echo(json.dumps(description) if as_json else as_text(description))


info_command = _with_others(info_command, ALL_OTHERS)


@main.command("verify")
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option("--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Default: one is drawn.")
@click.option("--prompt", default="What is shown in this picture?", help="The question to ask.")
@click.option("--tolerance", type=click.FloatRange(min=0), default=1e-4, help="Largest difference that passes.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.pass_context
def verify_command(
    ctx: click.Context,
    a: Path,
    b: Path,
    image: Path | None,
    prompt: str,
    tolerance: float,
    as_json: bool,
    **others: Path | None,
) -> None:
    """Run folders A and B on the same input in fp32 and print the largest logit difference; exit 5 above tolerance.

    The processor of an export must also make the ids and pixels of training, or it is exit 5.
    """
    from converters.verify import compare, open_side, processor_differences

    first, second = (open_side(folder, _given(others)) for folder in (a, b))
    results = compare(first, second, image, prompt)
    worst = max(result.max_difference for result in results)
    # Each by itself: `max` may lose a NaN, which must not pass.
    passed = all(result.max_difference <= tolerance for result in results)
    pairs = ((first, second), (second, first))
    processors = {str(side.folder): processor_differences(side, other, image, prompt) for side, other in pairs}
    differences = [sentence for found in processors.values() for sentence in found or ()]
    report = {"max_difference": worst, "tolerance": tolerance, "passed": passed and not differences}
    if as_json:
        click.echo(json.dumps(report | {"probes": [asdict(result) for result in results], "processors": processors}))
    else:
        for result in results:
            click.echo(
                f"{result.name}: {result.num_tokens} tokens, largest logit difference {result.max_difference:.3g} "
                f"(logits up to {result.max_logit:.3g}), same next token at {result.same_choice:.1%}"
            )
        for folder, found in processors.items():
            if found == []:
                click.echo(f"{folder}: its processor makes the ids and pixels of training")
        click.echo(f"largest logit difference {worst:.3g}: {'within' if passed else 'ABOVE'} tolerance {tolerance:g}")
    for sentence in differences:
        click.echo(f"error: {sentence}", err=True)
    ctx.exit(0 if report["passed"] else 5)


verify_command = _with_others(verify_command, ALL_OTHERS)
