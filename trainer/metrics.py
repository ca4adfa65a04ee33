"""What is said of every step: a line for people, JSON for machines."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from trainer.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """One optimizer step, over all ranks."""

    step: int
    """Counted from 1."""
    epoch: int
    loss: float
    """Mean cross entropy of the step's trained tokens, before the step."""
    grad_norm: float
    """Before clipping."""
    lr: float
    num_samples: int
    num_loss_tokens: int
    useful_tokens: int
    computed_tokens: int
    seconds: float
    """Of the step, waiting for data included."""
    data_seconds: float
    """Of waiting for data."""
    memory_gb: float | None
    """Most that was allocated on rank 0's GPU so far, in 10^9 bytes; None on a CPU."""

    def derived(self) -> dict[str, float]:
        """Return rates and shares: tokens and samples a second, packing efficiency, share of time lost on data."""
        return {
            "useful_tokens_per_second": self.useful_tokens / self.seconds,
            "computed_tokens_per_second": self.computed_tokens / self.seconds,
            "samples_per_second": self.num_samples / self.seconds,
            "packing_efficiency": self.useful_tokens / self.computed_tokens,
            "data_wait": self.data_seconds / self.seconds,
        }

    def to_json(self) -> str:
        """Return one line of `metrics.jsonl`; its numbers read back exactly."""
        return json.dumps({**asdict(self), **self.derived()})

    def line(self, num_steps: int, seconds_left: float) -> str:
        """Return the line for people."""
        rates = self.derived()
        memory = "" if self.memory_gb is None else f"  {self.memory_gb:.1f} GB"
        return (
            f"step {self.step}/{num_steps}  loss {self.loss:.4f}  grad norm {self.grad_norm:.3f}  lr {self.lr:.2e}"
            f"  {rates['useful_tokens_per_second']:,.0f} useful tok/s"
            f" ({rates['computed_tokens_per_second']:,.0f} computed)"
            f"  {rates['samples_per_second']:,.1f} samples/s  packing {rates['packing_efficiency']:.4f}"
            f"  data wait {rates['data_wait']:.1%}{memory}  ETA {_clock(seconds_left)}"
        )


class MetricsLog:
    """Writes `metrics.jsonl` and prints lines, or moves a bar where a person watches a terminal."""

    def __init__(
        self, path: Path, first_step: int, num_steps: int, log_every: int, stream: TextIO | None = None
    ) -> None:
        self._num_steps = num_steps
        self._log_every = log_every
        self._stream = stream or sys.stdout
        self._seconds_per_step: float | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        forget_steps_after(path, first_step)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._bar = None
        if self._stream.isatty():
            self._bar = tqdm(total=num_steps, initial=first_step, unit="step", file=self._stream, dynamic_ncols=True)

    def write(self, metrics: StepMetrics) -> None:
        """Record one step."""
        self._file.write(metrics.to_json() + "\n")
        # Steps differ in size; an average over some twenty of them is a steady guess of what is left.
        before = metrics.seconds if self._seconds_per_step is None else self._seconds_per_step
        self._seconds_per_step = 0.95 * before + 0.05 * metrics.seconds
        if self._bar is not None:
            self._bar.update(1)
        last = metrics.step == self._num_steps
        if metrics.step % self._log_every == 0 or last:
            self.say(metrics.line(self._num_steps, (self._num_steps - metrics.step) * self._seconds_per_step))

    def say(self, text: str) -> None:
        """Print a line of text."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Close the file and the bar."""
        self._file.close()
        if self._bar is not None:
            self._bar.close()


def forget_steps_after(path: Path, step: int) -> None:
    """Take the lines of steps after `step` out of a `metrics.jsonl`: a resumed run does those steps again.

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
    temporary = path.with_name(f".{path.name}.unfinished")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)


def _step_of(line: str) -> int | None:
    """Return the step of a line; None where it is none."""
    try:
        metrics = json.loads(line)
    except ValueError:
        return None
    step = metrics.get("step") if isinstance(metrics, dict) else None
    return step if isinstance(step, int) else None


def _clock(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds_left:02d}"
