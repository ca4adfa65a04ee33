"""YAML to config: safe, strict, and with errors that name file, line, key and the nearest known key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

#: A config is a page of text. More than this is another file given by mistake, or an attack by aliases.
MAX_BYTES = 1 << 20
MAX_DEPTH = 20

Location = tuple[str | int, ...]
Schema = TypeVar("Schema", bound="StrictConfig")


class ConfigError(ValueError):
    """A config that cannot be used; each line of the message names a place, an expectation and a finding."""


class StrictConfig(BaseModel):
    """A frozen config whose unknown keys are errors.

    `FOLDER` is the folder of `configs/` that holds the shipped YAML files of this schema.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    FOLDER: ClassVar[str] = ""


@dataclass
class _Document:
    """Plain values, and the place each key was written at."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Location, str] = field(default_factory=dict)
    overridden: set[Location] = field(default_factory=set)
    """Keys whose value is not the file's."""

    def place(self, location: Location) -> str:
        """Return the place of a key, or of the nearest key around it that was written down."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.places:
                return self.places[location[:end]]
        return self.name


def shipped(folder: str) -> list[str]:
    """Return the names of the YAML files that come with the package in `configs/FOLDER`."""
    return sorted(path.stem for path in (Path(__file__).parent / folder).glob("*.yaml"))


def load(
    schema: type[Schema], name_or_path: str | Path | None, overrides: Iterable[str | tuple[str, str]] = ()
) -> Schema:
    """Read a config.

    Args:
        schema: what the file must look like.
        name_or_path: a YAML file, the name of a shipped one (`phase2`), or None for the defaults alone.
        overrides: `key.path=value` strings, the value in YAML; they win over the file. A pair names where the string
            came from too, such as the option that set it.

    Raises:
        ConfigError: no such file, no YAML, an unknown or repeated key, a value of the wrong kind.
    """
    document = _Document("defaults")
    if name_or_path is not None:
        document = _read(_find(schema, name_or_path))
    for override in overrides:
        _override(document, *((override,) if isinstance(override, str) else override))
    return validated(schema, document.values, document)


def validated(schema: type[Schema], values: dict[str, Any], document: _Document | None = None) -> Schema:
    """Return `values` as a config, or raise `ConfigError` with a line for each fault."""
    document = document or _Document(schema.__name__)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(schema, document, fault) for fault in error.errors())) from None


def _find(schema: type[StrictConfig], name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    inside = Path(__file__).parent / schema.FOLDER / f"{path}.yaml"
    if schema.FOLDER and path.name == str(path) and inside.is_file():
        return inside
    # `configs/train/phase2_tiny.yaml` means the shipped file also where the working directory has no `configs/`.
    packaged = Path(__file__).parent.parent / path
    if path.parts[:1] == ("configs",) and packaged.is_file():
        return packaged
    choices = ", ".join(shipped(schema.FOLDER)) if schema.FOLDER else "none"
    raise ConfigError(f"{name_or_path}: no such config file; shipped are: {choices}")


def _read(path: Path) -> _Document:
    raw = path.read_bytes()
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(raw)} bytes; a config has at most {MAX_BYTES}")
    document = _Document(str(path))
    try:
        text = raw.decode("utf-8")
        _refuse_tricks(text, path)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if node is None:
        return document
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:{node.start_mark.line + 1}: expected `key: value` lines, found a {node.id}")
    document.values = _plain(node, (), document)
    return document


def _refuse_tricks(text: str, path: Path) -> None:
    """Refuse what a config has no use for: a few nested aliases unfold to gigabytes, deep nesting to a long wait."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{path}:{line}: aliases (*{event.anchor}) are not read")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ConfigError(f"{path}:{line}: nested too deeply for a config")


def _plain(node: yaml.Node, location: Location, document: _Document) -> Any:
    """Turn a node into plain values, noting where each key stands and refusing a key that stands twice."""
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*location, index), document) for index, child in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, document)
    values: dict[Hashable, Any] = {}
    for key_node, value_node in node.value:
        place = f"{document.name}:{key_node.start_mark.line + 1}"
        key = _scalar(key_node, document)
        if not isinstance(key, str):
            raise ConfigError(f"{place}: a key must be a word, found {key!r}")
        if key in values:
            dotted = ".".join(map(str, (*location, key)))
            raise ConfigError(f"{place}: {dotted}: repeated key, first at {document.places[(*location, key)]}")
        document.places[(*location, key)] = place
        values[key] = _plain(value_node, (*location, key), document)
    return values


