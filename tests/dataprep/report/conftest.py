"""A compiled folder with something of everything."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dataprep.config import CompileConfig, ImageConfig
from dataprep.pipeline import Job, run_job
from dataprep.report import write_report
from tests.dataprep.conftest import record


def job_in(root: Path, tokenizer: Path) -> Job:
    """Two files: conversations with pictures and some without, one too long, and four faulty records."""
    (root / "pictures").mkdir(exist_ok=True)
    for index in range(5):
        Image.new("RGB", (30 + index, 28), (50 * index, 9, 9)).save(root / f"pictures/{index}.jpg")
    seen = [record(n, f"pictures/{n % 5}.jpg", 1 + n % 3) for n in range(60)]
    read = [record(100 + n, None, 1 + n % 4) for n in range(30)]
    read[4]["conversations"][1]["value"] = "a long answer " * 60
    read[5]["conversations"] = [{"from": "human", "value": "q 日本 </s>"}, {"from": "gpt", "value": "é\n✓ <b>"}]
    empty = record(202)
    empty["conversations"][1]["value"] = ""
    faulty = [record(200, "pictures/none.jpg"), record(201, "../up.jpg"), empty]
    inputs = root / "seen.jsonl", root / "read.jsonl"
    for path, records in zip(inputs, (seen, read + faulty), strict=True):
        path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records))
    with inputs[1].open("a") as lines:
        lines.write("{broken\n")
    config = CompileConfig(phase=2, template="vicuna_v1", max_seq_length=200, image=ImageConfig(size=28))
    return Job(config, tokenizer, inputs, root, root / "h5")


@pytest.fixture
def job(tmp_path, tiny_tokenizer_dir):
    return job_in(tmp_path, tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def compiled_once(tmp_path_factory, tiny_tokenizer_dir):
    job = job_in(tmp_path_factory.mktemp("compiled"), tiny_tokenizer_dir)
    run_job(job, 1, lambda *_: None)
    write_report(job.output)
    return job


@pytest.fixture
def image_root(compiled_once):
    """The image root of `compiled`."""
    return compiled_once.image_root


@pytest.fixture
def compiled(compiled_once, tmp_path):
    """The folder of such a job with its report; the test's own copy."""
    return Path(shutil.copytree(compiled_once.output, tmp_path / "compiled"))
