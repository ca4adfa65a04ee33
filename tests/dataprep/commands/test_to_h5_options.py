"""The options of `to-h5` that choose, order and shape the rows, as a user types them."""

import json

import pytest

from dataprep.shards import ShardReader


@pytest.fixture
def compiled(workspace, command):
    """Run `to-h5` over thirty records, six of them twice; returns its values and its stderr."""

    def run(*options, code=0, phase=2):
        records = [workspace.record(n, f"pictures/{n % 5}.jpg" if n % 3 else None, 2) for n in range(24)]
        workspace.write("a.jsonl", records + [dict(record, id="again") for record in records[:6]])
        small = ("--set", "image.size=28", "--set", "max_seq_length=200", "--tokenizer", workspace.tokenizer)
        places = ("--input", workspace.root / "jsonl/phase2", "--image-dir", workspace.root, "--output", "h5")
        done = command("to-h5", "--phase", phase, *places, *small, *options, "--json")
        assert done.returncode == code, done.stderr
        return (json.loads(done.stdout) if code == 0 else {}), done.stderr

    return run


def test_rows_are_shuffled_deduplicated_and_held_out(compiled, workspace):
    values, _ = compiled("--shuffle", 3, "--dedup", "exact", "--holdout", "0.3")
    assert (values["records"], values["written"], values["deduplicated"]) == (30, 24, 6)
    with ShardReader(workspace.root / "h5") as kept, ShardReader(workspace.root / "h5/holdout") as held:
        assert values["held_out"] == len(held) > 0 and len(kept) + len(held) == values["rows"]
        lines = [row.source.line for row in kept]
        assert lines != sorted(lines)


def test_the_same_command_again_changes_nothing_and_another_seed_is_refused(compiled, workspace):
    compiled("--shuffle", 3, "--holdout", "0.3")
    before = {p: p.read_bytes() for p in sorted((workspace.root / "h5").rglob("*.h5"))}
    compiled("--shuffle", 3, "--holdout", "0.3")
    assert {p: p.read_bytes() for p in sorted((workspace.root / "h5").rglob("*.h5"))} == before
    _, said = compiled("--shuffle", 4, "--holdout", "0.3", code=4)
    assert "config.shuffle was 3, is 4" in said


def test_rows_are_widened_for_text_only_samples(compiled, workspace):
    compiled("--row-width", "fit")
    with ShardReader(workspace.root / "h5") as reader:
        assert reader.layout.max_seq_length == 200 + reader.layout.hole_length


def test_embedded_pictures_need_no_image_folder(compiled, workspace):
    compiled("--images", "embed", "--image-pixels", "exact")
    for picture in (workspace.root / "pictures").iterdir():
        picture.unlink()
    with ShardReader(workspace.root / "h5") as reader:
        shapes = [reader.picture(index).shape for index in range(len(reader)) if reader[index].has_image]
    assert shapes and set(shapes) == {(28, 28, 3)}


def test_a_wrong_image_folder_is_told(compiled, workspace):
    _, said = compiled("--image-dir", workspace.root / "jsonl", "--max-refused", 1)
    assert f"most pictures were not found under {workspace.root / 'jsonl'}; --image-dir is what" in said


@pytest.mark.parametrize(
    ("options", "phase", "message"),
    [
        (("--row-width", "fit"), 1, "row_width fit makes room for text-only samples, and phase 1 has none"),
        (("--holdout", "1"), 2, "1.0 is not in the range"),
        (("--template", "plain"), 2, "template plain is not one of phase 2"),
        (("--template", "llama5"), 2, "template: expected 'plain', 'plain_eos', 'vicuna_v1'"),
        (("--template", "llama3"), 2, "template llama3: "),
        (("--set", "holdout_by=picture"), 2, "holdout_by picture needs a holdout"),
        (("--image-pixels", "exact"), 2, "image_pixels is of embedded pictures: add images=embed"),
    ],
)
def test_options_that_do_not_fit_end_with_a_sentence(compiled, options, phase, message):
    _, said = compiled(*options, phase=phase, code=2)
    assert message in said
    assert "Traceback" not in said


def test_an_output_that_is_a_file_is_named(compiled, workspace):
    (workspace.root / "h5").write_text("a file")
    _, said = compiled(code=2)
    assert said == "llava-prep: h5: File exists\n"
