"""Weights of 4 bits and optimizer states of 8: what they are near to, and that a run with them goes on."""

import pytest
import torch

from tests.trainer.test_two_processes import torchrun
from tests.trainer.tiny_run import losses_of, metrics_of, weights_of
from trainer import lowbit
from trainer.config import OptimizerConfig
from trainer.errors import TrainError
from trainer.lora import LoraLinear
from trainer.optimizer import build_optimizer, set_learning_rates

LORA = {"rank": 4, "alpha": 8, "dropout": 0.2}
INT8 = {"optimizer": {"states": "int8"}}
NF4 = {"lora": {**LORA, "base": "nf4"}}


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao", reason="torchao is not installed")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (INT8, "^optimizer.states: int8: torchao is not installed; `pip install torchao` brings it$"),
        (NF4, "^lora.base: nf4: torchao is not installed"),
        ({**INT8, **NF4}, "^optimizer.states: int8 and lora.base: nf4: torchao is not installed"),
    ],
)
def test_without_torchao_one_sentence_says_which_setting_needs_it(workplace, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(lowbit, "find_spec", lambda name: None)
    with pytest.raises(TrainError, match=message):
        workplace.train(tmp_path, **changes)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.fixture(scope="module")
def plain(workplace, tmp_path_factory):
    output = tmp_path_factory.mktemp("plain")
    assert workplace.train(output) == 0
    return output


@pytest.fixture(scope="module")
def plain_lora(workplace, tmp_path_factory):
    output = tmp_path_factory.mktemp("plain_lora")
    assert workplace.train(output, lora=LORA) == 0
    return output


def test_states_of_8_bits_learn_nearly_what_states_of_32_do(torchao, workplace, plain, tmp_path):
    assert workplace.train(tmp_path, **INT8) == 0
    losses = losses_of(tmp_path)
    assert sum(losses[5:]) < sum(losses[:5])
    # The rate is high and the matrices are small: a step is off by more than in a large model.
    assert losses == pytest.approx(losses_of(plain), rel=0.1)
    assert losses != losses_of(plain)


def test_most_states_are_kept_in_8_bits(torchao):
    parameter = torch.nn.Parameter(torch.randn(64, 64))
    small = torch.nn.Parameter(torch.randn(64))
    named = [("language.a", parameter), ("projector.b", small)]
    optimizer = build_optimizer(named, OptimizerConfig(peak_lr=1e-2, projector_peak_lr=1e-3, states="int8"))
    assert set_learning_rates(optimizer, 0.5) == 5e-3
    before = parameter.detach().clone()
    (parameter.sum() + small.sum()).backward()
    optimizer.step()
    # Adam's first step is the learning rate, whatever the gradient.
    torch.testing.assert_close(before - parameter, torch.full((64, 64), 5e-3), atol=1e-4, rtol=0)
    for moment in ("exp_avg", "exp_avg_sq"):
        state = optimizer.state[parameter][moment]
        assert state.codes.dtype == torch.uint8 and state.codes.numel() == 64 * 64
        assert state.scale.numel() == 64 * 64 // 256
        assert optimizer.state[small][moment].dtype == torch.float32


@pytest.fixture(scope="module")
def uninterrupted(workplace, tmp_path_factory):
    pytest.importorskip("torchao", reason="torchao is not installed")
    outputs = {}
    for name, changes in {"int8": INT8, "nf4": NF4, "both": {**INT8, **NF4}}.items():
        outputs[name] = tmp_path_factory.mktemp(name)
        assert workplace.train(outputs[name], **changes) == 0
    return outputs


@pytest.mark.parametrize("kind", ["int8", "nf4", "both"])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(workplace, uninterrupted, tmp_path, kind):
    changes = {"int8": INT8, "nf4": NF4, "both": {**INT8, **NF4}}[kind]
    assert workplace.train(tmp_path, stop_after=4, **changes) == 0
    assert workplace.train(tmp_path, **changes) == 0
    expected = uninterrupted[kind]
    assert losses_of(tmp_path) == losses_of(expected)
    assert [m["grad_norm"] for m in metrics_of(tmp_path)] == [m["grad_norm"] for m in metrics_of(expected)]
    assert all(torch.equal(weights_of(tmp_path)[name], tensor) for name, tensor in weights_of(expected).items())


def test_a_base_of_4_bits_learns_nearly_what_one_of_32_does(plain_lora, uninterrupted):
    losses = losses_of(uninterrupted["nf4"])
    assert sum(losses[5:]) < sum(losses[:5])
    assert losses == pytest.approx(losses_of(plain_lora), rel=0.05)
    assert losses != losses_of(plain_lora)


def test_computed_in_bfloat16_and_sharded_both_run_and_go_on(torchao, workplace, uninterrupted, tmp_path):
    changes = {**INT8, **NF4, "dtype": "bfloat16"}
    assert workplace.train(tmp_path / "whole", **changes) == 0
    assert losses_of(tmp_path / "whole") == pytest.approx(losses_of(uninterrupted["both"]), rel=0.03)
    assert workplace.train(tmp_path / "stopped", stop_after=4, **changes) == 0
    assert workplace.train(tmp_path / "stopped", **changes) == 0
    assert losses_of(tmp_path / "stopped") == losses_of(tmp_path / "whole")


def test_a_weight_of_4_bits_is_near_and_half_a_byte(torchao):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 128, generator=generator)
    packed = lowbit.to_nf4(weight, "name")
    error = (lowbit.from_nf4(packed) - weight).norm() / weight.norm()
    assert 0.05 < error < 0.12
    assert packed.quantized_data.numel() == weight.numel() // 2
    with pytest.raises(TrainError, match="blocks of 64 values; name has 63 of them"):
        lowbit.to_nf4(torch.zeros(7, 9), "name")


