"""What a run would make, told from a sample of its input and without writing anything.

The sample is compiled for real: pictures decoded, texts tokenised, rows laid out and compressed. What is said of the
whole is scaled from it and marked so; only the number of records is counted (blank lines included).
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dataprep.conversation import placed_lines
from dataprep.pipeline import Job, input_files, make_compiler
from dataprep.plan import MIN_RECORDS, InputFile, Segment, Task

#: Places of the input that are looked at, and records read at each.
PLACES = 32
RECORDS = 32

#: Characters of an example that are shown.
MAX_EXAMPLE = 160


def forecast(job: Job, workers: int = 1) -> dict[str, Any]:
    """Compile a sample spread over the input.

    Returns:
        `records` of the whole input and `sampled`, those that were compiled; `in_the_sample` (counted) and
        `in_all` (scaled, exact where everything was sampled); `not_shown`: options whose effect no sample shows;
        `layout`; `run`: seconds, bytes of memory and disk.
    """
    begun = time.perf_counter()
    files = input_files(job.inputs)
    surveyed = time.perf_counter()
    total = sum(file.num_lines for file in files)
    compiler = make_compiler(job, remember=False)
    ready = time.perf_counter()
    result = compiler.run(Task(0, sample_of(files)))
    seconds = time.perf_counter() - ready
    tally = result.tally
    scale = total / max(tally.records, 1)
    num_bytes = sum(len(shard.content) for shard in result.shards)
    counted = {"rows": tally.rows, "text_only": tally.text_only, "truncated": tally.truncated, "split": tally.split}
    return {
        "records": total,
        "sampled": tally.records,
        "in_the_sample": {
            **counted,
            "refused": dict(tally.refused),
            "examples": _examples(result.refusals),
            "tokens_a_row": round(tally.attended_tokens / max(tally.rows, 1), 1),
            "trained_tokens_a_row": round(tally.loss_tokens / max(tally.rows, 1), 1),
            "bytes": num_bytes,
            "records_a_second_and_worker": round(tally.records / seconds, 1),
        },
        "in_all": {
            **{name: round(count * scale) for name, count in counted.items()},
            "refused": {reason: round(count * scale) for reason, count in tally.refused.items()},
            "attended_tokens": round(tally.attended_tokens * scale),
            "trained_tokens": round(tally.loss_tokens * scale),
        },
        "not_shown": _not_shown(job),
        "layout": {
            "image_start_idx": compiler.layout.image_start_idx,
            "max_seq_length": compiler.layout.max_seq_length,
            "template": compiler.layout.template,
        },
        "run": {
            "workers": workers,
            "seconds": round(surveyed - begun + seconds * scale / workers, 1),
            "memory_bytes": _memory(job, num_bytes / max(tally.rows, 1), workers),
            "disk_bytes": round(num_bytes * scale),
            "disk_free_bytes": _free(job.output),
        },
    }


def sample_of(files: Sequence[InputFile]) -> tuple[Segment, ...]:
    """Take `RECORDS` lines at each of `PLACES` places, evenly over all files; everything where that is no more."""
    if sum(file.num_lines for file in files) <= PLACES * RECORDS:
        return tuple(Segment(file.path, file.name, 0, file.num_bytes, 1) for file in files if file.num_bytes)
    places = [
        (file, number) for file in files for number, start in enumerate(file.line_starts) if start < file.num_bytes
    ]
    count = min(PLACES, len(places))
    # In the middle of equal stretches: the first lines of a file are often of one kind.
    chosen = [places[(2 * number + 1) * len(places) // (2 * count)] for number in range(count)]
    return tuple(_first_lines(file, number, PLACES * RECORDS // count) for file, number in chosen)


def _first_lines(file: InputFile, number: int, count: int) -> Segment:
    start = file.line_starts[number]
    begins = [begin for begin, _ in islice(placed_lines(file.path, start), min(count, MIN_RECORDS) + 1)]
    stop = begins[-1] if len(begins) > min(count, MIN_RECORDS) else file.num_bytes
    return Segment(file.path, file.name, start, stop, number * MIN_RECORDS + 1)


def _not_shown(job: Job) -> list[str]:
    """Name the options that take records out by what stands in the others, or by a hash."""
    config = job.config
    dedup = [f"--dedup {config.dedup}"] if config.dedup != "none" else []
    return dedup + ([f"--holdout {config.holdout}"] if config.holdout else [])


def _examples(refusals: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the first refused record of each reason."""
    found: dict[str, dict[str, Any]] = {}
    for refusal in refusals:
        found.setdefault(refusal["reason"], {key: refusal[key] for key in ("file", "line", "id", "detail")})
    return found


