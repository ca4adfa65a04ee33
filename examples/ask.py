"""Ask an exported model the held-out questions, through transformers: `python examples/ask.py MODEL ROOT`.

The questions are asked twice: with their own pictures, and with the pictures shuffled among them. A model that looks
falls to the best constant answers the second time.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

#: As the training records asked for it (LLaVA-1.5's sentence for short answers).
FORMAT = "Answer the question using a single word or phrase."
MAX_ANSWER_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of right answers, 0 to 1, over `num_questions` held-out questions."""

    kind: str
    num_questions: int
    accuracy: float
    constant: float
    """What the best constant answer to this kind of question would score on these very questions."""
    shuffled: float
    """What the model scores when each question comes with another one's picture."""


def read_questions(root: Path, split: str) -> list[dict[str, str]]:
    """Read one split's questions: image, kind, question and answer."""
    with (root / "questions.jsonl").open(encoding="utf-8") as lines:
        questions = [json.loads(line) for line in lines]
    return [question for question in questions if question["split"] == split]


def best_constants(questions: Sequence[dict[str, str]]) -> dict[str, str]:
    """Find the most common answer of each kind; of several, the first in the alphabet."""
    counts: dict[str, Counter[str]] = {}
    for question in sorted(questions, key=lambda question: question["answer"]):
        counts.setdefault(question["kind"], Counter())[question["answer"]] += 1
    return {kind: answers.most_common(1)[0][0] for kind, answers in counts.items()}


def other_pictures(questions: Sequence[dict[str, str]]) -> list[str]:
    """Deal the pictures out again: each question gets the one of the question half a round away.

    A picture's questions stand together, so nobody keeps their own where there are at least two pictures.
    """
    images = [question["image"] for question in questions]
    half = len(images) // 2
    return images[half:] + images[:half]


def mark(
    questions: Sequence[dict[str, str]],
    answers: Sequence[str],
    shuffled_answers: Sequence[str],
    constants: dict[str, str],
) -> list[Score]:
    """Compare the answers with the labels, kind by kind and then over all questions."""
    constant_answers = [constants[question["kind"]] for question in questions]

    def share(given: Sequence[str], indices: Sequence[int]) -> float:
        return sum(given[index] == questions[index]["answer"] for index in indices) / len(indices)

    groups: dict[str, list[int]] = {kind: [] for kind in sorted(constants)}
    for index, question in enumerate(questions):
        groups[question["kind"]].append(index)
    groups["mean"] = list(range(len(questions)))
    columns = (answers, constant_answers, shuffled_answers)
    return [
        Score(kind, len(indices), *(share(given, indices) for given in columns))
        for kind, indices in groups.items()
        if indices
    ]


class Model:
    """An exported checkpoint, as any user of transformers would load it."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
        self.processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        # Prompts of different lengths are answered together: their ends, where answers begin, must be aligned.
        self.processor.tokenizer.padding_side = "left"

    def prompt(self, question: str) -> str:
        """Word a question as the processor's own chat template does."""
        content = [{"type": "image"}, {"type": "text", "text": f"{question}\n{FORMAT}"}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    @torch.inference_mode()
    def answer(self, questions: Sequence[str], pictures: Sequence[Path]) -> list[str]:
        """Answer each question about its picture, greedily."""
        images = [Image.open(picture).convert("RGB") for picture in pictures]
        prompts = [self.prompt(question) for question in questions]
        inputs = self.processor(images=images, text=prompts, padding=True, return_tensors="pt")
        ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS)
        new_ids = ids[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new_ids, skip_special_tokens=True)]


def answer_all(model: Model, root: Path, texts: Sequence[str], images: Sequence[str], batch_size: int) -> list[str]:
    """Answer questions in batches; image keys are relative to `root`."""
    answers: list[str] = []
    for start in range(0, len(texts), batch_size):
        batch = slice(start, start + batch_size)
        answers += model.answer(texts[batch], [root / image for image in images[batch]])
    return answers


def table(scores: Sequence[Score]) -> str:
    """Lay the scores out for reading."""
    lines = [f"{'kind':<12} {'questions':>9} {'accuracy':>9} {'constant':>9} {'shuffled':>9}"]
    for score in scores:
        shares = f"{score.accuracy:>9.3f} {score.constant:>9.3f} {score.shuffled:>9.3f}"
        lines.append(f"{score.kind:<12} {score.num_questions:>9} {shares}")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, ask, print the table and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder that `llava-convert trainer hf` wrote")
    parser.add_argument("root", type=Path, help="data root that `charts.py` wrote")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--json", type=Path, help="file for the scores")
    options = parser.parse_args()

    questions = read_questions(options.root, "test")
    texts = [question["question"] for question in questions]
    model = Model(options.model)
    answers, blind = (
        answer_all(model, options.root, texts, images, options.batch_size)
        for images in ([question["image"] for question in questions], other_pictures(questions))
    )
    scores = mark(questions, answers, blind, best_constants(questions))
    print(table(scores))
    if options.json:
        options.json.write_text(json.dumps([asdict(score) for score in scores], indent=1))


if __name__ == "__main__":
    main()
