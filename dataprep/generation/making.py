"""From captions and boxes to LLaVA jsonl: what is asked, what it will cost, what becomes of the replies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dataprep.conversation import IMAGE_TAG, Conversation, Refusal, Turn, check, encode_line
from dataprep.datasets.base import Item, Refused, Written
from dataprep.generation.answers import Pair, pairs_of
from dataprep.generation.objects import supported, unsupported
from dataprep.generation.prompts import GENERATION_PROMPTS, GenerationPrompt
from dataprep.generation.sources import Record
from dataprep.llm.budget import Message, Usage, expected
from dataprep.llm.journal import Reply
from dataprep.preprocess import Accounting
from dataprep.shards.writer import whole_file

#: The name of the rule that lets a conversation through with a flag.
FLAGGED = "unsupported_object_flagged"


class GeneratedRecord(Conversation, frozen=True, omit_defaults=True):
    """A conversation that a language model wrote. Programs that read LLaVA jsonl read it too."""

    prompt: str = ""
    """Name and version of what was asked."""
    model: str = ""
    """What the endpoint says has answered."""
    unsupported_objects: list[str] = []
    """Objects that it names and that neither captions nor boxes have."""


@dataclass(frozen=True)
class Job:
    """What is to be made.

    Args:
        refuse_objects: refuse what names unsupported objects, instead of flagging it.
    """

    sources: Sequence[Record | Refused]
    prompts: Sequence[GenerationPrompt]
    seed: int = 0
    refuse_objects: bool = False

    def requests(self) -> list[list[Message]]:
        """Return what is asked: of each picture that can be used, each kind."""
        good = (source for source in self.sources if isinstance(source, Record))
        return [list(prompt.messages(record)) for record in good for prompt in self.prompts]

    def estimate(self, requests: Iterable[Sequence[Message]]) -> Usage:
        """Return about what requests of this job will spend."""
        lengths = {prompt.system: prompt.about_tokens for prompt in self.prompts}
        return sum((expected(messages, lengths[messages[0]["content"]]) for messages in requests), Usage())

    def items(self, replies: Sequence[Reply | None]) -> Iterator[Item]:
        """Yield what became of each picture and kind, in the order of the input.

        Args:
            replies: to `requests()`.
        """
        left = iter(replies)
        for source in self.sources:
            for prompt in self.prompts:
                if isinstance(source, Refused):
                    yield source
                else:
                    yield self._item(source, prompt, next(left))

    def _item(self, record: Record, prompt: GenerationPrompt, reply: Reply | None) -> Item:
        try:
            pairs, rules = pairs_of(reply, prompt, record, self.seed)
            known = supported(record.captions, [box.category for box in record.boxes])
            named = unsupported(pairs, known)
            if named and self.refuse_objects:
                raise Refusal("unsupported_object", ", ".join(named), record.id)
            conversation = _conversation(record, prompt, pairs, reply.model if reply else "", named)
            check(conversation)
        except Refusal as refusal:
            return Refused(refusal.reason, f"{prompt.kind}: {refusal.detail}", record.file, record.line, record.id)
        return Written(conversation, rules=(*rules, *([FLAGGED] if named else [])))


def prompts_of(kinds: Sequence[str]) -> list[GenerationPrompt]:
    """Return the prompts of some kinds, in the order of the table; of all where none is named."""
    return [prompt for kind, prompt in GENERATION_PROMPTS.items() if kind in kinds or not kinds]


def chosen(sources: Iterable[Record | Refused], limit: int | None) -> list[Record | Refused]:
    """Return the pictures up to the limit, ids that come again refused: results could not be told apart."""
    seen: set[str] = set()
    found: list[Record | Refused] = []
    for source in islice(sources, limit):
        if isinstance(source, Record) and source.id in seen:
            source = Refused("repeated_id", "comes again", source.file, source.line, source.id)
        elif isinstance(source, Record):
            seen.add(source.id)
        found.append(source)
    return found


def write(items: Iterable[Item], output: Path, refused: Path) -> Accounting:
    """Write the conversations and the refusals; each file appears when it is whole, the first only if it has a line.

    Raises:
        AssertionError: the items do not add up.
    """
    accounting = Accounting()
    for path in (output, refused):
        path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[bytes] = []
    with whole_file(refused) as bad:
        for item in items:
            accounting.count(item)
            if isinstance(item, Written):
                lines.append(encode_line(item.conversation))
            elif isinstance(item, Refused):
                bad.write(json.dumps(item._asdict(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
    if not accounting.balanced():
        raise AssertionError(f"records do not add up: {accounting}")
    if lines:
        with whole_file(output) as good:
            good.writelines(lines)
    return accounting


def made_from(job: Job, sources: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the content of the output, but for the endpoint's answers."""
    prompts = {prompt.kind: {"version": prompt.version, "fingerprint": prompt.fingerprint} for prompt in job.prompts}
    return {**sources, "prompts": prompts, "seed": job.seed, "refuse_objects": job.refuse_objects}


def _conversation(
    record: Record, prompt: GenerationPrompt, pairs: Sequence[Pair], model: str, named: list[str]
) -> GeneratedRecord:
    turns = [Turn(role, text) for pair in pairs for role, text in zip(("human", "gpt"), pair, strict=True)]
    turns[0] = Turn("human", f"{IMAGE_TAG}\n{turns[0].value}")
    return GeneratedRecord(f"{record.id}-{prompt.kind}", record.image, turns, prompt.name, model, named)
