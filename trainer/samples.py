"""Answers to a few questions of the shards, every so many steps: what the numbers of a run look like in words.

A prompt is a row's attended tokens before its first trained one, so it is what the model is trained on to the token.
Answers are greedy, and each token takes a whole forward pass of the model as it is trained (sharded, adapted,
compiled): nothing of it is copied, and all ranks run as many passes. The run is not changed by it, not in the last bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataprep.images import ImageFault
from dataprep.shards import RowLayout, ShardError, ShardReader, StoredRow
from trainer.batches import collate, name_of, read_picture
from trainer.config import SamplesConfig, TrainConfig
from trainer.distributed import World, gather_objects, raise_faults, sum_over_ranks
from trainer.heldout import chosen_rows, evaluating
from trainer.model import LlavaConfig, LlavaModel
from trainer.packing import deal


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """One question of the shards, what the model said, and what it is to learn."""

    step: int
    """Optimizer steps that were done."""
    source: str
    """The record, as the shards name it."""
    image: str | None
    question: str
    """The prompt behind the picture, or without its system prompt; empty for a caption."""
    answer: str
    truth: str
    ended: bool
    """False: cut at `max_new_tokens`."""

    def lines(self, num_steps: int) -> str:
        """Return the lines for people."""
        picture = f", {self.image}" if self.image else ""
        cut = "" if self.ended else " ..."
        return (
            f"sample after step {self.step}/{num_steps}: {self.source}{picture}\n"
            f"  question: {_indented(self.question)}\n"
            f"  answer:   {_indented(self.answer)}{cut}\n"
            f"  truth:    {_indented(self.truth)}"
        )


def _indented(text: str) -> str:
    # Whatever a model writes stays on its own lines, and steers no terminal.
    lines = ("".join(c if c.isprintable() else "\ufffd" for c in line) for line in text.splitlines())
    return "\n            ".join(lines)


def is_due(step: int, config: SamplesConfig) -> bool:
    """Return whether answers are asked for after so many steps."""
    return config.every is not None and step > 0 and step % config.every == 0


@dataclass(frozen=True, slots=True)
class _Question:
    row: StoredRow
    picture: NDArray[np.uint8] | None
    prompt: list[int]
    truth: list[int]
    """The first answer, with the token that ends it where the row holds that."""
    max_new: int
    """Tokens that the answer may have: the model's positions and `max_tokens` allow no more."""


