"""What the readers of raw data share: where files lie, and one element or row to a typed value."""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dataprep.datasets.base import Options, Part, Refused
from dataprep.errors import CommandError
from dataprep.tables import Table, split_tables

Value = TypeVar("Value")
Row = TypeVar("Row", bound=msgspec.Struct)


class Picture(msgspec.Struct, frozen=True):
    """A picture in a table: the `Image` feature of the `datasets` library."""

    bytes: builtins.bytes | None = None
    path: str | None = None


def decoded(content: bytes, kind: type[Value], file: str, line: int) -> Value | Refused:
    """Return a JSON text as a value of `kind`, or the refusal of the record."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.ValidationError, RecursionError) as error:
        return Refused("not_a_record", str(error), file, line, "")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "not_utf8" if isinstance(error, UnicodeDecodeError) else "not_json"
        return Refused(reason, str(error), file, line, "")


def typed(values: Mapping[str, Any], kind: type[Value], file: str, line: int) -> Value | Refused:
    """Return a table's row as a value of `kind`, or the refusal of the record."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        return Refused("not_a_record", str(error), file, line, "")


def rows_of(table: Table, kind: type[Row]) -> Iterator[tuple[int, Row | Refused]]:
    """Yield a table's rows with their numbers, each as a value of `kind` or as its refusal.

    Raises:
        CommandError: the table lacks a column that every record needs: it is another dataset's.
    """
    fields = msgspec.structs.fields(kind)
    there = table.columns()
    missing = [field.encode_name for field in fields if field.required and field.encode_name not in there]
    if missing:
        raise CommandError(f"{table.name}: no column {', '.join(missing)}; there are: {', '.join(there)}")
    for line, values in table.rows([field.encode_name for field in fields]):
        yield line, typed(values, kind, table.name, line)


def numbered_rows(part: Part, kind: type[Row]) -> Iterator[tuple[int, str, int, Row | Refused]]:
    """Yield the rows of all tables of a part: the number in the part, the table's name, the row's number, the row."""
    number = 0
    for table in part.tables:
        for line, row in rows_of(table, kind):
            number += 1
            yield number, table.name, line, row


def found(folder: Path, name: str, depth: int = 2) -> Path | None:
    """Return the file or folder `name` in `folder` or up to `depth` folders below it, the nearest and first by name.

    Archives unpack with and without a folder of their own, and users add one.
    """
    level = [folder]
    for number in range(depth + 1):
        for base in level:
            if (base / name).exists():
                return base / name
        if number < depth:
            level = [inner for base in level if base.is_dir() for inner in sorted(base.iterdir()) if _is_folder(inner)]
    return None


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def table_parts(folder: Path, options: Options, names: dict[str, tuple[str, ...]]) -> list[Part]:
    """Return a part for each split asked for that is read from tables; none where there are no tables.

    Args:
        names: for each of our splits, what published copies call it.

    Raises:
        CommandError: there are tables, but none of a split that is asked for.
    """
    tables = split_tables(folder, options.hub, names, options.splits)
    return [Part(folder, split, tables[split]) for split in options.splits if tables]
