"""The options of `to-h5` that choose, order and shape the rows, as a user types them."""

import json
import re
import shutil
from collections import Counter

import pytest

from dataprep.shards import ShardReader


@pytest.fixture
def compiled(workspace, command):
    """Run `to-h5` over thirty records, six of them twice; returns its values and its stderr, or the text for people."""

    def run(*options, code=0, phase=2, as_json=True):
        records = [workspace.record(n, f"pictures/{n % 5}.jpg" if n % 3 else None, 2) for n in range(24)]
        workspace.write("a.jsonl", records + [dict(record, id="again") for record in records[:6]])
        small = ("--set", "image.size=28", "--set", "max_seq_length=200", "--tokenizer", workspace.tokenizer)
        places = ("--input", workspace.root / "jsonl/phase2", "--image-dir", workspace.root, "--output", "h5")
        done = command("to-h5", "--phase", phase, *places, *small, *options, *["--json"] * as_json)
        assert done.returncode == code, done.stderr
        if not as_json:
            return done.stdout
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


def test_what_is_held_out_is_counted_in_records_everywhere(compiled, workspace, command):
    options = ("--holdout", "0.5", "--overlong", "split", "--set", "max_seq_length=110")
    values, _ = compiled(*options)
    with ShardReader(workspace.root / "h5/holdout") as held:
        assert len(held) > values["held_out"] == len({row.source.line for row in held})
    told = f"{values['held_out']} records"
    assert f"Beside these, {told} were held out" in (workspace.root / "h5/report.html").read_text()
    assert f"Beside these, {told} were held out" in (workspace.root / "h5/README.md").read_text()
    assert f"{told}, in holdout/ and not in these figures" in command("report", "h5").stdout
    shown = compiled(*options, as_json=False)
    assert re.search(rf"^  written +30\n    records held out +{values['held_out']}$", shown, re.MULTILINE)


def test_a_rerun_says_what_it_made_anew(compiled, workspace):
    many = ("--set", "shard_rows=8")
    values, _ = compiled(*many)
    assert (values["tasks"], values["tasks_compiled"]) == (4, 4)
    for number in (1, 2):
        (workspace.root / f"h5/shard-0000{number}.h5").unlink()
    values, _ = compiled(*many)
    assert (values["tasks"], values["tasks_compiled"]) == (4, 2)
    assert compiled(*many, as_json=False).startswith("h5: nothing was compiled anew: all 4 tasks were there\nrecords ")
    (workspace.root / "h5/shard-00002.h5").write_bytes(b"")
    said = "h5: 1 of 4 tasks was missing and compiled now; 3 were there\nrecords "
    assert compiled(*many, as_json=False).startswith(said)
    shutil.rmtree(workspace.root / "h5")
    assert compiled(*many, as_json=False).startswith("h5\nrecords ")


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
    ("options", "remedy"),
    [
        (
            ("--overlong", "drop", "--set", "max_seq_length=110"),
            "too_long ({}: longer than the row): --overlong truncate or split, a larger --set max_seq_length=N (it is"
            " 110) or --row-width fit for text-only ones, into another --output; or accept the loss with --max-refused",
        ),
        (
            ("--overlong", "split", "--set", "max_seq_length=90", "--row-width", "fit"),
            "too_long ({}: longer than the row): --overlong truncate or a larger --set max_seq_length=N (it is 90), in",
        ),
        (
            ("--image-dir", "jsonl"),
            "all of them missing_image ({}: there is no such picture): give another --image-dir (image keys are read"
            " below {root}/jsonl), or put the pictures there and run the same command again: it takes up the records",
        ),
    ],
)
def test_too_many_refusals_end_with_the_largest_reason_and_what_helps(compiled, workspace, options, remedy):
    _, said = compiled(*options, code=3)
    (last,) = said.splitlines()[-1:]
    reasons = Counter(
        json.loads(line)["reason"] for line in (workspace.root / "h5/refused.jsonl").read_text().splitlines()
    )
    ((_, count),) = reasons.most_common(1)
    assert last.startswith(f"llava-prep: {reasons.total()} of 30 records refused: more than 1.00%; ")
    assert remedy.format(count, root=workspace.root) in last


