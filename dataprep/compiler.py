"""One task to its shards: the order of the steps, as one worker runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dataprep.config import CompileConfig
from dataprep.conversation import Conversation, Refusal, parse, validate
from dataprep.encoding import Sample, TextEncoder, encode, encode_batch
from dataprep.images import ImageFault
from dataprep.layouts import find_prompter
from dataprep.plan import MAX_FILES
from dataprep.rows import lay_out, limit_of, shorten
from dataprep.shards.layout import Row, RowLayout, Source
from dataprep.shards.writer import ShardImage, ShardWriter
from dataprep.templates import Span
from dataprep.verdicts import ImageVerdicts
from dataprep.workers import rare_collections

#: Records tokenised in one call, and bytes of them: a line may have 16 MB.
BLOCK, BLOCK_BYTES = 256, 4 << 20


@dataclass
class Tally:
    """The accounting of a task or a run: every record is in exactly one of written, refused, deduplicated."""

    records: int = 0
    written: int = 0
    deduplicated: int = 0
    held_out: int = 0
    """Of those written: how many stand in `holdout/`."""
    rows: int = 0
    text_only: int = 0
    truncated: int = 0
    split: int = 0
    attended_tokens: int = 0
    loss_tokens: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    normalised: Counter[str] = field(default_factory=Counter)

    @property
    def num_refused(self) -> int:
        """Number of refused records."""
        return sum(self.refused.values())

    def add(self, other: Tally) -> None:
        """Add another tally to this one."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**vars(self), "refused": dict(self.refused), "normalised": dict(self.normalised)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tally:
        """Return the tally that `as_dict` wrote."""
        counters = {name: Counter(values[name]) for name in ("refused", "normalised")}
        return cls(**{**values, **counters})

    def balanced(self) -> bool:
        """Return whether every record ended somewhere, and once."""
        return self.records == self.written + self.num_refused + self.deduplicated


@runtime_checkable
class Work(Protocol):
    """Some records: a range of the input, or picked ones."""

    @property
    def index(self) -> int: ...  # noqa: D102
    @property
    def first(self) -> Source: ...  # noqa: D102
    @property
    def paths(self) -> set[Path]: ...  # noqa: D102
    def lines(self) -> Iterator[tuple[bytes, Source]]: ...  # noqa: D102


class Result(NamedTuple):
    """What a task made."""

    shards: list[ShardImage]
    refusals: list[dict[str, Any]]
    tally: Tally


class _Pending(NamedTuple):
    conversation: Conversation
    spans: list[Span]
    source: Source


class Compiler:
    """Compiles tasks in one process.

    Args:
        encoder: of the tokenizer, built in this process.
        layout: of the rows: `find_layout` of both.
        verdicts: says which pictures can be used.
        progress: called with the number of records done since the last call.
    """

    def __init__(
        self,
        config: CompileConfig,
        encoder: TextEncoder,
        layout: RowLayout,
        verdicts: ImageVerdicts,
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.encoder = encoder
        self.layout = layout
        self.verdicts = verdicts
        self.progress = progress
        self._limit = limit_of(config)
        self.render = find_prompter(config, self.encoder).render

    def run(self, task: Work, keep: Callable[[ShardImage], None] | None = None) -> Result:
        """Compile the records of a task.

        Args:
            keep: takes each shard when it is closed; without it they are in the result.
        """
        result = Result([], [], Tally())
        with rare_collections():
            self._run(task, result, keep or result.shards.append)
        return result

    def _run(self, task: Work, result: Result, keep: Callable[[ShardImage], None]) -> None:
        writer = ShardWriter(self.layout, self.config.dtype)
        for block in _blocks(task.lines()):
            for row in self._rows(block, result):
                self.verdicts.embed(row.img_path, writer)
                writer.write(row)
                if self._full(writer):
                    keep(writer.finish())
                    writer = ShardWriter(self.layout, self.config.dtype)
            self.progress(len(block))
        if len(writer):
            keep(writer.finish())
        self.verdicts.flush()

    def _full(self, writer: ShardWriter) -> bool:
        many = len(writer) >= self.config.shard_rows or writer.num_sources >= MAX_FILES
        return many or writer.num_bytes >= self.config.shard_megabytes << 20

    def _rows(self, block: list[tuple[bytes, Source]], result: Result) -> Iterator[Row]:
        pending = [entry for line, source in block if (entry := self._read(line, source, result))]
        samples = encode_batch([entry.spans for entry in pending], self.encoder, self.layout.num_patches)
        for entry, sample in zip(pending, samples, strict=True):
            try:
                parts = self._fitted(entry.conversation, sample, result.tally)
            except Refusal as refusal:
                _refuse(result, entry.source, refusal)
                continue
            result.tally.written += 1
            result.tally.text_only += entry.conversation.image is None
            for part in parts:
                row = lay_out(part, self.layout, entry.conversation.image, entry.source)
                result.tally.rows += 1
                result.tally.attended_tokens += row.length
                result.tally.loss_tokens += row.num_loss_tokens
                yield row

    def _read(self, line: bytes, source: Source, result: Result) -> _Pending | None:
        """Read one record as far as its spans, or count why it cannot be used."""
        result.tally.records += 1
        try:
            conversation, rules = parse(line)
            source = Source(source.file, source.line, conversation.id)
            validate(conversation)
            spans = self.render(conversation)
            if conversation.image is not None:
                self.verdicts.require(conversation.image)
        except Refusal as refusal:
            return _refuse(result, source, refusal)
        except ImageFault as fault:
            return _refuse(result, source, Refusal(fault.reason, str(fault), source.id), image=conversation.image)
        if rules:
            result.tally.normalised.update(rules)
        return _Pending(conversation, spans, source)

    def _fitted(self, conversation: Conversation, sample: Sample, tally: Tally) -> list[Sample]:
        if sample.image_start != self.layout.image_start_idx:
            raise AssertionError(
                f"{conversation.id}: image at {sample.image_start}, the layout says {self.layout.image_start_idx}"
            )
        if self._limit.excess(sample) <= 0:
            return [sample]
        parts = shorten(conversation, sample, self._limit, self.config.overlong, self._encode)
        tally.truncated += self.config.overlong == "truncate"
        tally.split += self.config.overlong == "split"
        return parts

    def _encode(self, conversation: Conversation) -> Sample:
        return encode(self.render(conversation), self.encoder, self.layout.num_patches)


def _blocks(lines: Iterable[tuple[bytes, Source]]) -> Iterator[list[tuple[bytes, Source]]]:
    block, size = [], 0
    for line, source in lines:
        block.append((line, source))
        size += len(line)
        if len(block) == BLOCK or size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


def _refuse(result: Result, source: Source, refusal: Refusal, **more: str | None) -> None:
    result.tally.refused[refusal.reason] += 1
    record_id = refusal.record_id or source.id
    entry = {"reason": refusal.reason, "detail": refusal.detail, "file": source.file, "line": source.line}
    result.refusals.append({**entry, "id": record_id, **more})
