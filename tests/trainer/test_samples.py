"""Sample answers of a run: those of the model at that step, and no bit of the run is changed by them."""

import json

import numpy as np
import pytest
import torch

from dataprep.encoding import TextEncoder
from dataprep.shards import ShardReader
from tests.trainer.test_two_processes import torchrun
from tests.trainer.tiny_run import (
    NUM_PATCHES,
    StopsAfter,
    losses_of,
    make_row,
    metrics_of,
    tiny_layout,
    weights_of,
    write_shards,
)
from trainer.attention import Segments
from trainer.batches import read_picture
from trainer.config import SamplesConfig, TrainConfig, fixed_settings
from trainer.errors import IntegrityError
from trainer.heldout import chosen_rows
from trainer.model import ModelInput, load_model
from trainer.samples import SampleAnswer, is_due

SAMPLES = {"every": 3, "count": 4, "max_new_tokens": 6}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.3}


def samples_of(output):
    return [json.loads(line) for line in (output / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def text(encoder, ids):
    return b"".join(map(encoder.bytes_of, ids)).decode("utf-8", "replace").strip()


def expected(workplace, shards, model_folder, step, count=4, max_new=6):
    """The samples of a model folder, one by one, each token by a pass over one row's own text."""
    reader, (model, config), encoder = (
        ShardReader(shards),
        load_model(model_folder),
        TextEncoder(workplace.tokenizer_dir),
    )
    found = []
    for number in chosen_rows(len(reader), count):
        row = reader[int(number)]
        kept = np.flatnonzero(~row.key_padding_mask)
        first = int(row.loss_mask[kept].argmax())
        prompt = row.text_input_ids[kept[: first + 1]].tolist()
        slots = torch.arange(3, 3 + NUM_PATCHES) if row.has_image else torch.arange(0)
        pixels = torch.empty(0, 3, 28, 28, dtype=torch.uint8)
        if row.has_image:
            picture = read_picture(row, workplace.layout, workplace.root / "images")
            pixels = torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]
        ids = list(prompt)
        room = min(max_new, config.language.max_position_embeddings - len(ids) + 1)
        while len(ids) - len(prompt) < room and ids[-1:] != [2]:
            segments = Segments(torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
            batch = ModelInput(torch.tensor(ids), torch.arange(len(ids)), segments, slots, pixels)
            with torch.no_grad():
                ids.append(int(model(batch)[-1].argmax()))
        truth = row.labels[kept[first:]][row.loss_mask[kept[first:]]].tolist()
        found.append(
            {
                "step": step,
                "source": f"made_up.jsonl:{number + 1} (id-{number})",
                "image": row.img_path,
                "question": text(encoder, prompt[3 + NUM_PATCHES if row.has_image else 0 :]),
                "answer": text(encoder, ids[len(prompt) :]),
                "truth": text(encoder, truth),
                "ended": ids[-1] == 2 and len(ids) > len(prompt),
            }
        )
    return found


@pytest.fixture(scope="module")
def plain(workplace, tmp_path_factory):
    """A run without samples."""
    output = tmp_path_factory.mktemp("plain")
    assert workplace.train(output) == 0
    assert not (output / "samples.jsonl").exists()
    return output


@pytest.fixture(scope="module")
def sampled(workplace, tmp_path_factory):
    output = tmp_path_factory.mktemp("sampled")
    assert workplace.train(output, samples=SAMPLES) == 0
    return output


def assert_same_bits(output, reference):
    assert losses_of(output) == losses_of(reference)
    assert [step["grad_norm"] for step in metrics_of(output)] == [step["grad_norm"] for step in metrics_of(reference)]
    weights = weights_of(output)
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights_of(reference).items())


def test_samples_change_no_bit_of_a_run(plain, sampled):
    assert [each["step"] for each in samples_of(sampled)] == [3] * 4 + [6] * 4 + [9] * 4
    assert_same_bits(sampled, plain)


def test_answers_are_those_of_the_model_at_that_step(workplace, held_out, tmp_path):
    workplace.train(tmp_path, evaluation={"shards": held_out}, samples={**SAMPLES, "every": 10})
    found = samples_of(tmp_path)
    assert found == expected(workplace, held_out, tmp_path / "final", 10)
    # Rows with a picture and without, and answers that are not all the same.
    assert {each["image"] is None for each in found} == {True, False}
    assert len({each["answer"] for each in found}) > 1


def test_without_held_out_shards_the_trainings_rows_are_asked(workplace, tmp_path, capsys):
    # So small a learning rate that the model stays what it was; one micro-batch holds a sample or two, or all.
    changes = {"optimizer": {"peak_lr": 1e-30}, "samples": {**SAMPLES, "every": 10, "count": 9}}
    for name, max_tokens in (("few", 48), ("many", 2000)):
        workplace.train(tmp_path / name, max_tokens=max_tokens, **changes)
        start = workplace.root / "start"
        assert samples_of(tmp_path / name) == expected(workplace, workplace.root / "shards", start, 10, count=9)
    said = capsys.readouterr().out
    assert said.count("sample after step 10/10: made_up.jsonl:") == 18
    assert said.count("\n  question: ") == said.count("\n  answer:   ") == said.count("\n  truth:    ") == 18


@pytest.mark.parametrize("stops", [(3,), (2, 7)])
def test_a_resumed_run_has_each_sample_once_and_the_same_bits(workplace, sampled, tmp_path, stops):
    for stop in (*stops, None):
        assert workplace.train(tmp_path, samples=SAMPLES, **({} if stop is None else {"stop_after": stop})) == 0
    assert_same_bits(tmp_path, sampled)
    assert samples_of(tmp_path) == samples_of(sampled)


def test_a_run_killed_after_its_samples_writes_them_once(workplace, sampled, tmp_path, monkeypatch):
    from trainer import loop

    original = loop._raise_faults

    def dying(data, world):
        if data.number == 7:
            raise KeyboardInterrupt
        original(data, world)

    monkeypatch.setattr(loop, "_raise_faults", dying)
    with pytest.raises(KeyboardInterrupt):
        workplace.train(tmp_path, samples=SAMPLES, save_every=4)
    assert [each["step"] for each in samples_of(tmp_path)] == [3] * 4 + [6] * 4
    monkeypatch.undo()
    assert workplace.train(tmp_path, samples=SAMPLES, save_every=4) == 0
    assert samples_of(tmp_path) == samples_of(sampled)
    assert_same_bits(tmp_path, sampled)


def test_adapters_and_their_dropout_are_as_without_samples(workplace, tmp_path):
    for name, samples in (("without", None), ("with", {**SAMPLES, "every": 1})):
        assert workplace.train(tmp_path / name, lora=LORA, max_steps=4, epochs=None, samples=samples) == 0
    assert_same_bits(tmp_path / "with", tmp_path / "without")
    assert len(samples_of(tmp_path / "with")) == 16
    workplace.train(tmp_path / "resumed", lora=LORA, max_steps=4, epochs=None, samples=SAMPLES, stop_after=3)
    workplace.train(tmp_path / "resumed", lora=LORA, max_steps=4, epochs=None)
    assert_same_bits(tmp_path / "resumed", tmp_path / "without")


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"data": {"packing": "none"}, "max_tokens": 48}])
def test_sharded_low_precision_and_unpacked_runs_are_not_changed_either(workplace, tmp_path, changes):
    for name, samples in (("without", None), ("with", {**SAMPLES, "every": 2})):
        assert workplace.train(tmp_path / name, max_steps=4, epochs=None, samples=samples, **changes) == 0
    assert_same_bits(tmp_path / "with", tmp_path / "without")
    assert len(samples_of(tmp_path / "with")) == 8


