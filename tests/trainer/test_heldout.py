"""Loss and token accuracy on shards that are not trained on, and the end of a run that gets no better."""

import os

import numpy as np
import pytest
import torch

from tests.trainer.test_two_processes import torchrun
from tests.trainer.tiny_run import (
    NUM_HELD_OUT,
    StopsAfter,
    evaluations_of,
    losses_of,
    make_row,
    metrics_of,
    tiny_layout,
    weights_of,
    write_shards,
)
from trainer.batches import collate, read_picture
from trainer.config import EvaluationConfig
from trainer.errors import ConflictError, IntegrityError, TrainError
from trainer.heldout import Evaluator, chosen_rows, evaluations_after, is_due
from trainer.model import load_model
from trainer.stopping import StopSignal


def expected(workplace, shards, model_folder, chosen=None):
    """Loss and accuracy of a model folder, sample by sample, without the trainer's batches of many."""
    from dataprep.shards import ShardReader

    reader, (model, _) = ShardReader(shards), load_model(model_folder)
    losses, right = [], []
    for row in map(reader.__getitem__, range(len(reader)) if chosen is None else chosen):
        pictures = [read_picture(row, workplace.layout, workplace.root / "images")] if row.has_image else []
        batch = collate([row], pictures, workplace.layout).to(torch.device("cpu"))
        with torch.no_grad():
            logits = model(batch.inputs)[batch.loss_positions].double()
        losses.append(torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none"))
        right.append(logits.argmax(dim=1) == batch.labels)
    return torch.cat(losses).mean().item(), torch.cat(right).double().mean().item()


def test_the_numbers_are_those_of_the_samples_one_by_one(workplace, held_out, tmp_path):
    assert workplace.train(tmp_path, evaluation={"shards": held_out}) == 0
    (evaluation,) = evaluations_of(tmp_path)
    loss, accuracy = expected(workplace, held_out, tmp_path / "final")
    assert evaluation["step"] == 10
    assert evaluation["loss"] == pytest.approx(loss, rel=1e-6)
    assert evaluation["accuracy"] == accuracy
    assert evaluation["num_samples"] == NUM_HELD_OUT


def test_accuracy_counts_what_the_model_has_learned_by_heart(workplace, tmp_path):
    # Trained on and evaluated on the same rows until some tokens are known.
    shards = workplace.root / "shards"
    assert workplace.train(tmp_path, epochs=5, evaluation={"shards": shards}) == 0
    (evaluation,) = evaluations_of(tmp_path)
    loss, accuracy = expected(workplace, shards, tmp_path / "final")
    assert 0 < accuracy < 1
    assert (evaluation["loss"], evaluation["accuracy"]) == (pytest.approx(loss, rel=1e-6), accuracy)


@pytest.mark.parametrize(("every", "steps"), [(3, [3, 6, 9, 10]), (5, [5, 10]), (20, [10])])
def test_evaluations_come_at_their_steps_and_at_the_end(workplace, held_out, tmp_path, every, steps):
    evaluation = {"shards": held_out} | ({} if every is None else {"every": every})
    assert workplace.train(tmp_path, evaluation=evaluation) == 0
    assert [each["step"] for each in evaluations_of(tmp_path)] == steps
    config = EvaluationConfig(**evaluation)
    for step in range(11):
        assert evaluations_after(step, 10, config) == sum(each > step for each in steps)
        assert is_due(step, 10, config) == (step in steps)
    assert evaluations_after(0, 10, EvaluationConfig()) == 0


@pytest.fixture(scope="module")
def evaluated(workplace, held_out, tmp_path_factory):
    """A run that is evaluated often, and one that is not: its steps must be the same."""
    output = tmp_path_factory.mktemp("evaluated")
    assert workplace.train(output, evaluation={"shards": held_out, "every": 3}) == 0
    return output


def test_evaluating_changes_no_step(workplace, evaluated, tmp_path):
    assert workplace.train(tmp_path) == 0
    assert losses_of(tmp_path) == losses_of(evaluated)
    weights = weights_of(tmp_path)
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights_of(evaluated).items())
    assert not (tmp_path / "evaluations.jsonl").exists()


