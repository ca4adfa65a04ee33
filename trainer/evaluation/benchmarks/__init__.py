"""Benchmark to questions: one file a layout, and the table of them."""

from trainer.evaluation.benchmarks import files, mmbench, mmmu, pope, prepared, vqa
from trainer.evaluation.benchmarks.base import Asked, Benchmark, Left, Source

__all__ = ["BENCHMARKS", "Asked", "Benchmark", "Left", "Source"]

#: A new benchmark is a file beside this one and a line here.
BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        *prepared.BENCHMARKS,
        *vqa.BENCHMARKS,
        pope.BENCHMARK,
        mmbench.BENCHMARK,
        mmmu.BENCHMARK,
        files.BENCHMARK,
    )
}
