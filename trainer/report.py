"""How a run is shown: lines for people, JSON lines for machines, trackers for those who ask.

```
OUTPUT_DIR/metrics.jsonl      a line for every optimizer step, each step once however often the run was stopped
OUTPUT_DIR/evaluations.jsonl  a line for every evaluation
OUTPUT_DIR/samples.jsonl      a line for every answer that `samples` asks for
```
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from dataprep.shards import publish
from trainer.errors import IntegrityError
from trainer.metrics import EvaluationMetrics, StepMetrics, to_json
from trainer.samples import SampleAnswer
from trainer.trackers import Tracker

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
SAMPLES = "samples.jsonl"


def _never(step: int) -> int:
    return 0


class MetricsLog:
    """Writes the JSON lines and prints, or moves a bar where a person watches a terminal.

    Args:
        folder: of the run.
        done: steps that are done; lines of later ones are of a run that was killed, and are taken out.
        evaluated: the step of the last evaluation that counts; lines of later ones are taken out.
        evaluations_left: how many evaluations come after a step, for the time that is left.
        trackers: are told every number too, and closed at the end.
    """

    def __init__(
        self,
        folder: Path,
        done: int,
        num_steps: int,
        log_every: int,
        evaluated: int = 0,
        evaluations_left: Callable[[int], int] = _never,
        trackers: Sequence[Tracker] = (),
        stream: TextIO | None = None,
    ) -> None:
        self._num_steps = num_steps
        self._log_every = log_every
        self._evaluations_left = evaluations_left
        self._trackers = trackers
        self._stream = stream or sys.stdout
        self._seconds_per_step: float | None = None
        self._seconds_per_evaluation = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        forget_steps_after(folder / METRICS, done)
        forget_steps_after(folder / EVALUATIONS, evaluated)
        forget_steps_after(folder / SAMPLES, done)
        self._steps = open(folder / METRICS, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._evaluations_path, self._samples_path = folder / EVALUATIONS, folder / SAMPLES
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(total=num_steps, initial=done, unit="step", file=self._stream, dynamic_ncols=True)

    def write(self, metrics: StepMetrics) -> None:
        """Record one step."""
        values = metrics.values()
        self._steps.write(to_json(values) + "\n")
        for tracker in self._trackers:
            tracker.write("train", metrics.step, values)
        # Steps differ in size; an average over some twenty of them is a steady guess of what is left.
        before = metrics.seconds if self._seconds_per_step is None else self._seconds_per_step
        self._seconds_per_step = 0.95 * before + 0.05 * metrics.seconds
        if self._bar is not None:
            self._bar.update(1)
        if metrics.step % self._log_every == 0 or metrics.step == self._num_steps:
            self.say(metrics.line(self._num_steps, self._seconds_left(metrics.step, self._seconds_per_step)))

    def _seconds_left(self, step: int, seconds_per_step: float) -> float:
        evaluations = self._evaluations_left(step) * self._seconds_per_evaluation
        return (self._num_steps - step) * seconds_per_step + evaluations

    def evaluated(self, metrics: EvaluationMetrics) -> None:
        """Record one evaluation."""
        with open(self._evaluations_path, "a", encoding="utf-8") as file:
            file.write(to_json(metrics.values()) + "\n")
        for tracker in self._trackers:
            tracker.write("evaluation", metrics.step, metrics.values())
        self._seconds_per_evaluation = metrics.seconds
        self.say(metrics.line(self._num_steps))

    def sampled(self, answers: Sequence[SampleAnswer]) -> None:
        """Record some answers."""
        with open(self._samples_path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(answer), ensure_ascii=False) + "\n" for answer in answers)
        for answer in answers:
            self.say(answer.lines(self._num_steps))

    def say(self, text: str) -> None:
        """Print a line of text."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Close files, trackers and the bar."""
        self._steps.close()
        if self._bar is not None:
            self._bar.close()
        for tracker in self._trackers:
            tracker.close()


def forget_steps_after(path: Path, step: int) -> None:
    """Take the lines of steps after `step` out of a file of metrics: a resumed run does those steps again.

    Raises:
        IntegrityError: a line is damaged. (The last may be cut short, when the run was killed; it is taken out.)
    """
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    steps = [_step_of(line) for line in lines]
    kept = []
    for number, (line, found) in enumerate(zip(lines, steps, strict=True), start=1):
        if found is None and number < len(lines):
            raise IntegrityError(f"{path}:{number}: expected a step's metrics, found {line[:40]}; remove the line")
        if found is not None and found <= step:
            kept.append(line)
    publish(path, "".join(line + "\n" for line in kept).encode())


def _step_of(line: str) -> int | None:
    """Return the step of a line; None where it is none."""
    try:
        metrics = json.loads(line)
    except ValueError:
        return None
    step = metrics.get("step") if isinstance(metrics, dict) else None
    return step if isinstance(step, int) else None
