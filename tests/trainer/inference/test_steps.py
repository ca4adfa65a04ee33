"""A run that has not ended is asked: what its checkpoints hold, and nothing but what they should."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from tests.trainer.conftest import make_workplace  # noqa: F401
from tests.trainer.evaluation import layouts
from tests.trainer.test_two_processes import torchrun
from tests.trainer.tiny_run import NUM_ROWS, Workplace, make_row, tiny_layout, write_shards
from trainer.checkpoint import Checkpoints, check_resumable, read_state, whole_checkpoints
from trainer.distributed import open_world
from trainer.errors import IntegrityError, TrainError
from trainer.evaluation import run as evaluation
from trainer.evaluation.settings import model_digest, model_name
from trainer.inference import Request, Sampling, open_assistant
from trainer.inference.chat import main as chat
from trainer.inference.distcp import ADMITTED
from trainer.inference.runs import asked_folder
from trainer.loop import Trainer
from trainer.model import FolderError, load_model
from trainer.plan import make_plan

TRAINED = {"phase": 1, "freeze": ["vision"]}
STEPS = {**TRAINED, "save_every": 4, "keep": 9}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def place(make_workplace, tmp_path_factory, tiny_tokenizer_dir) -> Workplace:  # noqa: F811
    """A workplace whose shards say where the picture of a `plain` prompt stands, so that the model can be asked."""
    made = make_workplace(lambda number: number % 3 != 0)
    generator = np.random.default_rng(7)
    layout = replace(tiny_layout(tiny_tokenizer_dir, phase=1), image_start_idx=1, hole_start=1, hole_length=4)
    rows = [make_row(generator, number, f"{number % 4}.png") for number in range(NUM_ROWS)]
    shutil.rmtree(made.root / "shards")
    write_shards(made.root / "shards", layout, rows)
    return made


@pytest.fixture(scope="module")
def run(place, tmp_path_factory) -> Path:
    """A whole run of 10 steps, with the checkpoints after 4, 8 and 10 beside its `final/`."""
    output = tmp_path_factory.mktemp("run") / "phase2"
    assert place.train(output, **STEPS) == 0
    return output


@pytest.fixture
def going_on(run, tmp_path) -> Path:
    """The same run before it has ended."""
    shutil.copytree(run / "checkpoints", tmp_path / "going_on" / "checkpoints")
    return tmp_path / "going_on"


def step(output, number):
    return output / "checkpoints" / f"step-{number:08d}"


def command(function, *arguments):
    return CliRunner().invoke(function, [str(one) for one in arguments], catch_exceptions=False)


def answers(place, folder, base=None):
    requests = [Request(["Why?"], picture) for picture in sorted((place.root / "images").iterdir())]
    return open_assistant(folder, device="cpu", base=base).answer(requests, Sampling(max_new_tokens=30))


def weights(folder, base=None):
    return open_assistant(folder, device="cpu", base=base).model.state_dict()


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_last_checkpoint_answers_as_final_and_an_earlier_one_as_the_run_did_then(place, run, tmp_path):
    start = place.root / "start"
    final = answers(place, run / "final")
    assert answers(place, step(run, 10), start) == final
    assert_same(weights(step(run, 10), start), weights(run / "final"))
    earlier = answers(place, step(run, 4), start)
    assert earlier != final
    assert place.train(tmp_path / "stopped", **TRAINED, stop_after=4) == 0
    config = place.config(tmp_path / "stopped", **TRAINED)
    with open_world(torch.device("cpu")) as world:
        trainer = Trainer(make_plan(config, world.device), world, Checkpoints(config.output_dir, 2, world))
        trainer.export(tmp_path / "then")
    assert answers(place, tmp_path / "then") == earlier


def test_frozen_weights_are_those_of_the_base(place, run):
    found, start = weights(step(run, 4), place.root / "start"), load_model(place.root / "start")[0].state_dict()
    alike = {name.partition(".")[0]: torch.equal(found[name], tensor) for name, tensor in start.items()}
    assert alike == {"vision": True, "projector": False, "language": False}
    assert all(torch.equal(found[name], start[name]) for name in start if name.startswith("vision."))


@pytest.mark.parametrize("base", ["float32", "bfloat16", "nf4"])
def test_adapters_are_merged_as_at_the_runs_end(place, tmp_path, base):
    if base == "nf4":
        pytest.importorskip("torchao")
    assert place.train(tmp_path / "run", **TRAINED, max_steps=3, epochs=None, lora={**LORA, "base": base}) == 0
    assert_same(weights(step(tmp_path / "run", 3), place.root / "start"), weights(tmp_path / "run" / "final"))


def test_two_processes_wrote_it_and_one_reads_it(place, tmp_path):
    exit_code, said = torchrun(place, tmp_path, 2, max_steps=2, epochs=None, **TRAINED)
    assert exit_code == 0, said
    assert len(list(step(tmp_path, 2).glob("*.distcp"))) == 2
    assert_same(weights(step(tmp_path, 2), place.root / "start"), weights(tmp_path / "final"))


def test_a_run_is_asked_by_its_own_name(place, run, going_on, capfd):
    start = place.root / "start"
    capfd.readouterr()
    assert answers(place, run) == answers(place, run / "final")
    assert f"note: {run} is a run; asked: {run / 'final'}" in capfd.readouterr().err
    # One that is being written has no name yet, and one that lacks its state is not whole.
    shutil.copytree(step(going_on, 4), going_on / "checkpoints" / ".step-00000012.unfinished")
    (step(going_on, 10) / "state.json").unlink()
    assert answers(place, going_on, start) == answers(place, step(run, 8), start)
    said = capfd.readouterr().err
    assert f"note: {going_on} is a run; asked: {step(going_on, 8)}" in said
    assert f"{step(going_on, 8)}: asked as it stands after step 8" in said
    shutil.rmtree(going_on / "checkpoints")
    (going_on / "metrics.jsonl").touch()
    with pytest.raises(TrainError, match="going_on is a run without a whole checkpoint yet"):
        open_assistant(going_on)
    assert asked_folder(start) == start


def test_the_command_asks_a_run_that_goes_on(place, run, going_on):
    picture = place.root / "images" / "0.png"
    words = ["--prompt", "Why?", "--image", picture, "--json", "--device", "cpu", "--max-new-tokens", 30]
    done = command(chat, going_on, "--base", place.root / "start", *words)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["ids"] == answers(place, run / "final")[0].ids
    done = command(chat, step(going_on, 4), *words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.count("error: ") == 1
    assert "name with --base the folder that the run started from" in done.stderr


def test_what_recorded_prompts_is_the_checkpoint_and_without_it_a_model_is_asked_as_usual(place, run, going_on, capfd):
    start, data = place.root / "start", json.loads((run / "final" / "data.json").read_text())
    path = step(going_on, 10) / "state.json"
    state = json.loads(path.read_text())
    assert state["record"] == data and data["template"] == "plain" and data["training"]["steps"] == 10
    assert open_assistant(step(going_on, 10), base=start, device="cpu").template == "plain"
    with pytest.raises(IntegrityError, match=f"{step(going_on, 10)}: num_patches: trained with 9, the model has 4"):
        path.write_text(json.dumps({**state, "record": {**data, "num_patches": 9}}))
        open_assistant(step(going_on, 10), base=start, device="cpu")
    path.write_text(json.dumps({name: value for name, value in state.items() if name != "record"}))
    capfd.readouterr()
    assert open_assistant(step(going_on, 10), base=start, device="cpu").template == "vicuna_v1"
    said = capfd.readouterr().err
    assert "was saved before checkpoints recorded how prompts are made" in said and "taken: vicuna_v1" in said


def test_a_checkpoint_from_before_there_was_a_record_is_resumed(place, tmp_path):
    assert place.train(tmp_path, **TRAINED, stop_after=4) == 0
    path = step(tmp_path, 4) / "state.json"
    path.write_text(json.dumps({name: one for name, one in json.loads(path.read_text()).items() if name != "record"}))
    assert read_state(path.parent).record == {}
    assert place.train(tmp_path, **TRAINED, stop_after=5) == 0
    now = read_state(step(tmp_path, 5))
    assert now.record["training"]["steps"] == 5
    check_resumable(path.parent, replace(now, record={"template": "another"}), now)


def test_other_starting_weights_are_refused_naming_both(place, run, tmp_path):
    start = place.root / "start"
    with pytest.raises(TrainError, match="holds what is trained alone: name with --base the folder that the run start"):
        open_assistant(step(run, 4))
    shutil.copytree(start, tmp_path / "moved")
    assert_same(weights(step(run, 4), tmp_path / "moved"), weights(step(run, 4), start))
    path = tmp_path / "moved" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    ids = read_state(step(run, 4)).model["starting_weights"][:12]
    with pytest.raises(TrainError, match=rf"--base .*moved: its weights \(\w{{12}}…\) are not those that .*\({ids}…\)"):
        open_assistant(step(run, 4), base=tmp_path / "moved")
    with pytest.raises(FolderError, match="none is incomplete"):
        open_assistant(step(run, 4), base=tmp_path / "none")
    with pytest.raises(TrainError, match="is a whole model"):
        open_assistant(run / "final", base=start)


def damage(folder, what):
    (part,) = folder.glob("*.distcp")
    metadata = folder / ".metadata"
    known = FileSystemReader(folder).read_metadata()
    match what:
        case "cut":
            part.write_bytes(part.read_bytes()[:5000])
        case "gone":
            part.unlink()
        case "metadata cut":
            metadata.write_bytes(metadata.read_bytes()[:-50])
        case "metadata gone":
            metadata.unlink()
        case "lacking":
            del known.state_dict_metadata["model.projector.up.weight"]
        case "adding":
            known.state_dict_metadata["model.more"] = known.state_dict_metadata["model.projector.up.weight"]
        case "half":
            known.state_dict_metadata["model.projector.up.weight"].chunks = []
        case "elsewhere":
            for place in known.storage_data.values():
                place.relative_path = f"../{folder.name}/{part.name}"
    if what in ("lacking", "adding", "half", "elsewhere"):
        metadata.write_bytes(pickle.dumps(known))


DAMAGE = {
    "cut": r"__0_0.distcp cannot be read: \S+: \w+Error: ",
    "gone": "__0_0.distcp cannot be read: .*it is not there .a run that goes on removes its oldest checkpoints",
    "metadata cut": r"\.metadata cannot be read: ",
    "metadata gone": r"\.metadata cannot be read: it is not there",
    "lacking": "1 tensors are incomplete or of another shape: projector.up.weight",
    "adding": "1 tensors are unknown: more",
    "half": "1 tensors are incomplete or of another shape: projector.up.weight",
    "elsewhere": "tensors are incomplete or of another shape: language",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_named(place, going_on, what):
    damage(step(going_on, 8), what)
    with pytest.raises(IntegrityError, match=DAMAGE[what]) as refused:
        open_assistant(step(going_on, 8), base=place.root / "start", device="cpu")
    assert str(step(going_on, 8)) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("section", "name"), [("settings", "lora.alpha"), ("settings", "freeze"), ("model", "vision")])
def test_a_state_that_does_not_say_what_is_trained_is_refused(place, going_on, section, name):
    path = step(going_on, 8) / "state.json"
    state = json.loads(path.read_text())
    state["settings"] |= {"lora": True, "lora.layers": ["language"], "lora.rank": 4, "lora.base": "float32"}
    state[section].pop(name, None)
    path.write_text(json.dumps(state))
    with pytest.raises(IntegrityError, match="state.json does not say what the run trains: "):
        open_assistant(step(going_on, 8), base=place.root / "start", device="cpu")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("where", ["metadata", "part", "bytes"])
def test_a_hostile_checkpoint_is_refused_and_not_run(place, going_on, tmp_path, where):
    folder, made = step(going_on, 8), tmp_path / "made"
    name = "model.projector.up.weight"
    known = FileSystemReader(folder).read_metadata()
    if where == "metadata":
        known.planner_data = Hostile(made)
    else:
        # In place of a tensor, in a file of its own; `bytes` is what torch's own reader would unpickle whole.
        torch.save(Hostile(made), folder / "other.distcp")
        for index, place_ in known.storage_data.items():
            if index.fqn == name:
                place_.relative_path, place_.offset = "other.distcp", 0
                place_.length = (folder / "other.distcp").stat().st_size
    if where == "bytes":
        known.state_dict_metadata[name] = BytesStorageMetadata()
    (folder / ".metadata").write_bytes(pickle.dumps(known))
    expected = {
        "metadata": "it names posix.mkdir, which no checkpoint needs",
        "part": "other.distcp cannot be read: projector.up.weight: UnpicklingError: ",
        "bytes": "1 tensors are incomplete or of another shape: projector.up.weight",
    }
    with pytest.raises(IntegrityError, match=expected[where]):
        open_assistant(folder, base=place.root / "start", device="cpu")
    assert not made.exists()
    if where == "metadata":
        FileSystemReader(folder).read_metadata()
    else:
        torch.load(folder / "other.distcp", weights_only=False)
    assert made.exists()  # so what was refused would have run


def test_what_is_admitted_is_what_torch_writes(run):
    found = set()

    class Listing(pickle.Unpickler):
        def find_class(self, module, name):
            found.add((module, name))
            return super().find_class(module, name)

    with open(step(run, 8) / ".metadata", "rb") as file:
        Listing(file).load()
    assert found - {("pathlib", "PosixPath"), ("pathlib._local", "PosixPath"), ("torch", "float32")} == ADMITTED


def test_a_benchmark_asks_a_run_that_goes_on_and_does_not_mix_two_of_its_checkpoints(place, run, going_on, tmp_path):
    data = layouts.chartqa(tmp_path / "charts", 1)

    def ask(model, name, *more):
        own = ["--benchmark", "chartqa", "--data", data, "--output", tmp_path / name, "--max-new-tokens", 9]
        return command(evaluation.command, model, *own, *more)

    texts = {}
    for model, name, more in ((run, "final.jsonl", ()), (going_on, "last.jsonl", ("--base", place.root / "start"))):
        done = ask(model, name, *more)
        assert done.exit_code == 0 and f"{model} is a run; asked: " in done.stderr, done.stderr
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        texts[lines[0]["model_id"]] = [line["text"] for line in lines]
    assert texts.keys() == {"phase2_final", "going_on_step-00000010"}
    assert texts["phase2_final"] == texts["going_on_step-00000010"] and any(texts["phase2_final"])
    (step(going_on, 10) / "state.json").unlink()
    done = ask(going_on, "last.jsonl", "--base", place.root / "start")
    assert done.exit_code == 4 and "step-00000008, was " in done.stderr


def test_an_evaluation_knows_a_checkpoint_again_by_its_weights(run, going_on):
    assert model_name(step(run, 8)) == "phase2_step-00000008"
    assert [path.name[-2:] for path in whole_checkpoints(going_on / "checkpoints")] == ["04", "08", "10"]
    before = model_digest([step(run, 8)])
    assert model_digest([step(going_on, 8)]) == before
    (part,) = step(going_on, 8).glob("*.distcp")
    content = part.read_bytes()
    part.write_bytes(content[:-9000] + bytes(1) + content[-8999:])
    assert model_digest([step(going_on, 8)]) != before
