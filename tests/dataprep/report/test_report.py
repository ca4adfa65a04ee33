"""The page and the card as files: always the same, small, without paths of this machine, and never in the way."""

import json
import re
from dataclasses import replace

import pytest
import yaml

from dataprep.errors import CommandError, Exit
from dataprep.pipeline import run_job
from dataprep.report import CARD_NAME, PAGE_NAME, STRICT, try_report, write_report
from dataprep.report import page as pages
from dataprep.report.card import card, code
from dataprep.report.gather import MAX_SLOTS
from dataprep.report.markup import visible
from dataprep.report.refusals import refusal_examples
from dataprep.report.wording import number
from dataprep.shards.layout import Source
from tests.dataprep.report.folders import Strings, folder_of_strings, layout_for, row, write_folder
from tests.dataprep.report.hostile import HOSTILE


def test_the_same_folder_gives_the_same_bytes_wherever_it_lies(compiled, tmp_path):
    before = [(compiled / name).read_bytes() for name in (PAGE_NAME, "README.md")]
    moved = compiled.rename(tmp_path / "elsewhere")
    write_report(moved)
    assert [(moved / name).read_bytes() for name in (PAGE_NAME, "README.md")] == before


def test_no_path_of_this_machine_stands_in_it(compiled, image_root):
    root = str(image_root)
    assert root in (compiled / "manifest.json").read_text() and root in (compiled / "refused.jsonl").read_text()
    for name in (PAGE_NAME, "README.md"):
        assert root not in (compiled / name).read_text()


def test_the_page_forbids_requests_and_has_no_script(compiled):
    page = (compiled / PAGE_NAME).read_text()
    assert 'content="default-src &#x27;none&#x27;; img-src data:' in page
    assert "<script" not in page and "http:" not in page and "https:" not in page
    assert not re.search(r"url\(|@import|@font-face", page)
    assert set(re.findall(r' (?:src|href)="(.{5})', page)) <= {"data:", "#acco", "#leng", "#trai", "#pack", "#sour"} | {
        *("#refu", "#rows", "#made")
    }


def test_a_report_elsewhere_leaves_the_folder_alone(compiled, tmp_path):
    (compiled / PAGE_NAME).unlink()
    (compiled / "README.md").write_text("my own")
    written = write_report(compiled, tmp_path / "there.html")
    assert written.page.read_text().startswith("<!doctype html>")
    assert not (compiled / PAGE_NAME).exists() and (compiled / "README.md").read_text() == "my own"


def test_the_page_stays_small_whatever_the_folder_holds(tmp_path, tiny_tokenizer_dir):
    """Every list longer than the page shows, every string longer than it shows, of the characters that cost most."""
    layout = layout_for(tiny_tokenizer_dir, "\1" * 5_000, slots=9_000, image_size=448)
    long = [3] * 8_000  # the byte piece of NUL, each of which is written out
    rows = [
        row(
            layout,
            long,
            long[:900],
            f"{n % 5}" + "\1" * 3_000 if n % 2 else None,
            Source("\2" * 900 + str(n), n, "\3" * 900),
        )
        for n in range(120)
    ]
    folder = write_folder(
        tmp_path / "large",
        tiny_tokenizer_dir,
        layout,
        [rows],
        accounting={
            "refused": {f"{n}" + "\4" * 900: 5 for n in range(300)},
            "normalised": {f"{n}\5": 1 for n in range(300)},
        },
        config={f"{n}" + "\6" * 900: "\7" * 900 for n in range(300)},
        inputs=[{"file": f"{n}" + "\0" * 900, "bytes": 1, "sha256": "\0" * 900} for n in range(300)],
    )
    refusal = {"file": "\0" * 900, "line": 3, "id": "\0" * 900, "detail": "\0" * 900}
    lines = [json.dumps({"reason": f"{n}" + "\4" * 900, **refusal}) for n in range(300)]
    (folder / "refused.jsonl").write_text("\n".join(line for line in lines for _ in range(4)))
    written = write_report(folder)
    assert 200_000 < written.page.stat().st_size < 2_000_000
    assert (folder / "README.md").stat().st_size < 2_000_000


def test_examples_are_the_first_of_each_reason_and_reading_ends_when_all_are_found(compiled, image_root):
    found = refusal_examples(compiled, {"missing_image": 1, "not_json": 1, "other": 0}, str(image_root))
    (missing,) = found["missing_image"]
    assert (missing.file, missing.line, missing.id) == ("read.jsonl", 31, "r200")
    assert missing.detail == "pictures/none.jpg: no such file"
    assert len(found["not_json"]) == 1 and found["other"] == []
    path = compiled / "refused.jsonl"
    path.write_bytes(b'{"reason": "a", "line": "x"}\n[1]\n\xff\n{"reason": 3}\n' * 9)
    assert [example.line for example in refusal_examples(compiled, {"a": 9}, "/")["a"]] == [0, 0, 0]
    path.unlink()
    assert refusal_examples(compiled, {"a": 9}, "/") == {"a": []}


