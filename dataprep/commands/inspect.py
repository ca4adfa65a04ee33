"""`llava-prep inspect`: one row, as text in colour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dataprep.commands.door import door, existing
from dataprep.errors import CommandError

if TYPE_CHECKING:
    from dataprep.encoding import TextEncoder


@click.command("inspect")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--row", type=click.IntRange(0), default=0, show_default=True, help="Which row, from 0.")
@click.option("--ids", is_flag=True, help="Print a table of positions, ids, labels and masks.")
@click.option("--tokenizer", help="Default: the copy that lies beside the shards.")
@door
def command(path: Path, row: int, ids: bool, tokenizer: str | None) -> None:
    """Show row N of PATH (a folder of shards, or one shard of it): trained tokens green, the rest grey.

    \b
    Example:
      llava-prep inspect data/h5/phase2 --row 3
    """
    from dataprep.inspection import draw, table_of
    from dataprep.shards.reader import ShardReader
    from dataprep.verification import require_shard

    existing(path, "inspect")
    folder, offset, count = _place(path)
    with ShardReader(folder) as reader:
        count = len(reader) if count is None else count
        if not count:
            raise CommandError(f"{path}: no rows; every record was refused, see refused.jsonl")
        if row >= count:
            raise CommandError(f"--row {row}: {path} has rows 0 to {count - 1}")
        require_shard(folder, offset + row)
        stored = reader[offset + row]
        encoder = _encoder(folder, tokenizer, reader.layout.tokenizer_fingerprint)
        click.echo(draw(stored, reader.layout, encoder))
        if ids:
            click.echo(table_of(stored, reader.layout, encoder))


def _encoder(folder: Path, tokenizer: str | None, fingerprint: str) -> TextEncoder:
    """Return the tokenizer that a user names, or the copy beside the shards."""
    from dataprep.encoding import TextEncoder
    from dataprep.hub import tokenizer_folder

    place = tokenizer_folder(tokenizer) if tokenizer else folder / "tokenizer"
    if not place.is_dir():
        raise CommandError(f"{place}: no such folder; give the tokenizer by --tokenizer FOLDER_OR_HUB_ID")
    encoder = TextEncoder(place)
    if encoder.fingerprint != fingerprint:
        raise CommandError(
            f"tokenizer {place}: fingerprint {encoder.fingerprint[:12]}…,"
            f" the shards were compiled with {fingerprint[:12]}…"
        )
    return encoder


def _place(path: Path) -> tuple[Path, int, int | None]:
    """Return the folder of the shards, and which of its rows PATH means."""
    if path.is_dir():
        return path, 0, None
    if path.suffix != ".h5":
        raise CommandError(f"{path}: is no shard; give a folder that `to-h5` has written, or a .h5 file of it")
    from dataprep.shards.manifest import read_manifest

    manifest, _ = read_manifest(path.parent)
    offset = 0
    for shard in manifest["shards"]:
        if shard["file"] == path.name:
            return path.parent, offset, shard["rows"]
        offset += shard["rows"]
    raise CommandError(f"{path}: not a shard of {path.parent}/manifest.json")
