"""Questions about pictures to records: what every question-and-answer dataset has in common.

For training, all questions of a picture become one record, in the order of the raw data, and pictures follow each
other in the order in which they are first asked about; the sentence that asks for the form of the answer stands behind
the first question, and again where the form changes. For evaluation each question is a record of its own, so that no
answer can be read off an earlier turn, with every reference answer and its kind.

DVQA asks 2.3 million questions and need not keep those of a picture together, so they wait in a temporary file: memory
holds three numbers a question.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from tempfile import TemporaryFile
from typing import BinaryIO

import msgspec
import numpy as np

from dataprep.conversation import IMAGE_TAG, Conversation, EvaluationRecord, Refusal, Turn, check
from dataprep.datasets.base import Duplicate, Item, Options, Part, Refused, Written
from dataprep.prompts import Form


class Question(msgspec.Struct, frozen=True, gc=False):
    """One question with its answers, ready to be asked."""

    file: str
    line: int
    id: str
    """The raw record's own id; with `file` and `line` it names the record where it is refused."""
    name: str
    """What tells it from the other questions of its split; part of the id of an evaluation record."""
    group: str
    """What makes one record for training, with the same picture; part of its id."""
    image: str | None
    """Image key; None for a question without a picture, which is never grouped."""
    text: str
    """What is asked, options included, without the picture's tag and the sentence about the form."""
    answer: str
    """What is trained; empty where the split has no answers."""
    form: Form = "short"
    answers: tuple[str, ...] = ()
    """Every reference answer; empty: only `answer`."""
    kind: str = ""
    """The dataset's own word for the kind of question."""
    options: tuple[str, ...] = ()
    """The options of a multiple-choice question."""
    rules: tuple[str, ...] = ()
    """Names of the rules that normalised it."""
    round: int = 0
    """Above 0 for a further answer to a question that was asked already: those go into records of their own."""


_encoder = msgspec.msgpack.Encoder()


def records(questions: Iterable[Question | Refused], name: str, part: Part, options: Options) -> Iterator[Item]:
    """Yield what becomes of the questions of a part.

    Args:
        questions: in the order of the raw data.
        name: the dataset's, with which ids begin.
    """
    prefix = f"{name}-{part.split}" if part.split else name
    if options.evaluation:
        yield from _evaluation(questions, prefix, options)
        return
    with TemporaryFile(dir=options.scratch) as file:
        spool = _Spool(file)
        for question in questions:
            if isinstance(question, Refused):
                yield question
            elif (refused := fault(question)) is None:
                if (unreadable := spool.add(question)) is not None:
                    yield unreadable
            elif not question.round:
                yield refused
        for group in spool.groups():
            yield from _group(group, prefix, options)


def fault(question: Question) -> Refused | None:
    """Return the refusal of a question that can neither be trained on nor scored."""
    place = (question.file, question.line, question.id)
    if not question.text.strip():
        return Refused("empty_question", "the question is empty", *place)
    if question.image is not None and IMAGE_TAG in question.text:
        return Refused("image_count", f"the question holds {IMAGE_TAG}", *place)
    if not question.answer.strip():
        return Refused("no_answer", "the answer is empty", *place)
    return None


def _group(questions: list[Question], prefix: str, options: Options) -> Iterator[Item]:
    """Yield the records of one picture, and its questions that come twice."""
    rounds: dict[int, list[Question]] = {}
    seen: set[tuple[str, str]] = set()
    asked_before: Counter[str] = Counter()
    for question in questions:
        if (question.text, question.answer) not in seen:
            seen.add((question.text, question.answer))
            # A question that was asked already, and answered otherwise, is not asked again in the same record.
            number = max(question.round, asked_before[question.text])
            asked_before[question.text] = number + 1
            rounds.setdefault(number, []).append(question)
        elif not question.round:
            yield Duplicate(question.file, question.line, question.id)
    size = options.max_questions or len(questions)
    number = 0
    for _, asked in sorted(rounds.items()):
        for start in range(0, len(asked), size):
            number += 1
            suffix = f"-{number}" if number > 1 else ""
            yield from _record(asked[start : start + size], f"{prefix}-{questions[0].group}{suffix}", options)


