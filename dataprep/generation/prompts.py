"""What the language model is asked for: LLaVA's three kinds of data, each with an example.

The kinds and the way (a system message, an example as a finished exchange, then the picture's captions and boxes) are
those of LLaVA, section 3 (https://arxiv.org/abs/2304.08485); the wording is ours. Raise `version` with every change: it
stands in what was made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from dataprep.generation.sources import Box, Record


@dataclass(frozen=True)
class GenerationPrompt:
    """How one kind of data is asked for."""

    kind: str
    version: int
    system: str
    example: Record
    answer: str
    """To the example."""
    turns: tuple[int, int]
    """The fewest and the most pairs of question and answer that are taken."""
    min_words: int
    """Of an answer."""
    about_tokens: int
    """How long an answer is as a rule, for the estimate of the cost."""
    questions: tuple[str, ...] = ()
    """Where the model writes the answer alone, one of these is its question."""

    @property
    def name(self) -> str:
        """Name and version."""
        return f"{self.kind}/{self.version}"

    @property
    def fingerprint(self) -> str:
        """A hash of all words."""
        words = "\0".join([self.system, shown(self.example), self.answer, *self.questions])
        return hashlib.sha256(words.encode("utf-8")).hexdigest()[:16]

    def messages(self, record: Record) -> list[dict[str, str]]:
        """Return the request for one picture."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": shown(self.example)},
            {"role": "assistant", "content": self.answer},
            {"role": "user", "content": shown(record)},
        ]


def shown(record: Record) -> str:
    """Return what the language model is given in place of the picture: captions, a blank line, then boxes."""
    return "\n".join([*record.captions, *([""] if record.boxes else []), *map(_shown_box, record.boxes)])


def _shown_box(box: Box) -> str:
    return f"{box.category}: [{', '.join(f'{edge:.3f}' for edge in box.edges)}]"


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return "\n".join(json.dumps({"question": question, "answer": answer}) for question, answer in pairs)


_GIVEN = (
    "You will be given what is known of one picture: a few sentences by different people, and, where they are had, its"
    " objects as `name: [left, top, right, bottom]`, as shares of the width and height from the upper left corner. You"
    " cannot see the picture, but write as somebody who looks at it: never say that you were given sentences, captions,"
    " boxes, coordinates or any text, and never quote numbers of a position. Name only objects that are given. Write"
    " plain English without lists, headings or any other markup."
)

_JSON = (
    ' Write nothing but one JSON object a line, {"question": "...", "answer": "..."}, without anything before,'
    " between or after."
)

_EXAMPLE = Record(
    id="example",
    image="example.jpg",
    captions=[
        "A woman in a yellow raincoat walks a brown dog along a wet pier.",
        "A person with a dog on a wooden pier next to two small boats.",
        "Someone walking their dog in the rain by the water.",
    ],
    boxes=[
        Box("person", (0.41, 0.22, 0.57, 0.81)),
        Box("dog", (0.58, 0.6, 0.72, 0.84)),
        Box("boat", (0.02, 0.38, 0.21, 0.52)),
        Box("boat", (0.75, 0.36, 0.93, 0.49)),
    ],
)

CONVERSATION = GenerationPrompt(
    kind="conversation",
    version=1,
    system=(
        f"{_GIVEN} Write a talk of five questions and answers between a person who asks about the picture and an"
        " assistant who sees it. Ask about what kinds of objects there are, how many, what they do, where they are, and"
        " how they lie to each other, and at least once about something that takes a thought. Ask only what can be"
        f" answered with certainty, and answer in one to three full sentences.{_JSON}"
    ),
    example=_EXAMPLE,
    answer=_pairs(
        [
            ("What is the woman wearing?", "She is wearing a yellow raincoat."),
            ("What animal is with her?", "A brown dog is walking beside her."),
            ("How many boats can be seen?", "Two small boats can be seen on the water."),
            (
                "Where are the boats in relation to the woman?",
                "One boat lies to the left of the woman and the other one to her right, both a little farther away.",
            ),
            (
                "Why does the pier look dark and shiny?",
                "The pier is wet, and the woman wears a raincoat, so it has been raining on the wood.",
            ),
        ]
    ),
    turns=(2, 10),
    min_words=1,
    about_tokens=350,
)

DETAIL = GenerationPrompt(
    kind="detail",
    version=1,
    system=(
        f"{_GIVEN} Describe the picture in detail, in one or two paragraphs of about a hundred words: what it shows as"
        " a whole, then its objects, how many they are, what they do, and where they are in the picture and to each"
        " other. Write the description alone."
    ),
    example=_EXAMPLE,
    answer=(
        "The picture shows a rainy day at the water. In the middle, a woman in a yellow raincoat walks along a wooden"
        " pier whose planks are dark and wet. A brown dog keeps close to her on the right, at the height of her knees."
        " Behind them two small boats lie on the water, one near the left edge of the picture and the other one near"
        " the right edge, both a little above the middle. The bright yellow of the coat stands out from the grey around"
        " it, and apart from the woman and her dog the pier is empty."
    ),
    turns=(1, 1),
    min_words=30,
    about_tokens=250,
    questions=(
        "Describe this picture in detail.",
        "What can be seen in this picture? Tell me everything that matters.",
        "Please give a thorough description of the image.",
        "Can you describe the scene, its objects and where they are?",
        "Walk me through what this photo shows.",
        "Write a detailed account of this image.",
        "What is going on in this picture? Describe it as fully as you can.",
        "Explain to somebody who cannot see it what this image shows.",
    ),
)

REASONING = GenerationPrompt(
    kind="reasoning",
    version=1,
    system=(
        f"{_GIVEN} Write one question about the picture that cannot be answered by naming what is in it, but takes"
        " knowledge of the world or several steps of thought: why something is so, what may happen next, what somebody"
        " should take care of. Do not ask about what is uncertain. Answer it in a paragraph that gives the reasons step"
        f" by step and starts from what can be seen.{_JSON}"
    ),
    example=_EXAMPLE,
    answer=_pairs(
        [
            (
                "What should the woman take care of on her walk?",
                "She should take care not to slip. The wood of the pier is wet from the rain, and wet planks give the"
                " feet little hold. The dog walks close beside her, and a sudden pull could make her lose her balance."
                " Since there is water on both sides of the pier, it is best to walk slowly, to keep to the middle and"
                " to hold the dog on a short lead.",
            )
        ]
    ),
    turns=(1, 1),
    min_words=20,
    about_tokens=250,
)

#: By kind, in the order in which they are asked for.
GENERATION_PROMPTS = {prompt.kind: prompt for prompt in (CONVERSATION, DETAIL, REASONING)}