def test_two_processes_write_the_samples_of_one_and_train_the_same_bits(workplace, held_out, tmp_path):
    # Three questions for two ranks, and an answer may end before the others: some passes are of nobody's token.
    changes = {"evaluation": {"shards": held_out}, "max_steps": 4, "epochs": None, "num_workers": 0}
    samples = {"every": 2, "count": 3, "max_new_tokens": 6}
    for name, asked in (("without", None), ("with", samples)):
        exit_code, said = torchrun(workplace, tmp_path / name, 2, samples=asked, **changes)
        assert exit_code == 0, said
    assert_same_bits(tmp_path / "with", tmp_path / "without")
    assert workplace.train(tmp_path / "one", samples=samples, **changes) == 0
    assert samples_of(tmp_path / "with") == samples_of(tmp_path / "one")


def test_a_signal_cuts_the_answers_short_and_the_run_goes_on_later(workplace, sampled, tmp_path):
    # A step asks once; the passes of the samples after step 3 ask too.
    assert workplace.train(tmp_path, stop=StopsAfter(5), samples=SAMPLES) == 143
    assert [each["step"] for each in samples_of(tmp_path)] == [3] * 4
    assert not all(each["ended"] for each in samples_of(tmp_path))
    assert workplace.train(tmp_path, samples=SAMPLES) == 0
    assert_same_bits(tmp_path, sampled)
    assert samples_of(tmp_path)[4:] == samples_of(sampled)[4:]