@pytest.mark.parametrize("changes", [{"max_tokens": 45}, {"max_tokens": 4000}, {"num_workers": 2}])
def test_the_micro_batch_changes_no_evaluation(workplace, held_out, evaluated, tmp_path, changes):
    assert workplace.train(tmp_path, evaluation={"shards": held_out, "every": 3}, **changes) == 0
    for ours, theirs in zip(evaluations_of(tmp_path), evaluations_of(evaluated), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)  # ten steps of rounding
    assert evaluations_of(tmp_path)[0]["num_loss_tokens"] == evaluations_of(evaluated)[0]["num_loss_tokens"]


@pytest.mark.parametrize("samples_a_time", [2, 64])
def test_the_same_weights_evaluate_alike_in_any_micro_batch(workplace, held_out, tmp_path, monkeypatch, samples_a_time):
    from trainer.distributed import open_world
    from trainer.plan import make_plan

    monkeypatch.setattr("trainer.heldout.SAMPLES_A_RANK", samples_a_time)
    model, _ = load_model(workplace.root / "start")
    found = []
    with open_world(torch.device("cpu")) as world:
        for max_tokens, pad in ((45, 1), (90, 1), (96, 16), (4000, 1)):
            config = workplace.config(
                tmp_path, evaluation={"shards": held_out}, max_tokens=max_tokens, pad_to_multiple=pad
            )
            plan = make_plan(config, world.device)
            result = Evaluator(plan.evaluation, config, world).run(model, 0, lambda: False)
            found.append((result.loss, result.accuracy))
    loss, accuracy = expected(workplace, held_out, workplace.root / "start")
    for each in found:
        assert each == (pytest.approx(loss, rel=1e-6), accuracy)


@pytest.mark.parametrize("stops", [(4,), (3, 9), (6,)])
def test_a_resumed_run_evaluates_the_same_steps_with_the_same_numbers(workplace, held_out, evaluated, tmp_path, stops):
    for stop in (*stops, None):
        settings = {} if stop is None else {"stop_after": stop}
        assert workplace.train(tmp_path, evaluation={"shards": held_out, "every": 3}, **settings) == 0
    assert without_times(evaluations_of(tmp_path)) == without_times(evaluations_of(evaluated))
    assert [line["step"] for line in metrics_of(tmp_path)] == list(range(1, 11))
    assert losses_of(tmp_path) == losses_of(evaluated)


def without_times(evaluations):
    return [{name: value for name, value in each.items() if name != "seconds"} for each in evaluations]


@pytest.mark.parametrize("save_every", [2, 3])
def test_a_run_killed_after_an_evaluation_holds_it_once(
    workplace, held_out, evaluated, tmp_path, monkeypatch, save_every
):
    from trainer import loop

    changes = {"evaluation": {"shards": held_out, "every": 3}, "save_every": save_every}
    original = loop._raise_faults

    def dying(data, world):
        if data.number == 9:
            raise KeyboardInterrupt
        original(data, world)

    monkeypatch.setattr(loop, "_raise_faults", dying)
    with pytest.raises(KeyboardInterrupt):
        workplace.train(tmp_path, **changes)
    if save_every == 2:
        # Both files go further than the checkpoint of step 8; the kill cut them in the middle of a line.
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-7])
    monkeypatch.undo()
    assert workplace.train(tmp_path, **changes) == 0
    assert without_times(evaluations_of(tmp_path)) == without_times(evaluations_of(evaluated))
    assert [line["step"] for line in metrics_of(tmp_path)] == list(range(1, 11))
    assert losses_of(tmp_path) == losses_of(evaluated)


@pytest.mark.parametrize("asked", [3, 4, 13, 14])
def test_a_signal_at_or_in_an_evaluation_leaves_it_to_the_resumed_run(workplace, held_out, evaluated, tmp_path, asked):
    """A step asks once and an evaluation of one part once more: 3 is step 3, 4 its evaluation, 13 step 10, 14 its."""
    changes = {"evaluation": {"shards": held_out, "every": 3}}
    stop = StopsAfter(asked)
    assert workplace.train(tmp_path, stop=stop, **changes) == 143
    assert not (tmp_path / "final").exists()
    # Stopped once more in the very evaluation that was left, which must not be counted twice.
    assert workplace.train(tmp_path, stop_after=len(metrics_of(tmp_path)), **changes) == 0
    assert workplace.train(tmp_path, **changes) == 0
    assert without_times(evaluations_of(tmp_path)) == without_times(evaluations_of(evaluated))
    assert (tmp_path / "final").is_dir()