class Sampler:
    """Asks a model the same few questions again and again."""

    def __init__(
        self, rows: ShardReader, held_out: ShardReader | None, config: TrainConfig, model: LlavaConfig, world: World
    ) -> None:
        """Read the questions, from the held-out shards where there are any.

        Raises:
            IntegrityError: a row or its picture cannot be read.
            TrainError: the tokenizer cannot be used.
        """
        from trainer.inference.drafts import open_encoder

        source = rows if held_out is None else held_out
        self._layout, self._config, self._world = source.layout, config, world
        self._encoder = open_encoder(config.model / "tokenizer", config.model)
        fault, self._questions = None, []
        try:
            self._questions = _read_questions(source, config, model)
        except (ShardError, ImageFault, OSError) as error:
            fault = str(error)
        raise_faults("samples", fault, world)
        costs = np.array([len(asked.prompt) + asked.max_new - 1 for asked in self._questions], dtype=np.int64)
        self._dealt = deal(costs, world.size, config.max_tokens) if len(costs) else []

    def run(self, model: LlavaModel, step: int, stop: Callable[[], bool]) -> list[SampleAnswer]:
        """Return the answers after `step` steps, the same on all ranks, which call this together.

        `stop`, asked by all ranks together, cuts them short.
        """
        mine: list[tuple[int, SampleAnswer]] = []
        with evaluating(model):
            for ranks in self._dealt:
                chosen = [int(number) for number in ranks[self._world.rank]]
                written = self._write(model, [self._questions[number] for number in chosen], stop)
                mine += [
                    (number, self._answer(step, self._questions[number], ids))
                    for number, ids in zip(chosen, written, strict=True)
                ]
        everyones = [found for theirs in gather_objects(mine, self._world) for found in theirs]
        return [answer for _, answer in sorted(everyones, key=lambda found: found[0])]

    def _write(self, model: LlavaModel, questions: Sequence[_Question], stop: Callable[[], bool]) -> list[list[int]]:
        """Return the tokens of this rank's answers, the ones that end them included."""
        written: list[list[int]] = [[] for _ in questions]
        for _ in range(self._config.samples.max_new_tokens):
            going = [
                number
                for number, (asked, ids) in enumerate(zip(questions, written, strict=True))
                if len(ids) < asked.max_new and not (ids and self._ends(asked, ids[-1]))
            ]
            (num_going,) = sum_over_ranks([float(len(going))])
            if not num_going or stop():
                break
            # A rank without a question reads one token that is nobody's.
            rows = [_as_row(questions[number], written[number]) for number in going]
            pictures = [picture for n in going if (picture := questions[n].picture) is not None]
            micro_batch = collate(rows, pictures, self._layout, pad_to_multiple=self._config.pad_to_multiple)
            batch = micro_batch.to(self._world.device)
            tokens = model(batch.inputs, batch.loss_positions).float().argmax(dim=-1).tolist()
            for number, token in zip(going, tokens, strict=True):
                written[number].append(token)
        return written

    def _ends(self, asked: _Question, token: int) -> bool:
        """Return whether a token ends an answer: eos, or the control token or newline that ends the true one."""
        if token == self._layout.eos_id:
            return True
        return token == asked.truth[-1] and self._encoder.bytes_of(token) in (b"", b"\n")

    def _answer(self, step: int, asked: _Question, ids: Sequence[int]) -> SampleAnswer:
        from trainer.inference.drafts import text_of

        behind = self._layout.image_start_idx + self._layout.num_patches if asked.row.has_image else 0
        question = text_of(self._encoder, asked.prompt[behind:]).removeprefix(self._layout.system_prompt).strip()
        return SampleAnswer(
            step=step,
            source=name_of(asked.row),
            image=asked.row.img_path,
            question=question,
            answer=text_of(self._encoder, ids),
            truth=text_of(self._encoder, asked.truth),
            ended=bool(ids) and self._ends(asked, ids[-1]),
        )


def _read_questions(source: ShardReader, config: TrainConfig, model: LlavaConfig) -> list[_Question]:
    learned = np.flatnonzero(source.num_loss_tokens)
    chosen = learned[chosen_rows(len(learned), config.samples.count)]
    return [_read_question(source, int(number), config, model) for number in chosen]


def _read_question(source: ShardReader, number: int, config: TrainConfig, model: LlavaConfig) -> _Question:
    row = source[number]
    attended = np.flatnonzero(~row.key_padding_mask)
    learned = row.loss_mask[attended]
    first = int(learned.argmax())
    stop = first + int(np.append(learned[first:], False).argmin())
    prompt = row.text_input_ids[attended[: first + 1]].tolist()
    picture = _picture(source, number, row, source.layout, config.data.image_dir, config.data.image_pixels)
    language = model.language
    positions = min(language.max_position_embeddings, language.sliding_window or language.max_position_embeddings)
    # The last token of an answer is not read.
    room = min(positions, config.max_tokens) - len(prompt) + 1
    max_new = min(config.samples.max_new_tokens, room)
    return _Question(row, picture, prompt, row.labels[attended[first:stop]].tolist(), max_new)


def _picture(
    source: ShardReader, number: int, row: StoredRow, layout: RowLayout, image_dir: Path | None, pixels: str
) -> NDArray[np.uint8] | None:
    return read_picture(row, layout, image_dir, source.picture(number), pixels) if row.has_image else None


def _as_row(asked: _Question, written: Sequence[int]) -> StoredRow:
    """Return prompt and answer so far as a row whose last token is the one to be predicted from."""
    ids = np.array([*asked.prompt, *written], dtype=np.int32)
    nothing = np.zeros(len(ids), dtype=bool)
    last = nothing.copy()
    last[-1] = True
    row = asked.row
    return StoredRow(ids, last, np.zeros_like(ids), nothing, len(ids), row.has_image, row.img_path, row.source)
