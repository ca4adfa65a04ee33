"""What the two phases leave alone: no gradient, no kept activation, no state of the phase before."""

import pytest
import torch

from tests.trainer.tiny_run import TINY, losses_of, metrics_of, weights_of
from trainer.attention import Segments
from trainer.checkpoint import Checkpoints
from trainer.config import FROZEN_BY_PHASE
from trainer.distributed import open_world
from trainer.loop import Trainer, make_plan
from trainer.loss import loss_sum
from trainer.model import LlavaModel, ModelInput, initialise
from trainer.optimizer import freeze


def model_of(frozen):
    model = LlavaModel(TINY)
    initialise(model, 0)
    freeze(model, frozen)
    return model


def batch_of(num_tokens=20):
    return ModelInput(
        input_ids=torch.arange(3, 3 + num_tokens),
        positions=torch.arange(num_tokens),
        segments=Segments(torch.tensor([0, num_tokens], dtype=torch.int32), num_tokens),
        image_slots=torch.arange(2, 6),
        pixels=torch.arange(3 * 28 * 28, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(1, 3, 28, 28),
    )


def kept_for_backward(model, batch):
    """Run a batch; return its loss, and the storages of all tensors that autograd keeps but the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_sum(model(batch), torch.arange(20))
    return loss, kept


def inputs_of(model, batch, names):
    """Return a function that says which of the named layers' inputs are among kept storages."""
    seen = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: inputs[0]})
        )
    loss, kept = kept_for_backward(model, batch)
    return loss, {name for name, tensor in seen.items() if tensor.untyped_storage().data_ptr() in kept}, kept


def num_bytes(kept):
    return sum(storage.nbytes() for storage in kept.values())


PARTS = ("attention.q", "attention.o", "mlp.gate", "mlp.down")
LANGUAGE = [f"language.layers.{number}.{part}" for number in range(2) for part in PARTS]
TOWER = [f"vision.layers.0.{part}" for part in ("attention.q", "attention.o", "mlp.up", "mlp.down")]


def test_a_frozen_language_model_gets_no_gradient_and_keeps_no_layers_input_for_one():
    # The outputs of the norms before q and gate, and the inputs of o and down, would be kept for weights' gradients.
    loss, held, kept = inputs_of(model := model_of(FROZEN_BY_PHASE[1]), batch_of(), LANGUAGE)
    # Attention and SiLU keep some of these tensors for their own sake: o's input is the attention's output.
    assert {name for name in held if not name.endswith("attention.o")} == set()
    loss.backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"projector"}
    trained_loss, held_when_trained, kept_when_trained = inputs_of(model_of(FROZEN_BY_PHASE[2]), batch_of(), LANGUAGE)
    assert held_when_trained == set(LANGUAGE)
    assert trained_loss.item() == loss.item()
    assert num_bytes(kept) < 0.8 * num_bytes(kept_when_trained)


def test_a_frozen_tower_leaves_no_graph_and_keeps_nothing():
    model = model_of(FROZEN_BY_PHASE[2])
    features = []
    model.vision.register_forward_hook(lambda module, inputs, output: features.append(output))
    loss, held, kept = inputs_of(model, batch_of(), TOWER)
    assert held == set()
    assert features[0].grad_fn is None and not features[0].requires_grad
    trained = model_of([])
    trained.vision.register_forward_hook(lambda module, inputs, output: features.append(output))
    trained_loss, held, kept_when_trained = inputs_of(trained, batch_of(), TOWER)
    assert held == set(TOWER)
    assert features[1].grad_fn is not None
    assert num_bytes(kept) < num_bytes(kept_when_trained)
    assert trained_loss.item() == loss.item()


def test_a_frozen_tower_runs_without_autograd_and_a_partly_trained_one_with_it():
    for patterns, expected in [((r"vision\.",), False), ((r"vision\.layers\.0\.attention\.",), True), ((), True)]:
        model = model_of(patterns)
        modes = []
        model.vision.register_forward_pre_hook(
            lambda module, inputs, modes=modes: modes.append(torch.is_grad_enabled())
        )
        model(batch_of())
        assert modes == [expected]
        with torch.no_grad():
            model(batch_of())
        assert modes == [expected, False]


def test_with_adapters_a_frozen_layer_has_no_gradient_either(workplace, tmp_path):
    config = workplace.config(tmp_path, lora={"rank": 2, "dropout": 0.0})
    with open_world(torch.device("cpu")) as world:
        trainer = Trainer(make_plan(config, world.device), world, Checkpoints(tmp_path, 1, world))
        loss_sum(trainer.model(batch_of()), torch.arange(20)).backward()
        with_gradient = {name for name, p in trainer.model.named_parameters() if p.grad is not None}
    assert with_gradient
    assert all("lora_" in name or name.startswith("projector.") for name in with_gradient)


def test_phase_2_takes_the_weights_of_phase_1_and_no_state_of_its_optimizer(make_workplace, workplace, tmp_path):
    first = make_workplace(lambda number: number % 2 == 0, phase=1)
    assert first.train(tmp_path / "one", phase=1, max_steps=3, epochs=None) == 0
    config = workplace.config(tmp_path / "two", model=tmp_path / "one" / "final")
    with open_world(torch.device("cpu")) as world:
        trainer = Trainer(make_plan(config, world.device), world, Checkpoints(config.output_dir, 1, world))
        assert not trainer.optimizer.state
        assert trainer.steps_done == 0
        weights = trainer.model.state_dict()
        assert all(torch.equal(weights[name], tensor) for name, tensor in weights_of(tmp_path / "one").items())


def test_a_phase_1_checkpoint_is_no_starting_point_of_phase_2(make_workplace, workplace, tmp_path):
    first = make_workplace(lambda number: number % 2 == 0, phase=1)
    assert first.train(tmp_path / "one", phase=1, max_steps=1, epochs=None) == 0
    (checkpoint,) = (tmp_path / "one" / "checkpoints").iterdir()
    with pytest.raises(ValueError, match="step-00000001 is incomplete: config.json cannot be read"):
        workplace.train(tmp_path / "two", model=checkpoint)


def test_the_projectors_own_rate_moves_the_projector_alone(workplace, tmp_path):
    for name, rate in (("same", None), ("own", 1e-5)):
        optimizer = {"projector_peak_lr": rate, "warmup_ratio": 0.0}
        workplace.train(tmp_path / name, optimizer=optimizer, max_steps=1, epochs=None)
    same, own = weights_of(tmp_path / "same"), weights_of(tmp_path / "own")
    differ = {name for name in same if not torch.equal(same[name], own[name])}
    assert differ and all(name.startswith("projector.") for name in differ)
    assert losses_of(tmp_path / "same") == losses_of(tmp_path / "own")
    assert metrics_of(tmp_path / "own")[0]["lr"] == 1e-2