def test_an_answer_ends_where_the_true_one_does(workplace, tiny_tokenizer_dir, tmp_path):
    """The output layer is made to say one token always: the one that ends every true answer."""
    from trainer.model import save_model

    model, config = load_model(workplace.root / "start")
    newline = TextEncoder(tiny_tokenizer_dir).encode("\n")[-1]
    for name, token, is_end in (("eos", 2, True), ("newline", newline, True), ("word", 300, False)):
        with torch.no_grad():
            # The layers add nothing, so that ones go in and come out.
            model.language.embed.weight.fill_(1.0)
            for layer in model.language.layers:
                layer.attention.o.weight.zero_()
                layer.mlp.down.weight.zero_()
            model.language.norm.weight.fill_(1.0)
            model.language.lm_head.weight.zero_()
            model.language.lm_head.weight[token] = 1.0
        save_model(tmp_path / name / "model", model.state_dict(), config, workplace.tokenizer_dir)
        row = make_row(np.random.default_rng(1), 0, None, num_learned=3)
        row.data[2, np.flatnonzero(row.data[1])[-1]] = token
        write_shards(tmp_path / name / "shards", tiny_layout(tiny_tokenizer_dir), [row, row])
        workplace.train(
            tmp_path / name / "out",
            model=tmp_path / name / "model",
            evaluation={"shards": tmp_path / name / "shards"},
            optimizer={"peak_lr": 1e-30},
            samples={"every": 1, "count": 1},
            max_steps=1,
            epochs=None,
        )
        (answer,) = samples_of(tmp_path / name / "out")
        assert answer["ended"] == is_end
        assert len(answer["answer"]) == 0 if is_end else len(answer["answer"]) > 10


def test_a_picture_that_cannot_be_read_is_named_before_the_first_step(workplace, tmp_path):
    config = {"data": {"image_dir": tmp_path}, "samples": SAMPLES}
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes((workplace.root / "images" / name).read_bytes())
    with pytest.raises(IntegrityError, match=r"samples: made_up.jsonl:\d+ \(id-\d+\): .*png: no such file"):
        workplace.train(tmp_path / "out", **config)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_samples_are_off_by_default_and_may_change_when_a_run_goes_on():
    assert SamplesConfig().every is None
    assert [step for step in range(9) if is_due(step, SamplesConfig(every=3))] == [3, 6]
    assert not any(is_due(step, SamplesConfig()) for step in range(9))
    base = {"phase": 1, "model": "m", "output_dir": "o", "optimizer": {"peak_lr": 1}, "max_tokens": 8}
    base |= {"global_batch_size": 1, "epochs": 1}
    configs = [TrainConfig.model_validate({**base, "samples": samples}) for samples in ({}, SAMPLES)]
    assert fixed_settings(configs[0]) == fixed_settings(configs[1])


def test_what_a_model_writes_steers_no_terminal_and_stays_in_its_place():
    answer = SampleAnswer(2, "a.jsonl:1", None, "q", "one\ntwo\x1b[2J", "t", False)
    assert answer.lines(9) == (
        "sample after step 2/9: a.jsonl:1\n  question: q\n  answer:   one\n            two\ufffd[2J ...\n  truth:    t"
    )


def test_dropout_and_gradients_are_off_and_the_weights_lie_spread_again(workplace, tmp_path):
    from torch.distributed.tensor import DTensor

    from trainer.checkpoint import Checkpoints
    from trainer.distributed import open_world
    from trainer.loop import Trainer
    from trainer.plan import make_plan
    from trainer.stopping import StopSignal

    config = workplace.config(tmp_path, samples=SAMPLES, dtype="bfloat16")
    with open_world(torch.device("cpu")) as world:
        trainer = Trainer(make_plan(config, world.device), world, Checkpoints(tmp_path, 1, world))
        trainer.model.train()
        seen = []
        trainer.model.projector.register_forward_hook(
            lambda *_: seen.append((trainer.model.training, torch.is_grad_enabled()))
        )
        trainer.steps_done = 2
        assert trainer.sample(StopSignal()) == [] == seen
        trainer.steps_done = 3
        assert len(trainer.sample(StopSignal())) == 4
        assert set(seen) == {(False, False)}
        assert trainer.model.training and torch.is_grad_enabled()
        assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
