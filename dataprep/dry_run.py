"""What a run would make, told from a sample of its input and without writing anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dataprep.pipeline import Job, input_files, make_compiler
from dataprep.plan import InputFile, Segment, Task

#: Places of the input that are looked at, and records read at each.
PLACES = 8
RECORDS = 128


def forecast(job: Job) -> dict[str, Any]:
    """Compile a sample spread over the input; return counts scaled to the whole."""
    files = input_files(job.inputs)
    total = sum(file.num_lines for file in files)
    compiler = make_compiler(job, remember=False)
    begun = time.perf_counter()
    result = compiler.run(Task(0, _sample(files)))
    seconds = time.perf_counter() - begun
    tally = result.tally
    scale = total / max(tally.records, 1)
    num_bytes = sum(len(shard.content) for shard in result.shards)
    return {
        "records": total,
        "sampled": tally.records,
        "rows": round(tally.rows * scale),
        "refused": {reason: round(count * scale) for reason, count in tally.refused.items()},
        "truncated": round(tally.truncated * scale),
        "text_only": round(tally.text_only * scale),
        "tokens_a_row": round(tally.attended_tokens / max(tally.rows, 1)),
        "trained_tokens_a_row": round(tally.loss_tokens / max(tally.rows, 1)),
        "megabytes": round(num_bytes * scale / 1e6, 1),
        "records_a_second_and_worker": round(tally.records / seconds),
        "image_start_idx": compiler.layout.image_start_idx,
    }


def _sample(files: Sequence[InputFile]) -> tuple[Segment, ...]:
    """Take `RECORDS` lines at `PLACES` places, evenly over all files."""
    places = [(file, number) for file in files for number in range(len(file.line_starts))]
    chosen = places[:: max(1, len(places) // PLACES)][:PLACES]
    return tuple(_first_lines(file, number) for file, number in chosen)


def _first_lines(file: InputFile, number: int) -> Segment:
    from dataprep.plan import MIN_RECORDS

    start = file.line_starts[number]
    stop = start
    with open(file.path, "rb") as lines:
        lines.seek(start)
        for _, line in zip(range(RECORDS), lines, strict=False):
            stop += len(line)
    return Segment(file.path, file.name, start, stop, number * MIN_RECORDS + 1)