def test_an_evaluation_that_was_left_and_made_up_for_is_held_once_after_a_kill(
    workplace, held_out, evaluated, tmp_path, monkeypatch
):
    from trainer import loop

    changes = {"evaluation": {"shards": held_out, "every": 3}}
    assert workplace.train(tmp_path, stop=StopsAfter(3), **changes) == 143

    def dying(data, world):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_raise_faults", dying)
    with pytest.raises(KeyboardInterrupt):
        workplace.train(tmp_path, **changes)
    monkeypatch.undo()
    assert [each["step"] for each in evaluations_of(tmp_path)] == [3]
    assert workplace.train(tmp_path, **changes) == 0
    assert without_times(evaluations_of(tmp_path)) == without_times(evaluations_of(evaluated))


def test_two_processes_evaluate_as_one_even_if_one_has_nothing(workplace, held_out, tmp_path):
    changes = {"max_steps": 4, "epochs": None, "stop_after": 2}
    evaluation = {"shards": held_out, "every": 2, "max_samples": 1}
    one, two = tmp_path / "one", tmp_path / "two"
    assert workplace.train(one, evaluation=evaluation, **changes) == 0
    exit_code, said = torchrun(workplace, two, 2, evaluation=evaluation, **changes)
    assert exit_code == 0, said
    changes["stop_after"] = None
    evaluation["max_samples"] = None
    evaluation = {name: value for name, value in evaluation.items() if value is not None}
    assert workplace.train(one, evaluation=evaluation, **changes) == 0
    # Goes on from a checkpoint that was saved right after an evaluation, and exports after the last.
    exit_code, said = torchrun(workplace, two, 2, evaluation=evaluation, **changes)
    assert exit_code == 0, said
    assert [(each["step"], each["num_samples"]) for each in evaluations_of(two)] == [(2, 1), (4, NUM_HELD_OUT)]
    for ours, theirs in zip(evaluations_of(two), evaluations_of(one), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert ours["accuracy"] == theirs["accuracy"]
    assert "evaluation after step 4/4  loss" in said


def test_chosen_rows_are_spread_over_all_and_each_is_once():
    assert chosen_rows(10, None).tolist() == list(range(10))
    assert chosen_rows(10, 4).tolist() == [0, 2, 5, 7]
    assert chosen_rows(10, 20).tolist() == list(range(10))
    for num_rows in (1, 7, 1000):
        chosen = chosen_rows(num_rows, 6)
        assert len(set(chosen.tolist())) == min(6, num_rows)


def test_some_samples_are_evaluated_alone(workplace, held_out, tmp_path):
    assert workplace.train(tmp_path, evaluation={"shards": held_out, "max_samples": 4}) == 0
    (evaluation,) = evaluations_of(tmp_path)
    loss, accuracy = expected(workplace, held_out, tmp_path / "final", chosen=[0, 2, 4, 6])
    assert evaluation["num_samples"] == 4
    assert (evaluation["loss"], evaluation["accuracy"]) == (pytest.approx(loss, rel=1e-6), accuracy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": 3}, "every needs shards to evaluate"),
        ({"shards": "there", "patience": 3}, "patience counts evaluations: give evaluation.every"),
        ({"shards": "there", "every": 0}, "greater than 0"),
    ],
)
def test_settings_that_ask_for_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**changes)


def held_out_like(folder, layout, rows):
    write_shards(folder, layout, rows)
    return {"shards": folder}


