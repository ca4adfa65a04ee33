"""A table runs both ways, and every tensor meets exactly one rule."""

import pytest
import torch

from converters.errors import ConversionError
from converters.files import LazyTensor
from converters.formats import hf
from converters.formats.transformers_names import decoder_rules, tower_rules
from converters.rules import Reshape, Rule, to_ours, to_theirs
from tests.tiny_llava import tiny_llava

CLIP, LLAMA = tiny_llava(0, 0).config.vision, tiny_llava(0, 0).config.language
SIGLIP = CLIP.model_copy(update={"kind": "siglip"})

TABLE = [
    Rule("head.w", "language.lm_head.weight"),
    Rule("blocks.{}.q", "language.layers.{}.q", Reshape(apply=torch.t, undo=torch.t)),
    Rule("old.*", None),
]


def lazy(name, *shape):
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    return LazyTensor(name, shape, torch.float32, lambda: values)


def test_a_table_runs_both_ways():
    theirs = [lazy("blocks.11.q", 2, 3), lazy("head.w", 4), lazy("old.anything.at.all", 1)]
    ours = to_ours(theirs, TABLE, ["language.lm_head.weight", "language.layers.11.q"])
    assert [(t.name, t.shape) for t in ours] == [("language.lm_head.weight", (4,)), ("language.layers.11.q", (3, 2))]
    back = to_theirs(ours, TABLE)
    assert [(t.name, t.shape) for t in back] == [("head.w", (4,)), ("blocks.11.q", (2, 3))]
    assert torch.equal(back[1].load(), theirs[0].load())


def test_everything_that_does_not_fit_is_in_one_error():
    theirs = [lazy("b.stray", 1), lazy("a.stray", 1), lazy("blocks.0.q", 1, 1), lazy("blocks.7.q", 1, 1)]
    with pytest.raises(ConversionError) as caught:
        to_ours(theirs, TABLE, ["language.lm_head.weight", "language.layers.0.q", "language.layers.1.q"])
    message = str(caught.value)
    assert "no rule for a.stray, b.stray" in message
    assert "not found: language.layers.1.q, language.lm_head.weight" in message
    assert "not part of a model of this config: language.layers.7.q" in message


def test_two_tensors_for_one_place_are_refused():
    with pytest.raises(ConversionError, match="more than one tensor for language.lm_head.weight"):
        to_ours([lazy("head.w", 1), lazy("head.w", 1)], TABLE, ["language.lm_head.weight"])


def test_a_layer_number_is_a_number():
    with pytest.raises(ConversionError, match="no rule for blocks.x.q"):
        to_ours([lazy("blocks.x.q", 1, 1)], TABLE, [])


def test_our_tensor_without_a_rule_is_refused_when_written():
    with pytest.raises(ConversionError, match="no rule for language.extra"):
        to_theirs([lazy("language.extra", 1)], TABLE)


@pytest.mark.parametrize(
    "table",
    [
        tower_rules("v.", CLIP),
        tower_rules("", SIGLIP),
        decoder_rules("", LLAMA),
        decoder_rules("x.", LLAMA.model_copy(update={"tie_embeddings": True})),
        decoder_rules("", LLAMA.model_copy(update={"family": "qwen3"})),
        hf.rules(tiny_llava(0, 0).config),
    ],
    ids=["clip", "siglip", "llama", "tied llama", "qwen3", "hf"],
)
def test_no_name_stands_twice_in_a_table(table):
    theirs = [rule.theirs for rule in table]
    ours = [rule.ours for rule in table if rule.ours]
    assert len(set(theirs)) == len(theirs) > 10
    assert len(set(ours)) == len(ours)
