"""YAML to config, and what is said when it cannot be done."""

from pathlib import Path

import pytest

from configs import ConfigError, StrictConfig, load, shipped
from configs.workspace import Workspace, load_workspace
from dataprep.config import CompileConfig, MixConfig
from trainer.config import TrainConfig

ROOT = Path(__file__).parent.parent.parent


class Optimizer(StrictConfig):
    peak_lr: float = 1.0


class Run(StrictConfig):
    steps: int = 1
    optimizer: Optimizer = Optimizer()
    names: list[str] = []


@pytest.fixture
def written(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize("schema", [CompileConfig, MixConfig, TrainConfig])
def test_every_shipped_yaml_loads(schema):
    names = shipped(schema.FOLDER)
    assert len(names) >= 2
    for name in names:
        assert isinstance(load(schema, name), schema)
        assert load(schema, f"configs/{schema.FOLDER}/{name}.yaml") == load(schema, name)


def test_no_yaml_lies_where_no_schema_reads_it():
    folders = {path.parent.name for path in (ROOT / "configs").rglob("*.yaml")}
    assert folders == {CompileConfig.FOLDER, MixConfig.FOLDER, TrainConfig.FOLDER}


def test_values_are_read_and_overridden(written):
    path = written("steps: 3\noptimizer:\n  peak_lr: 1e-3\n")
    assert load(Run, path) == Run(steps=3, optimizer=Optimizer(peak_lr=1e-3))
    assert load(Run, path, ["optimizer.peak_lr=2e-5", "names=[a, b]"]).optimizer.peak_lr == 2e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nstep: 2\n", "run.yaml:2: step: unknown key, did you mean steps?"),
        ("steps: 1\npeak_lr: 2\n", "run.yaml:2: peak_lr: unknown key, did you mean optimizer.peak_lr?"),
        ("optimizer:\n  peak_rate: 2\n", "run.yaml:2: optimizer.peak_rate: unknown key, did you mean peak_lr?"),
        ("q: 2\n", "run.yaml:1: q: unknown key; known here: names, optimizer, steps"),
        ("steps: 1\n\nsteps: 2\n", "run.yaml:3: steps: repeated key, first at "),
        ("steps: many\n", "run.yaml:1: steps: expected a valid integer"),
        ("steps: 1\nnames: [1]\n", "run.yaml:2: names.0: expected a valid string, found 1"),
        ("steps: [1\n", "run.yaml:2: not YAML"),
        ("- 1\n", "run.yaml:1: expected `key: value` lines, found a sequence"),
        ("names: &a [x]\nsteps: *a\n", "run.yaml:2: aliases (*a) are not read"),
        ("steps: !!python/object/apply:os.system [true]\n", "run.yaml:1: steps: expected a valid integer"),
        (b"steps: \xff\n", "run.yaml: not UTF-8"),
        (b"#" * (2 << 20), "run.yaml: 2097152 bytes; a config has at most 1048576"),
        ("[" * 100_000, "run.yaml:1: nested too deeply"),
    ],
)
def test_faults_name_place_expectation_and_finding(written, text, message):
    with pytest.raises(ConfigError) as caught:
        load(Run, written(text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "command line: steps: expected key=value"),
        ("optimizer.peaklr=1", "command line: optimizer.peaklr: unknown key, did you mean peak_lr?"),
        ("steps=x", "command line: steps: expected a valid integer"),
    ],
)
def test_faults_of_overrides_name_the_command_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load(Run, None, [override])
    assert message in str(caught.value)


def test_an_override_may_name_the_option_that_it_came_from():
    with pytest.raises(ConfigError, match=r"^--steps x: steps: expected a valid integer"):
        load(Run, None, ["optimizer.peak_lr=1", ("steps=x", "--steps x")])


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("phase: 2\ntemplate: plain\n", [], "run.yaml:2: config: template plain is not one of phase 2"),
        ("phase: 2\ntemplate: plain\n", ["phase=2"], "command line: config: template plain is not one of phase 2"),
        ("phase: 1\ntemplate: plain\n", ["row_width=fit"], "command line: config: row_width fit makes room"),
        ("phase: 2\ntemplate: plane\n", [], "or 'tokenizer', found 'plane', did you mean plain?"),
        ("phase: 2\ntemplate: vicuna_v1\nimages: 3\n", [], "run.yaml:3: images: expected 'path' or 'embed', found 3"),
    ],
)
def test_a_fault_between_keys_names_where_one_of_them_stands(written, text, overrides, message):
    with pytest.raises(ConfigError) as caught:
        load(CompileConfig, written(text), overrides)
    assert message in str(caught.value)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ConfigError, match="phase3: no such config file; shipped are: phase1, phase2"):
        load(CompileConfig, "phase3")


def test_the_workspace_file_gives_defaults(tmp_path):
    assert load_workspace(tmp_path) == Workspace()
    (tmp_path / "llava-prep.yaml").write_text("root: /big/data\ntokenizer: models/vicuna\n")
    assert load_workspace(tmp_path) == Workspace(root=Path("/big/data"), tokenizer="models/vicuna")
    (tmp_path / "llava-prep.yaml").write_text("tokeniser: models/vicuna\n")
    with pytest.raises(ConfigError, match="llava-prep.yaml:1: tokeniser: unknown key, did you mean tokenizer"):
        load_workspace(tmp_path)