def test_shards_that_do_not_fit_are_refused_before_the_run_starts(workplace, tiny_tokenizer_dir, tmp_path):
    generator = np.random.default_rng(1)
    layout = tiny_layout(tiny_tokenizer_dir)
    row = make_row(generator, 0, "0.png")
    unlearned = make_row(generator, 0, "0.png", num_learned=0)
    from dataclasses import replace

    cases = {
        "missing": ({"shards": tmp_path / "nowhere"}, "is no folder; `llava-prep to-h5 --holdout 0.01` makes one"),
        "phase": (
            held_out_like(tmp_path / "phase", tiny_layout(tiny_tokenizer_dir, 1), [row, row]),
            "evaluation.shards: phase: the shards were compiled for phase 1",
        ),
        "vocabulary": (
            held_out_like(tmp_path / "tokens", replace(layout, tokenizer_fingerprint="f" * 64), [row, row]),
            "evaluation.shards: tokenizer: ",
        ),
        "fit": (
            held_out_like(tmp_path / "fit", replace(layout, image_fit="crop"), [row, row]),
            "evaluation.shards: image_fit: the training's shards were compiled with pad, these with crop",
        ),
        "nothing": (
            held_out_like(tmp_path / "nothing", layout, [unlearned, unlearned]),
            "evaluation.shards: .* holds no trained token",
        ),
        "picture": (
            held_out_like(tmp_path / "picture", layout, [make_row(generator, 0, "9.png"), row]),
            "evaluation.shards: data.image_dir: .* does not hold 9.png",
        ),
    }
    for name, (evaluation, message) in cases.items():
        with pytest.raises(TrainError, match=message):
            workplace.train(tmp_path / "out" / name, evaluation=evaluation)
        assert not (tmp_path / "out" / name / "metrics.jsonl").exists()


def test_a_picture_that_cannot_be_read_is_named_and_where(workplace, tiny_tokenizer_dir, tmp_path):
    generator = np.random.default_rng(1)
    rows = [make_row(generator, number, key) for number, key in enumerate(["0.png", "9.png"])]
    evaluation = held_out_like(tmp_path / "held_out", tiny_layout(tiny_tokenizer_dir), rows)
    with pytest.raises(IntegrityError, match=r"evaluation after step 2: made_up.jsonl:2 \(id-1\): .*9.png"):
        workplace.train(tmp_path / "out", evaluation={**evaluation, "every": 2})


def test_a_loss_that_is_no_number_stops_the_run(workplace, held_out, tmp_path):
    from trainer.distributed import open_world
    from trainer.plan import make_plan

    model, _ = load_model(workplace.root / "start")
    with torch.no_grad():
        model.language.norm.weight.fill_(float("nan"))
    config = workplace.config(tmp_path, evaluation={"shards": held_out})
    with open_world(torch.device("cpu")) as world:
        evaluator = Evaluator(make_plan(config, world.device).evaluation, config, world)
        with pytest.raises(IntegrityError) as refused:
            evaluator.run(model, 7, lambda: False)
    # With 64 tokens a micro-batch holds one to three rows; the first is named with those that stand beside it.
    assert str(refused.value).startswith(
        "evaluation after step 7: the loss is nan in the micro-batch of made_up.jsonl:"
    )
    assert str(refused.value).endswith(" and 1 more rows")


def test_dropout_and_gradients_are_off_and_come_back(workplace, held_out, tmp_path):
    from trainer.distributed import open_world
    from trainer.plan import make_plan

    model, _ = load_model(workplace.root / "start")
    model.train()
    seen = []
    model.projector.register_forward_hook(lambda *_: seen.append((model.training, torch.is_grad_enabled())))
    config = workplace.config(tmp_path, evaluation={"shards": held_out})
    with open_world(torch.device("cpu")) as world:
        Evaluator(make_plan(config, world.device).evaluation, config, world).run(model, 0, lambda: False)
    assert set(seen) == {(False, False)}
    assert model.training
    assert torch.is_grad_enabled()


def test_the_weights_lie_spread_again_after_an_evaluation(workplace, held_out, tmp_path):
    from torch.distributed.tensor import DTensor

    from trainer.checkpoint import Checkpoints
    from trainer.distributed import open_world
    from trainer.loop import Trainer
    from trainer.plan import make_plan

    config = workplace.config(tmp_path, evaluation={"shards": held_out}, dtype="bfloat16")
    with open_world(torch.device("cpu")) as world:
        trainer = Trainer(make_plan(config, world.device), world, Checkpoints(tmp_path, 1, world))
        assert trainer.evaluate(StopSignal()) is not None
        assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())


def test_an_output_folder_with_weights_and_steps_to_go_is_still_refused(workplace, held_out, tmp_path):
    evaluation = {"shards": held_out, "every": 2, "patience": 3}
    workplace.train(tmp_path, evaluation=evaluation, stop_after=3)
    os.mkdir(tmp_path / "final")
    with pytest.raises(ConflictError, match="has 7 steps to go"):
        workplace.train(tmp_path, evaluation=evaluation)
