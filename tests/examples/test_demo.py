import math
from importlib.util import find_spec

import pytest

from configs import load
from dataprep.config import CompileConfig
from examples import demo
from trainer.config import TrainConfig


def commands(program: str) -> list[tuple[str, ...]]:
    return [command for command in (*demo.COMMANDS, *demo.EVALUATE, demo.VERIFY) if command[0] == program]


def test_a_model_that_learned_looks_and_exports_exactly_passes():
    assert demo.faults(accuracy=0.9, chance=0.25, shuffled=0.26, difference=1e-6, own=0.9) == []


@pytest.mark.parametrize(
    ("accuracy", "shuffled", "difference", "own", "said"),
    [
        (0.4, 0.26, 1e-6, 0.4, "not far above chance"),
        (0.9, 0.5, 1e-6, 0.9, "shuffled"),
        (0.9, 0.26, 1e-3, 0.9, "logits differ"),
        (0.9, 0.26, math.nan, 0.9, "logits differ"),
        (0.9, 0.26, 1e-6, 0.89, "transformers 0.900"),
        (0.9, 0.26, 1e-6, math.nan, "transformers 0.900"),
    ],
)
def test_each_shortcoming_is_said(accuracy, shuffled, difference, own, said):
    found = demo.faults(accuracy, 0.25, shuffled, difference, own)
    assert len(found) == 1 and said in found[0]


def test_the_training_commands_set_only_what_the_trainer_knows():
    runs = commands("torchrun")
    for _, script, config, *overrides in runs:
        assert (demo.REPOSITORY / script).is_file()
        loaded = load(TrainConfig, demo.REPOSITORY / config, overrides)
        assert loaded.output_dir.parent == demo.OUT and loaded.frozen_patterns == ()
    assert len(runs) == 2


def test_the_compile_commands_set_only_what_the_compiler_knows():
    runs = [command for command in commands("llava-prep") if "to-h5" in command]
    for command in runs:
        phase = command[command.index("--phase") + 1]
        overrides = [value for key, value in zip(command, command[1:], strict=False) if key == "--set"]
        assert load(CompileConfig, f"phase{phase}", overrides).image.num_patches == 36
    assert len(runs) == 2


def test_the_scripts_that_the_demo_runs_are_there():
    scripts = {command[1] for command in commands("python") if command[1] != "-m"}
    assert scripts == {"examples/charts.py", "examples/start.py", "examples/curve.py", "examples/ask.py"}
    assert all((demo.REPOSITORY / script).is_file() for script in scripts)
    modules = [command[2] for command in commands("python") if command[1] == "-m"]
    assert modules == [f"trainer.evaluation.{name}" for name in ("run", "score", "page")]
    assert all(find_spec(module) for module in modules)


def test_a_failing_command_ends_the_demo_with_its_exit_code(capsys):
    with pytest.raises(SystemExit) as ended:
        demo.run(("python", "-c", "raise SystemExit(7)"))
    assert ended.value.code == 7
    assert "exit code 7" in capsys.readouterr().err


def test_a_command_is_shown_as_a_user_would_type_it(capsys):
    demo.run(("python", "-c", "pass # a b"), capture=True)
    assert capsys.readouterr().out.startswith("\n$ python -c 'pass # a b'\n")
