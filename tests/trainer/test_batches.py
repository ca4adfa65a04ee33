"""Rows to micro-batches: what is kept, where it lies, and what a step knows of itself."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataprep.images import dummy_image, load_image, pad_colour
from dataprep.shards import ShardReader
from tests.trainer.tiny_run import IMAGE_START, NUM_PATCHES, ROW_TOKENS, TINY
from trainer.batches import StepDataset, collate, load_steps, read_picture
from trainer.model import load_model
from trainer.packing import SampleOrder

CPU = torch.device("cpu")


def rows_and_pictures(workplace, indices, packed=True):
    rows = [workplace.reader[index] for index in indices]
    wanted = [row for row in rows if row.has_image or not packed]
    return rows, [read_picture(row, workplace.layout, workplace.root / "images") for row in wanted]


def dataset_of(workplace, **changes):
    reader = workplace.reader
    order = SampleOrder(reader.lengths, seed=0, samples_per_step=6)
    settings = {"image_dir": workplace.root / "images", "max_tokens": 64, **changes}
    return StepDataset(reader, order, **settings)


def test_a_pack_holds_what_is_attended_and_nothing_else(workplace):
    rows, pictures = rows_and_pictures(workplace, range(4))
    batch = collate(rows, pictures, workplace.layout).to(CPU)
    bounds = batch.inputs.segments.cu_seqlens.tolist()
    assert np.diff(bounds).tolist() == [row.length for row in rows]
    assert batch.inputs.segments.max_seqlen == max(row.length for row in rows)
    assert batch.inputs.segments.key_padding is None
    for row, start, end in zip(rows, bounds, bounds[1:], strict=False):
        kept = ~row.key_padding_mask
        assert batch.inputs.input_ids[start:end].tolist() == row.text_input_ids[kept].tolist()
        assert batch.inputs.positions[start:end].tolist() == list(range(row.length))
        mine = (batch.loss_positions >= start) & (batch.loss_positions < end)
        assert (batch.loss_positions[mine] - start).tolist() == np.flatnonzero(row.loss_mask[kept]).tolist()
        assert batch.labels[mine].tolist() == row.labels[row.loss_mask].tolist()


def test_pictures_stand_at_their_own_rows_slots(workplace):
    rows, pictures = rows_and_pictures(workplace, range(4))
    batch = collate(rows, pictures, workplace.layout).to(CPU)
    starts = [s for s, row in zip(batch.inputs.segments.cu_seqlens.tolist(), rows, strict=False) if row.has_image]
    expected = [start + IMAGE_START + patch for start in starts for patch in range(NUM_PATCHES)]
    assert batch.inputs.image_slots.tolist() == expected
    assert batch.inputs.pixels.shape == (len(starts), 3, 28, 28)
    assert len(starts) not in (0, len(rows))
    assert np.array_equal(batch.inputs.pixels[1].permute(1, 2, 0), pictures[1])


def test_pictures_are_scaled_as_the_config_says(workplace):
    path = next(iter((workplace.root / "images").iterdir()))
    colour = pad_colour(TINY.image_mean)
    row = next(row for row in map(workplace.reader.__getitem__, range(23)) if row.img_path == path.name)
    exact, fast = (
        read_picture(row, workplace.layout, workplace.root / "images", None, pixels) for pixels in ("exact", "fast")
    )
    assert np.array_equal(exact, load_image(path, 28, "pad", colour, "exact"))
    assert np.array_equal(fast, load_image(path, 28, "pad", colour, "fast"))
    assert 0 < np.abs(exact.astype(int) - fast).max() <= 2


def test_rows_as_stored_keep_their_holes_and_padding(workplace):
    rows, pictures = rows_and_pictures(workplace, range(4), packed=False)
    batch = collate(rows, pictures, workplace.layout, packed=False).to(CPU)
    assert batch.inputs.segments.cu_seqlens.tolist() == [ROW_TOKENS * i for i in range(5)]
    padding = batch.inputs.segments.key_padding
    assert padding is not None
    assert padding.tolist() == [bool(masked) for row in rows for masked in row.key_padding_mask]
    attended = ~padding.view(4, ROW_TOKENS)
    positions = batch.inputs.positions.view(4, ROW_TOKENS)
    for index, row in enumerate(rows):
        assert positions[index][attended[index]].tolist() == list(range(row.length))
    assert batch.inputs.image_slots.view(4, NUM_PATCHES)[:, 0].tolist() == [
        ROW_TOKENS * i + IMAGE_START for i in range(4)
    ]
    dummy = torch.from_numpy(dummy_image(28, pad_colour(TINY.image_mean))).permute(2, 0, 1)
    assert [torch.equal(pixels, dummy) for pixels in batch.inputs.pixels] == [not row.has_image for row in rows]


def test_packed_and_stored_rows_give_the_same_logits(workplace):
    model, _ = load_model(workplace.root / "start")
    packed, stored = (
        collate(*rows_and_pictures(workplace, range(6), packed), workplace.layout, packed).to(CPU)
        for packed in (True, False)
    )
    with torch.no_grad():
        expected = model(stored.inputs, stored.loss_positions)
        torch.testing.assert_close(model(packed.inputs, packed.loss_positions), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(packed.labels, stored.labels)
    assert len(packed.labels) > 6


@pytest.mark.parametrize("packed", [True, False])
def test_padding_to_a_multiple_is_a_segment_of_its_own(workplace, packed):
    rows, pictures = rows_and_pictures(workplace, range(3), packed)
    plain = collate(rows, pictures, workplace.layout, packed).to(CPU)
    padded = collate(rows, pictures, workplace.layout, packed, pad_to_multiple=100).to(CPU)
    num_tokens = len(plain.inputs.input_ids)
    assert len(padded.inputs.input_ids) == -(-num_tokens // 100) * 100
    assert padded.inputs.segments.cu_seqlens.tolist()[:-1] == plain.inputs.segments.cu_seqlens.tolist()
    assert torch.equal(padded.loss_positions, plain.loss_positions)


def test_a_rank_without_samples_gets_one_token_and_nothing_to_learn(workplace):
    batch = collate([], [], workplace.layout).to(CPU)
    assert len(batch.inputs.input_ids) == 1
    assert len(batch.labels) == len(batch.inputs.image_slots) == len(batch.inputs.pixels) == 0


def test_ranks_share_a_step_and_know_its_totals(workplace):
    reader = workplace.reader
    alone = dataset_of(workplace)
    step_of_rank = [dataset_of(workplace, rank=rank, num_ranks=3)[1] for rank in range(3)]
    samples = alone.order.samples(1)
    names = sorted(source for step in step_of_rank for batch in step.micro_batches for source in batch.sources)
    assert names == sorted(source for batch in alone[1].micro_batches for source in batch.sources)
    assert len(names) == 6
    for step in step_of_rank:
        assert (step.num_samples, step.epoch, step.fault) == (6, 0, None)
        assert step.num_loss_tokens == reader.num_loss_tokens[samples].sum()
        assert step.num_useful_tokens == reader.lengths[samples].sum()
        assert step.num_computed_tokens == step_of_rank[0].num_computed_tokens >= step.num_useful_tokens
    assert alone[1].num_computed_tokens == alone[1].num_useful_tokens


def test_rows_as_stored_cost_their_full_length(workplace):
    step = dataset_of(workplace, packed=False, max_tokens=2 * ROW_TOKENS)[0]
    assert step.num_computed_tokens == 6 * ROW_TOKENS
    assert [len(batch.sources) for batch in step.micro_batches] == [2, 2, 2]


def test_a_missing_picture_is_a_fault_that_names_row_and_file(workplace, tmp_path):
    step = dataset_of(workplace, image_dir=tmp_path)[0]
    assert step.micro_batches == ()
    assert step.fault is not None
    assert "made_up.jsonl:" in step.fault
    assert str(tmp_path) in step.fault


def test_a_damaged_shard_is_a_fault(workplace, tmp_path):
    for path in (workplace.root / "shards").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dataset = StepDataset(ShardReader(tmp_path), dataset_of(workplace).order, workplace.root / "images", 64)
    len(dataset.rows.lengths)
    dataset.rows.close()
    dataset.rows._verified.clear()
    (tmp_path / "shard-00000.h5").write_bytes(b"nothing")
    fault = dataset[0].fault
    assert fault is not None
    assert "shard-00000.h5: damaged" in fault


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_picture_is_fitted_as_the_shards_say(workplace, fit):
    row = next(row for row in map(workplace.reader.__getitem__, range(4)) if row.has_image)
    path = workplace.root / "images" / row.img_path
    layout = replace(workplace.layout, image_fit=fit)
    picture = read_picture(row, layout, workplace.root / "images")
    padded, cropped = (load_image(path, 28, each, pad_colour(TINY.image_mean), "fast") for each in ("pad", "crop"))
    assert not np.array_equal(padded, cropped)
    assert np.array_equal(picture, padded if fit == "pad" else cropped)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_steps_come_in_order_from_any_number_of_workers(workplace, num_workers):
    dataset = dataset_of(workplace)
    steps = list(load_steps(dataset, range(1, 6), num_workers, pin_memory=False))
    assert [step.number for step in steps] == [1, 2, 3, 4, 5]
    for step in steps:
        expected = dataset[step.number]
        for batch, other in zip(step.micro_batches, expected.micro_batches, strict=True):
            assert torch.equal(batch.integers, other.integers)
            assert torch.equal(batch.pixels, other.pixels)


def test_a_dataset_can_be_sent_to_another_process(workplace):
    dataset = dataset_of(workplace)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[2].micro_batches[0].integers, dataset[2].micro_batches[0].integers)