def _record(questions: list[Question], record_id: str, options: Options) -> Iterator[Item]:
    conversation = Conversation(record_id, questions[0].image, _turns(questions, options))
    try:
        check(conversation)
    except Refusal as refusal:
        yield from (Refused(refusal.reason, refusal.detail, q.file, q.line, q.id) for q in questions if not q.round)
        return
    counted = [question for question in questions if not question.round]
    yield Written(conversation, len(counted), tuple(rule for question in counted for rule in question.rules))


def _turns(questions: list[Question], options: Options) -> list[Turn]:
    turns: list[Turn] = []
    form: Form = "open"
    for question in questions:
        text = question.text if question.form == form else options.prompts.ask(question.text, question.form)
        form = question.form
        if not turns and question.image is not None:
            text = f"{IMAGE_TAG}\n{text}"
        turns += [Turn("human", text), Turn("gpt", question.answer)]
    return turns


def _evaluation(questions: Iterable[Question | Refused], prefix: str, options: Options) -> Iterator[Item]:
    names: set[str] = set()
    for question in questions:
        if isinstance(question, Refused):
            yield question
        elif question.round:
            continue
        elif question.name in names:
            detail = f"the id {question.name!r} came before"
            yield Refused("repeated_id", detail, question.file, question.line, question.id)
        else:
            names.add(question.name)
            content = _encoded(question)
            yield content if isinstance(content, Refused) else _evaluation_record(question, prefix, options)


def _encoded(question: Question) -> bytes | Refused:
    """Return a question as bytes, or its refusal: a file's name need not be UTF-8, and no record could hold it."""
    try:
        return _encoder.encode(question)
    except UnicodeEncodeError:
        return Refused("not_utf8", "a name or text is not UTF-8", question.file, question.line, question.id)


def _evaluation_record(question: Question, prefix: str, options: Options) -> Item:
    answers = list(question.answers or ([question.answer] if question.answer else []))
    refused = fault(question)
    if refused is not None and not (refused.reason == "no_answer" and not answers):
        return refused
    turns = _turns([question], options)
    asked = Conversation(f"{prefix}-{question.name}", question.image, [turns[0], Turn("gpt", (answers or ["?"])[0])])
    try:
        check(asked)
    except Refusal as refusal:
        return Refused(refusal.reason, refusal.detail, question.file, question.line, question.id)
    # A split without published answers is for submissions: the question is asked, and nothing stands behind it.
    turns = asked.turns if answers else asked.turns[:1]
    return Written(
        EvaluationRecord(asked.id, asked.image, turns, answers, question.kind, list(question.options)),
        rules=question.rules,
    )


class _Spool:
    """Questions on disk, to be had back picture by picture."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._groups: dict[str, int] = {}
        self._numbers, self._offsets = array("q"), array("q", [0])
        self._decoder = msgspec.msgpack.Decoder(Question)

    def add(self, question: Question) -> Refused | None:
        """Keep a question, or return its refusal."""
        content = _encoded(question)
        if isinstance(content, Refused):
            return content
        # A question without a picture shares its record with no other.
        key = f"{question.group}\0{question.image}" if question.image is not None else f"{len(self._numbers)}"
        self._numbers.append(self._groups.setdefault(key, len(self._groups)))
        self._file.write(content)
        self._offsets.append(self._offsets[-1] + len(content))
        return None

    def groups(self) -> Iterator[list[Question]]:
        """Yield the questions of each picture, in the order in which pictures first came."""
        numbers = np.array(self._numbers, np.int64)
        order = np.argsort(numbers, kind="stable")
        bounds = np.flatnonzero(np.diff(numbers[order], prepend=-1, append=-1))
        for start, stop in pairwise(bounds.tolist()):
            yield [self._read(index) for index in order[start:stop].tolist()]

    def _read(self, index: int) -> Question:
        begin, end = self._offsets[index], self._offsets[index + 1]
        self._file.seek(begin)
        return self._decoder.decode(self._file.read(end - begin))