def test_a_fault_in_the_report_is_told_and_changes_nothing(compiled, monkeypatch):
    said = []
    monkeypatch.delenv(STRICT, raising=False)
    monkeypatch.setattr(pages, "SECTIONS", (("x", "X", lambda facts: 1 / 0),))
    assert try_report(compiled, said.append) is None
    (sentence,) = said
    assert "could not be made (ZeroDivisionError: division by zero); `llava-prep report " in sentence
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(ZeroDivisionError):
        try_report(compiled, said.append)


def test_an_interruption_is_no_fault_of_the_report(compiled, monkeypatch):
    monkeypatch.delenv(STRICT, raising=False)
    for error in (CommandError("terminated", Exit.TERMINATED), KeyboardInterrupt()):

        def interrupted(facts, error=error):
            raise error

        monkeypatch.setattr(pages, "SECTIONS", (("x", "X", interrupted),))
        with pytest.raises(type(error)):
            try_report(compiled, print)


def test_what_is_held_out_has_a_report_of_its_own(job):
    job = replace(job, config=job.config.model_copy(update={"holdout": 0.3}))
    tally = run_job(job, 1, lambda *_: None)
    report = try_report(job.output, print)
    assert report is not None and tally.held_out
    assert (job.output / "holdout" / PAGE_NAME).is_file()
    held_out = number(tally.held_out, "record")
    assert f"Beside these, {held_out} were held out: they are in holdout/" in (job.output / PAGE_NAME).read_text()
    assert f"Beside these, {held_out} were held out: they are in `holdout/`." in (job.output / CARD_NAME).read_text()
    assert dict(report.summary)["held out"] == f"{held_out}, in holdout/ and not in these figures"


def test_a_sampled_folder_says_so(tmp_path, tiny_tokenizer_dir, monkeypatch):
    layout = layout_for(tiny_tokenizer_dir)
    shards = [[row(layout, [260] * 9, [261], None, Source("a.jsonl", n, "r"))] for n in range(9)]
    folder = write_folder(tmp_path / "f", tiny_tokenizer_dir, layout, shards)
    monkeypatch.setattr("dataprep.report.gather.MAX_SHARDS", 3)
    page = write_report(folder).page.read_text()
    assert page.count("Counted on 3 rows of 9: 3 shards, evenly over the folder.") == 3


def test_a_folder_without_rows_has_a_report(tmp_path, tiny_tokenizer_dir):
    folder = write_folder(tmp_path / "f", tiny_tokenizer_dir, layout_for(tiny_tokenizer_dir), [])
    assert "There are no rows." in write_report(folder).page.read_text()
    assert layout_for(tiny_tokenizer_dir).max_seq_length < MAX_SLOTS


class TestCard:
    def test_it_says_what_is_there(self, compiled):
        text = (compiled / "README.md").read_text()
        front, body = text.removeprefix("---\n").split("---\n", 1)
        values = yaml.safe_load(front)
        assert values["size_categories"] == ["n<1K"] and values["task_categories"] == ["image-text-to-text"]
        assert values["viewer"] is False and "license" not in values
        assert "90 rows of 200 slots in 1 HDF5 shard" in body
        for line in ("| records read | 94 |  |", "| refused: `missing_image` | 1 | 1.1 % |", "`seen.jsonl`, sha256 `"):
            assert line in body
        assert '"max_seq_length": 200' in body

    def test_the_code_it_shows_for_loading_runs(self, compiled, capsys):
        (code_shown,) = re.findall(r"```python\n(.*?)```", (compiled / "README.md").read_text(), re.DOTALL)
        exec(code_shown.replace("PATH", str(compiled)), {})
        assert capsys.readouterr().out.startswith("90 RowLayout(")

    @pytest.mark.parametrize(
        ("rows", "name"), [(999, "n<1K"), (1000, "1K<n<10K"), (665_298, "100K<n<1M"), (2 * 10**9, "n>1B")]
    )
    def test_the_size_is_the_hub_s(self, compiled, rows, name):
        manifest = json.loads((compiled / "manifest.json").read_text())
        manifest["accounting"]["rows"] = rows
        assert f'size_categories: ["{name}"]' in card(manifest)

    @pytest.mark.parametrize("text", HOSTILE[::3])
    def test_a_hostile_string_stays_one_piece_of_code(self, text):
        shown = code(text)
        assert re.fullmatch(r"`[^`|\r\n]+`", shown) and visible(shown) == shown

    def test_hostile_strings_break_neither_front_matter_nor_tables(self, workspace):
        strings = Strings.all_of("--- | ` \n# x\n```\n</script>")
        folder = folder_of_strings(workspace.root / "f", workspace.tokenizer, workspace.root, strings)
        write_report(folder)
        text = (folder / "README.md").read_text()
        assert (
            text.count("\n---\n") == 1 and text.partition("\n---\n")[2].count("\n# ") == 1 and text.count("\n```") == 4
        )