def _memory(job: Job, bytes_a_row: float, workers: int) -> int:
    """Estimate what all processes take: each what this one took, and a shard in hand twice (rows, then the file)."""
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    shard = min(job.config.shard_rows * bytes_a_row, job.config.shard_megabytes << 20)
    parent = taken if workers > 1 else 0
    return round(workers * (taken + 2 * shard) + parent)


def _free(folder: Path) -> int:
    """Return the free bytes where a folder lies or would lie."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def describe(values: dict[str, Any]) -> str:
    """Return a forecast as a text for people: what was counted and what was scaled stand apart."""
    whole = values["sampled"] >= values["records"]
    what = "all of them" if whole else f"{values['sampled']:,} of them, at places spread over the input"
    parts = [f"{values['records']:,} records; compiled as a trial: {what}. Nothing was written."]
    parts += ["", *_table(_counted(values))]
    parts += ["", "the whole run, counted" if whole else "the whole run, scaled from the sample (about)"]
    parts += _table(_scaled(values))
    if not whole:
        share = 3 / max(values["sampled"], 1)
        spread = f"A fault that the sample does not show can still be in {share:.1%} of the records (95 % sure)"
        parts += ["", f"{spread}, in more where faults lie together."]
    if values["not_shown"]:
        parts.append(f"The figures are without {' and '.join(values['not_shown'])}, which will leave some rows out.")
    return "\n".join(parts)


def _counted(values: dict[str, Any]) -> list[tuple[str, str]]:
    from dataprep.report.wording import percent

    found, layout = values["in_the_sample"], values["layout"]
    rows = found["rows"]
    lines = [
        ("rows", f"{rows:,}"),
        ("  text-only", f"{found['text_only']:,}  ({percent(found['text_only'], rows)})"),
        ("  truncated", f"{found['truncated']:,}  ({percent(found['truncated'], rows)})"),
        ("tokens a row", f"{found['tokens_a_row']:,}, {found['trained_tokens_a_row']:,} of them trained"),
        ("image_start_idx", f"{layout['image_start_idx']} ({layout['template']})"),
        ("records/s and worker", f"{found['records_a_second_and_worker']:,.0f}"),
    ]
    for reason, count in sorted(found["refused"].items(), key=lambda item: (-item[1], item[0])):
        lines.append((f"refused: {reason}", f"{count:,}  ({percent(count, values['sampled'])})"))
        lines.append(("", _example(found["examples"][reason])))
    return lines


def _example(example: dict[str, Any]) -> str:
    from dataprep.report.markup import cut, visible

    known = f" id {example['id']!r}" if example["id"] else ""
    return cut(visible(f"{example['file']}:{example['line']}{known}: {example['detail']}"), MAX_EXAMPLE)


def _scaled(values: dict[str, Any]) -> list[tuple[str, str]]:
    from dataprep.report.wording import size

    run, whole = values["run"], values["in_all"]
    room = "enough" if run["disk_bytes"] < run["disk_free_bytes"] else "NOT ENOUGH"
    return [
        ("rows", f"{whole['rows']:,}"),
        ("refused", f"{sum(whole['refused'].values()):,}"),
        ("attended tokens", f"{whole['attended_tokens']:,}"),
        ("trained tokens", f"{whole['trained_tokens']:,}"),
        ("time", f"{duration(run['seconds'])} with {run['workers']} worker{'s' if run['workers'] > 1 else ''}"),
        ("memory", size(run["memory_bytes"])),
        ("disk", f"{size(run['disk_bytes'])}; {size(run['disk_free_bytes'])} are free: {room}"),
    ]


def duration(seconds: int | float) -> str:
    """Return a time as people say it: `4 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