def _scalar(node: yaml.Node, document: _Document) -> Any:
    """Build one value; aliases, merges and tags have no use in a flat config and are refused."""
    place = f"{document.name}:{node.start_mark.line + 1}"
    if not isinstance(node, yaml.ScalarNode):
        raise ConfigError(f"{place}: a key must be a word")
    try:
        # YAML 1.1 reads `1e-3` as text, because it has no dot; everybody means the number.
        value = yaml.SafeLoader("").construct_object(node)
        return _number(value) if isinstance(value, str) and node.style is None else value
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: {getattr(error, 'problem', error)}") from None


def _number(text: str) -> str | float:
    try:
        return float(text) if "e" in text.lower() and text[-1].isdigit() else text
    except ValueError:
        return text


def _override(document: _Document, override: str, source: str = "command line") -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{source}: {override}: expected key=value")
    location = tuple(key.split("."))
    place = f"{source}: {override}"
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: not YAML: {getattr(error, 'problem', error)}") from None
    target = document.values
    for step in location[:-1]:
        inner = target.get(step)
        target[step] = dict(inner) if isinstance(inner, dict) else {}
        target = target[step]
    value_document = _Document(place)
    target[location[-1]] = None if node is None else _plain(node, (), value_document)
    document.places[location] = source
    document.overridden.add(location)


def _explain(schema: type[StrictConfig], document: _Document, fault: Any) -> str:
    location: Location = fault["loc"]
    dotted = ".".join(map(str, location)) or "config"
    place = document.place(location)
    if fault["type"] == "extra_forbidden":
        return f"{place}: {dotted}: unknown key{_nearest(schema, location)}"
    if fault["type"] == "missing":
        return f"{place}: {dotted}: missing; it has no default"
    message = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    # A fault between the keys of a config has the whole config for its input; the message says what was found.
    is_whole_config = isinstance(fault["input"], dict | BaseModel) and _fields_at(schema, location)
    if is_whole_config:
        place = _place_of_contradiction(document, location, message)
    found = "" if is_whole_config else f", found {fault['input']!r}{_nearest_choice(fault)}"
    return f"{place}: {dotted}: {message[0].lower()}{message[1:]}{found}"


def _place_of_contradiction(document: _Document, location: Location, message: str) -> str:
    """Return the place of a key that a fault between keys names, of one from the command line where there is one."""
    named = [(*location, word) for word in re.findall(r"\w+", message) if (*location, word) in document.places]
    named.sort(key=lambda key: key not in document.overridden)
    return document.places[named[0]] if named else document.place(location)


def _nearest_choice(fault: Any) -> str:
    """Say which of the possible words was meant, where one is like the one that was found."""
    choices = re.findall(r"'([^']*)'", fault["ctx"]["expected"]) if fault["type"] == "literal_error" else []
    close = difflib.get_close_matches(str(fault["input"]), choices, n=1)
    return f", did you mean {close[0]}?" if close else ""


def _nearest(schema: type[BaseModel], location: Location) -> str:
    """Say which key was meant: one of the same config, or of a config inside it, by its dotted name."""
    known = _fields_at(schema, location[:-1])
    names = {name: name for name in known}
    for name in known:
        for inner in _fields_at(schema, (*location[:-1], name)):
            names.setdefault(inner, f"{name}.{inner}")
            names[f"{name}.{inner}"] = f"{name}.{inner}"
    close = difflib.get_close_matches(str(location[-1]), names, n=1)
    return f", did you mean {names[close[0]]}?" if close else f"; known here: {', '.join(sorted(known))}"


def _fields_at(schema: type[BaseModel], location: Location) -> list[str]:
    """Return the field names of the config that stands at `location` inside `schema`."""
    for step in location:
        if isinstance(step, int):  # an item of a list: its config is the list's
            continue
        info = schema.model_fields.get(str(step))
        kinds = (info.annotation, *get_args(info.annotation)) if info else ()
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return []
        schema = inner[0]
    return list(schema.model_fields)
