"""What a run over many machines adds to compiling, and what a training start reads: the rates behind docs/scaling.md.

    python benchmarks/scaling.py --tokenizer FOLDER [--samples 100000] [--shards 400]

survey    reading the input once for the plan, against reading and hashing it and no more.
share     the start of a share with the plan, against surveying a terabyte anew.
choose    shuffle, dedup and holdout: time, and memory a record.
finish    reading the records of the tasks and writing the manifest, a shard.
open      what a reader does at a training start, a shard: parse the manifest, hash, read the columns; on the second
          start on a node nothing is hashed. Baseline: hashing alone.

Every measurement is a process of its own, on CPU seconds; the best of three counts.
"""

import argparse
import hashlib
import multiprocessing
import os
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ in ("__main__", "__mp_main__"):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

BILLION = 10**9

#: So many times the records make the memory that they take stand out.
COPIES = 8


def job_of(folder: Path, path: Path, tokenizer: Path, output: str, **config):
    """Return a compile of the records."""
    from dataprep.config import CompileConfig
    from dataprep.pipeline import Job

    settings = {"phase": 2, "template": "vicuna_v1", "check_images": "none", **config}
    return Job(CompileConfig(**settings), tokenizer, (path,), folder, folder / output)


def timed(function, *arguments) -> float:
    """Return the CPU seconds that a call takes."""
    begun = time.process_time()
    function(*arguments)
    return time.process_time() - begun


def hash_file(path: Path) -> None:
    """Read and hash a file."""
    with open(path, "rb") as file:
        hashlib.file_digest(file, "sha256").digest()


def survey(path: Path) -> float:
    """Survey a file."""
    from dataprep.plan import survey

    return timed(survey, path, path.name)


def hashing(path: Path) -> float:
    """Hash a file."""
    return timed(hash_file, path)


def share_start(folder: Path, path: Path, tokenizer: Path) -> float:
    """Start a share of a run that is planned."""
    from dataprep.cluster.plans import follow, read_plan

    job = job_of(folder, path, tokenizer, "planned")

    def start() -> None:
        follow(read_plan(job), job)

    start()  # imports, and the tokenizer
    return timed(start)


def make_plan(folder: Path, path: Path, tokenizer: Path) -> int:
    """Plan a run; return the bytes of the plan."""
    from dataprep.cluster.plans import PLAN_NAME, make_plan

    job = job_of(folder, path, tokenizer, "planned")
    make_plan(job, 1)
    return (job.output / ".tasks" / PLAN_NAME).stat().st_size


def choose(path: Path) -> tuple[float, float]:
    """Choose the records of `COPIES` such files; return the seconds, and how many bytes of memory at the peak."""
    from dataprep.config import CompileConfig
    from dataprep.plan import survey
    from dataprep.selection import select

    surveyed = survey(path, path.name)
    files = [replace(surveyed, name=str(copy)) for copy in range(COPIES)]
    config = CompileConfig(phase=2, template="vicuna_v1", shuffle=1, dedup="exact", holdout=0.01)
    before = _memory("VmRSS")
    seconds = timed(select, files, config)
    return seconds, _memory("VmHWM") - before


def compile_and_finish(folder: Path, path: Path, tokenizer: Path, shards: int) -> tuple[float, int, int]:
    """Compile many small shards; return the seconds that finishing takes, the bytes of the manifest, the shards."""
    from dataprep.pipeline import compile_missing, finish, input_files, prepare

    job = job_of(folder, path, tokenizer, "shards", shard_rows=10)
    prepared = prepare(job, input_files(job.inputs), 1)
    tasks = prepared.parts[0].tasks[:shards]
    part = replace(prepared.parts[0], tasks=tasks)
    prepared = replace(prepared, parts=(part,))
    compile_missing(prepared, prepared.work, 1, lambda *_: None)

    def end() -> None:
        assert not list(part.output.left(tasks))
        finish(prepared)

    return timed(end), (job.output / "manifest.json").stat().st_size, len(tasks)


def open_reader(folder: Path) -> float:
    """Open a folder as training does."""
    from dataprep.shards import ShardReader

    def start() -> None:
        with ShardReader(folder / "shards") as reader:
            reader.lengths  # noqa: B018

    return timed(start)


def hash_shards(folder: Path) -> float:
    """Hash the shards of a folder."""
    return timed(lambda: [hash_file(path) for path in sorted((folder / "shards").glob("*.h5"))])


def _memory(which: str) -> float:
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def alone(function, *arguments):
    """Call a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def best(function, *arguments) -> float:
    """Return the least of three."""
    return min(alone(function, *arguments) for _ in range(3))


def main() -> None:
    """Measure and print."""
    from benchmarks.texts import write_conversations

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=400)
    options = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        # Nothing is remembered of an earlier start on this node.
        os.environ["TMPDIR"] = name
        path = folder / "conversations.jsonl"
        size = write_conversations(path, options.samples)
        print(f"{options.samples} records, {size / 1e6:.0f} MB, {os.cpu_count()} cores")
        report_plan(folder, path, options.tokenizer, options.samples, size)
        report_shards(folder, path, options.tokenizer, options.shards)


def report_plan(folder: Path, path: Path, tokenizer: Path, samples: int, size: int) -> None:
    """Measure what comes before the shares."""
    surveyed, hashed = best(survey, path), best(hashing, path)
    print(f"survey   {size / surveyed / 1e6:7.0f} MB/s a process; {hashed / surveyed:.2f} of the rate of hashing alone")
    num_bytes = alone(make_plan, folder, path, tokenizer)
    started = best(share_start, folder, path, tokenizer)
    print(f"plan     {num_bytes / samples * BILLION / 1e6:7.1f} MB for a billion records in one file")
    ratio = surveyed / size * 1e12 / started
    print(f"share    {started * 1e3:7.1f} ms to start with the plan; surveying 1 TB anew takes {ratio:.0f} times that")
    (seconds, peak), chosen = alone(choose, path), samples * COPIES
    print(f"choose   {chosen / seconds:7.0f} records/s a process, {peak / chosen:.0f} bytes of memory for each")


def report_shards(folder: Path, path: Path, tokenizer: Path, shards: int) -> None:
    """Measure what comes after them."""
    seconds, manifest, count = alone(compile_and_finish, folder, path, tokenizer, shards)
    print(f"finish   {seconds / count * 1e3:7.2f} ms a shard; the manifest has {manifest / count:.0f} bytes for each")
    first = alone(open_reader, folder)
    again, hashed = best(open_reader, folder), best(hash_shards, folder)
    each = f"{first / count * 1e3:.2f} ms a shard the first time on a node, {again / count * 1e3:.2f} ms after that"
    print(f"open     {each}; hashing alone {hashed / count * 1e3:.2f} ms")


if __name__ == "__main__":
    main()
