"""What `llava-prep to-h5` was asked for: its options and a YAML file to a config, and which of them a fault is of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from dataprep.errors import CommandError

if TYPE_CHECKING:
    from dataprep.config import CompileConfig

#: Keys of the config that are not called as their options.
KEYS = {"image_fit": "image.fit"}


def read_config(phase: str, name: str | None, overrides: tuple[str, ...], choices: Mapping[str, Any]) -> CompileConfig:
    """Return the config of a run.

    Args:
        overrides: what `--set` says.
        choices: values of options, by their names with `_`; None where they were not given. They win over the others.

    Raises:
        ConfigError: a value that cannot be; it names the file and line, or the option.
        CommandError: a template of another phase, or a config of one.
    """
    from configs import load
    from dataprep.config import CompileConfig

    if choices.get("template") is not None:
        _require_template(choices["template"], int(phase))
    given = {option: value for option, value in choices.items() if value is not None}
    options = [(f"{KEYS.get(option, option)}={value}", _typed(option, value)) for option, value in given.items()]
    config = load(CompileConfig, name or f"phase{phase}", [*((word, f"--set {word}") for word in overrides), *options])
    if config.phase != int(phase):
        raise CommandError(f"--phase {phase}: the config {name} is of phase {config.phase}")
    return config


def _typed(option: str, value: Any) -> str:
    return f"--{option.replace('_', '-')} {value}"


def _require_template(name: str, phase: int) -> None:
    from dataprep.templates import TEMPLATES

    choices = [template.name for template in TEMPLATES.values() if template.phase == phase]
    if name in choices:
        return
    close = get_close_matches(name, choices, n=1)
    fault = f"is for phase {TEMPLATES[name].phase}, not {phase}" if name in TEMPLATES else "not known"
    near = f", did you mean {close[0]}?" if close and name not in TEMPLATES else ""
    raise CommandError(f"--template {name}: {fault}{near}; choose from {', '.join(choices)}")


@contextmanager
def source_named(options: Mapping[str, Any]) -> Iterator[None]:
    """Say of a config that no row can be made of where the value came from that decides it.

    Args:
        options: of the command, by their names.
    """
    from dataprep.layouts import LayoutError

    try:
        yield
    except LayoutError as error:
        config = options["config_name"]
        source = f"{config}: {error.key}" if config else f"{error.key} of phase {options['phase']}"
        for word in options["overrides"]:
            source = f"--set {word}" if word.partition("=")[0] == error.key else source
        if options.get(error.key) is not None:
            source = _typed(error.key, options[error.key])
        raise CommandError(f"{source}: {error}") from None
