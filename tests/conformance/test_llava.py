"""Tokens and trained positions equal the original LLaVA's, for every well-formed sample, both `legacy` settings.

The golden outputs were made by running LLaVA (commit c121f04, transformers 4.37.2) unmodified.
"""

import json
import shutil

import numpy as np
import pytest

from dataprep.config import CompileConfig
from dataprep.conversation import Refusal, parse, validate
from dataprep.encoding import TextEncoder, encode
from dataprep.layouts import find_layout
from dataprep.rows import Limit, lay_out
from dataprep.shards.layout import Source, feature
from dataprep.templates import TEMPLATES

TEMPLATE = {1: "plain", 2: "vicuna_v1"}
IMAGE_START = {1: 1, 2: 35}
KINDS = {"slow_legacyF": False, "slow_legacyT": True}

#: What LLaVA loses, corrupts or cannot do, by the samples' own category; `docs/decisions.md` lists each.
REFUSED = {
    "empty": "empty_answer",
    "empty_answer": "empty_answer",
    "empty_answer_mid": "empty_answer",
    "two_images_in_prompt": "image_count",
    "two_images_one_turn": "image_count",
    "two_images_two_turns": "image_count",
    "no_image_token": "image_count",
    "image_key_no_token": "image_count",
    "four_turns": "plain_needs_a_pair",
    "text_only_no_image_key": "plain_needs_an_image",
    "gpt_first": "not_human_first",
    "image_second_turn": "image_not_in_first_turn",
    "ends_on_human": "ends_on_human",
    "same_role_twice": "roles_do_not_alternate",
    "unknown_role": "unknown_role",
}
TEXT_HERE = {
    "caption_with_image_tag",
    "literal_eos",
    "literal_eos_in_answer",
    "literal_bos_in_text",
    "literal_unk_in_text",
    "literal_assistant_marker",
    "literal_image_in_answer",
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def encoder(shared, tmp_path, kind):
    source = shared / "tokenizer-llama2"
    shutil.copy(source / "tokenizer.json", tmp_path)
    config = json.loads((source / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": KINDS[kind]}))
    return TextEncoder(tmp_path)


def samples(shared, phase):
    lines = (shared / f"goldens/llava/phase{phase}.jsonl").read_bytes().split(b"\n")
    return [(json.loads(line)["category"], line) for line in lines if line]


def golden(shared, phase, record_id, kind):
    arrays = np.load(shared / f"goldens/llava/phase{phase}_expanded.npz")
    ids, labels = arrays[f"{record_id}/input_ids"], arrays[f"{record_id}/labels"]
    if kind != "slow_legacyF":
        # Only the canonical kind was expanded by LLaVA itself; the rule is one slot to 576.
        raw = np.load(shared / f"goldens/llava/phase{phase}.npz")
        ids, labels = raw[f"{record_id}/{kind}/input_ids"], raw[f"{record_id}/{kind}/labels"]
        slot = np.flatnonzero(ids == -200)
        if len(slot):
            ids, labels = (
                np.concatenate([values[: slot[0]], np.full(576, fill), values[slot[0] + 1 :]])
                for values, fill in ((ids, -200), (labels, -100))
            )
    return ids, labels


@pytest.mark.parametrize("phase", [1, 2])
def test_ids_and_trained_positions_equal_llavas(shared, encoder, kind, phase):
    layout = find_layout(CompileConfig(phase=phase, template=TEMPLATE[phase]), encoder)
    assert layout.image_start_idx == IMAGE_START[phase]
    compared = 0
    for category, line in samples(shared, phase):
        if category in REFUSED or category in TEXT_HERE:
            continue
        conversation, _ = parse(line)
        validate(conversation)
        sample = encode(TEMPLATES[TEMPLATE[phase]].bind(encoder.dialect).render(conversation), encoder, 576)
        ids, labels = golden(shared, phase, conversation.id, kind)
        if Limit(layout.max_seq_length + 1).excess(sample) > 0:
            # LLaVA cuts at 2048; a row holds one token more, which stands in the labels only.
            assert category.startswith(("long", "mid_1500"))
            cut = sample.ids[sample.attended][: len(ids)]
            assert (cut[ids != -200] == ids[ids != -200]).all()
            continue
        row = lay_out(sample, layout, conversation.image, Source("", 0, ""))
        _same_row(row, layout, ids, labels)
        compared += 1
    assert compared == {1: 13, 2: 21}[phase]


def _same_row(row, layout, ids, labels):
    """Compare what the model sees and learns: the attended positions, in order."""
    attended = feature(row.data, "key_padding_mask") == 0
    ours = feature(row.data, "text_input_ids")[attended]
    learned = feature(row.data, "loss_mask")[attended] == 1
    assert row.length == len(ids) - 1
    text = ids[:-1] != -200
    assert (ours[text] == ids[:-1][text]).all()
    if row.img_path is not None:
        slots = slice(layout.image_start_idx, layout.image_start_idx + 576)
        assert (ids[slots] == -200).all() and (ids == -200).sum() == 576
    assert (learned == (labels[1:] != -100)).all()
    assert (feature(row.data, "labels")[attended][learned] == labels[1:][learned]).all()
    assert (feature(row.data, "loss_mask")[~attended] == 0).all()


@pytest.mark.parametrize("phase", [1, 2])
def test_where_llava_loses_or_corrupts_data_we_refuse_by_name(shared, encoder, phase):
    seen = set()
    for category, line in samples(shared, phase):
        if category not in REFUSED:
            continue
        with pytest.raises(Refusal) as caught:
            conversation, _ = parse(line)
            validate(conversation)
            TEMPLATES[TEMPLATE[phase]].bind(encoder.dialect).render(conversation)
        assert caught.value.reason == REFUSED[category], category
        seen.add(category)
    assert len(seen) >= 5


@pytest.mark.parametrize("phase", [1, 2])
def test_literals_that_llava_takes_for_control_ids_are_text(shared, encoder, phase):
    seen = set()
    for category, line in samples(shared, phase):
        if category not in TEXT_HERE:
            continue
        conversation, _ = parse(line)
        validate(conversation)
        sample = encode(TEMPLATES[TEMPLATE[phase]].bind(encoder.dialect).render(conversation), encoder, 576)
        pairs = len(conversation.turns) // 2
        assert (sample.ids == 1).sum() == 1
        assert (sample.ids == 2).sum() == (pairs if phase == 2 else 0)
        assert sample.num_trained > 1
        seen.add(category)
    assert seen