def test_what_is_merged_is_the_weight_that_was_trained_beside(torchao):
    from trainer.config import LoraConfig
    from trainer.lora import merged

    base = torch.nn.Linear(32, 16)
    layer = LoraLinear(base, "name", LoraConfig(rank=2, alpha=4, dropout=0.0, base="nf4"), seed=0)
    layer.initialise(0)
    torch.nn.init.normal_(layer.lora_b)
    layer.take_weight(base.weight.detach(), torch.float32)
    assert "weight" not in dict(layer.named_parameters())
    whole = {f"name.{name}": parameter.detach() for name, parameter in layer.named_parameters()}
    weights = merged(whole, layer)
    assert weights.keys() == {"name.weight", "name.bias"}
    inputs = torch.randn(5, 32, requires_grad=True)
    outputs = layer(inputs)
    torch.testing.assert_close(outputs, inputs @ weights["name.weight"].T + base.bias)
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad, weights["name.weight"].sum(dim=0).expand(5, -1))


def test_the_exported_model_of_a_4_bit_run_is_whole(workplace, uninterrupted):
    from safetensors.torch import load_file

    before = load_file(workplace.root / "start" / "model.safetensors")
    after = weights_of(uninterrupted["nf4"])
    assert {name: tensor.shape for name, tensor in after.items()} == {n: t.shape for n, t in before.items()}
    assert torch.equal(after["language.embed.weight"], before["language.embed.weight"])
    assert not torch.equal(after["language.layers.0.mlp.up.weight"], before["language.layers.0.mlp.up.weight"])


def test_two_processes_learn_nearly_the_same_and_go_on_as_two(torchao, workplace, tmp_path):
    changes = {**INT8, "lora": {**LORA, "base": "nf4", "dropout": 0.0}}
    assert workplace.train(tmp_path / "one", **changes) == 0
    for more in ({"stop_after": 4}, {}):
        exit_code, said = torchrun(workplace, tmp_path / "two", 2, **changes, **more)
        assert exit_code == 0, said
    assert "resuming after step 4" in said
    # Half a tensor is cut into other blocks, and fewer are large enough for 8 bits.
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), rel=0.05)
