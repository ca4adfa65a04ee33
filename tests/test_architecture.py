"""Who may import whom, what is not loaded, and what no file may be called."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("configs", "dataprep", "trainer", "converters")

INFERENCE = {
    "configs",
    "trainer",
    "converters",
    "dataprep.shards",
    "dataprep.images",
    "dataprep.templates",
    "dataprep.encoding",
    "dataprep.conversation",
}

#: Each part may import these of ours, and nothing else. The longest name that fits a file decides.
MAY_IMPORT = {
    "configs": {"configs"},
    "dataprep": {"configs", "dataprep"},
    "dataprep.shards": {"dataprep.shards"},
    # What packing will reach is told by the code that packs, not by a second one; it is numpy alone.
    "dataprep.report": {"configs", "dataprep", "trainer.packing"},
    "trainer": {"configs", "trainer", "dataprep.shards", "dataprep.images"},
    "trainer.model": {"configs", "trainer.model", "trainer.attention"},
    # What a model is asked is made by the code that compiled its data, and any format that converts can be asked.
    "trainer.inference": INFERENCE,
    "trainer.evaluation": INFERENCE
    | {"dataprep.datasets", "dataprep.prompts", "dataprep.llm_client", "dataprep.report", "dataprep.errors"},
    "converters": {"configs", "converters", "trainer.model"},
    "converters.verify": {
        "configs",
        "converters",
        "trainer.model",
        "trainer.attention",
        "dataprep.templates",
        "dataprep.encoding",
        "dataprep.images",
    },
}

#: What the contract may load of others: a reader in another program needs no more.
SHARDS_MAY_LOAD = {"numpy", "h5py", "isal", "jaxtyping"}


def modules():
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, path


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.module


def inside(name, packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def rule_for(name):
    return MAY_IMPORT[max((key for key in MAY_IMPORT if inside(name, [key])), key=len)]


def test_every_part_imports_only_what_it_may():
    checked = 0
    for name, path in modules():
        for imported in imports(path):
            if inside(imported, PARTS):
                assert inside(imported, rule_for(name)), f"{name} imports {imported}"
                checked += 1
    assert checked > 50


def test_the_contract_loads_numpy_h5py_and_isal_only():
    for name, path in modules():
        if inside(name, ["dataprep.shards"]):
            others = {imported.split(".")[0] for imported in imports(path)} - set(sys.stdlib_module_names) - set(PARTS)
            assert others <= SHARDS_MAY_LOAD, name


@pytest.mark.parametrize(
    "module", ["dataprep.pipeline", "dataprep.preprocess", "dataprep.inspection", "dataprep.report.page"]
)
def test_dataprep_runs_without_torch(module):
    assert loaded_by(module).isdisjoint({"torch", "transformers"})


def test_the_command_line_starts_light():
    assert loaded_by("dataprep.cli").isdisjoint({"torch", "numpy", "h5py", "PIL", "pydantic", "tokenizers"})


def loaded_by(module):
    program = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_trainer_file_is_named_like_a_standard_module():
    names = {path.stem for path in (ROOT / "trainer").glob("*.py")}
    assert names and not names & set(sys.stdlib_module_names)


def test_files_and_functions_stay_small():
    for name, path in modules():
        text = path.read_text()
        assert text.count("\n") <= 400, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name}.{node.name}"