def test_what_helps_against_too_many_refusals_does_help(compiled, workspace):
    _, said = compiled("--overlong", "drop", "--set", "max_seq_length=110", code=3)
    share = said.splitlines()[-1].rpartition(" ")[2]
    compiled("--overlong", "drop", "--set", "max_seq_length=110", "--max-refused", share)
    shutil.rmtree(workspace.root / "h5")
    compiled("--overlong", "truncate", "--set", "max_seq_length=110")


@pytest.mark.parametrize(
    ("options", "phase", "message"),
    [
        (("--row-width", "fit"), 1, "row_width fit makes room for text-only samples, and phase 1 has none"),
        (("--holdout", "1"), 2, "1.0 is not in the range"),
        (("--template", "plain"), 2, "--template plain: is for phase 1, not 2; choose from vicuna_v1, llama2, llama3,"),
        (("--template", "llama5"), 2, "--template llama5: not known, did you mean llama3?; choose from vicuna_v1, lla"),
        (("--template", "x"), 1, "--template x: not known; choose from plain, plain_eos\n"),
        (("--set", "template=llama5"), 2, "llava-prep: --set template=llama5: template: expected 'plain', 'plain_eos'"),
        (("--set", "template=llama5"), 2, "or 'tokenizer', found 'llama5', did you mean llama3?\n"),
        (
            ("--set", "template=plain"),
            2,
            "--set template=plain: config: template plain is not one of phase 2; choose from vicuna_v1, llama2",
        ),
        (("--config", "my.yaml"), 2, "my.yaml:2: template: expected 'plain', 'plain_eos', 'vicuna_v1', 'llama2', 'll"),
        (("--config", "my.yaml"), 2, "found 'vicuna_v2', did you mean vicuna_v1?\n"),
        (("--set", "holdout_by=picture"), 2, "holdout_by picture needs a holdout"),
        (("--image-pixels", "exact"), 2, "image_pixels is of embedded pictures: add images=embed"),
    ],
)
def test_options_that_do_not_fit_end_with_a_sentence(compiled, workspace, options, phase, message):
    (workspace.root / "my.yaml").write_text("phase: 2\ntemplate: vicuna_v2\n")
    _, said = compiled(*options, phase=phase, code=2)
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "source"),
    [
        (("--template", "llama3"), "--template llama3"),
        (("--template", "llama3", "--set", "template=zephyr"), "--template llama3"),
        (("--set", "template=llama3"), "--set template=llama3"),
        (("--config", "my.yaml"), "my.yaml: template"),
        (("--config", "my.yaml", "--dry-run"), "my.yaml: template"),
    ],
)
def test_a_template_that_does_not_fit_the_tokenizer_is_told_with_its_source_and_those_that_fit(
    compiled, workspace, options, source
):
    (workspace.root / "my.yaml").write_text("phase: 2\ntemplate: llama3\n")
    _, said = compiled(*options, code=2)
    assert said == (
        f"llava-prep: {source}: tokenizer {workspace.tokenizer}: template llama3: the tokenizer has no"
        " <|start_header_id|>; templates that fit it: vicuna_v1, llama2, mistral\n"
    )


def test_a_row_that_is_too_short_is_told_with_its_source(compiled):
    _, said = compiled("--set", "max_seq_length=20", code=2)
    assert said.startswith("llava-prep: --set max_seq_length=20: max_seq_length 20: the prompt and 4 image slots take ")


def test_a_chat_template_without_a_place_for_the_picture_is_told_with_its_source(compiled, workspace):
    folder = workspace.root / "chatty"
    shutil.copytree(workspace.tokenizer, folder)
    chat = "{{ 'long' if messages|length == 6 }}{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}"
    values = {**json.loads((folder / "tokenizer_config.json").read_text()), "chat_template": chat + "{% endfor %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    _, said = compiled("--tokenizer", folder, "--template", "tokenizer", code=2)
    assert said.startswith(
        f"llava-prep: --template tokenizer: tokenizer {folder}: template tokenizer: before the first"
    )
    assert "so image_start_idx is not constant; templates that fit it: vicuna_v1, llama2" in said


def test_an_output_that_is_a_file_is_named(compiled, workspace):
    (workspace.root / "h5").write_text("a file")
    _, said = compiled(code=2)
    assert said == "llava-prep: h5: File exists\n"
