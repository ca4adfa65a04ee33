"""What the documents name exists: files, commands, options, tests, and every reason of a refusal."""

import re
from pathlib import Path

import click
import pytest

from converters.cli import main as convert
from dataprep.cli import main as prepare
from dataprep.conversation import REASONS

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/decisions.md", "dataprep/shards/README.md", "examples/README.md"]
FOLDERS = ("configs", "dataprep", "trainer", "converters", "tests", "benchmarks", "docs", "examples")


def text_of(name):
    return (ROOT / name).read_text("utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_is_named_exists(document):
    named = set(re.findall(rf"\b((?:{'|'.join(FOLDERS)})/[\w./-]*\w)", text_of(document)))
    missing = [name for name in named if not (ROOT / name).exists() and "NAME" not in name]
    assert missing == []


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, "CHANGELOG.md", "docs/scaling.md", "docs/templates.md", "docs/clusters.md", "docs/training.md"],
)
def test_no_document_waits_for_a_figure(document):
    assert not re.search(r"@@|FIGURE|TODO|\bRATE\b", text_of(document))


def test_the_tests_that_the_decisions_name_exist():
    named = set(re.findall(r"(test_\w+)\.py", text_of("docs/decisions.md")))
    assert len(named) > 5
    assert named <= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}


def options_of(group: click.Group, name: str) -> set[str]:
    command = group.commands[name]
    found = {option for parameter in command.params for option in parameter.opts}
    if isinstance(command, click.Group):
        found |= {option for inner in command.commands for option in options_of(command, inner)}
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_and_option_that_is_shown_exists(document):
    shown = re.sub(r"\\\n\s*", " ", text_of(document))
    checked = 0
    for program, words in re.findall(r"(llava-prep|llava-convert) ((?:--root \S+ )?[a-z].*?)(?:`|#|\n|$)", shown):
        group = prepare if program == "llava-prep" else convert
        name = words.removeprefix("--root data ").split()[0].rstrip(",")
        if name not in group.commands:
            assert not words.startswith(("preprocess", "to-h5")), words
            continue
        known = options_of(group, name) | {option for parameter in group.params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)(--[a-z][a-z0-9-]+)", words)) <= known, words
        checked += 1
    assert checked or document not in ("README.md",)


def test_the_options_of_the_tables_are_all_there_are():
    for name in ("preprocess", "mix", "to-h5"):
        (row,) = re.findall(rf"^\| `llava-prep {name} .*$", text_of("README.md"), re.MULTILINE)
        listed = set(re.findall(r"--[a-z][a-z0-9-]+", row))
        assert listed == {option for option in options_of(prepare, name) if option.startswith("--")}


def test_every_reason_of_the_readme_is_one():
    named = set(
        re.findall(
            r"`([a-z]+(?:_[a-z0-9]+)+)`",
            text_of("README.md").split("What happens to bad data")[1].split("## Packing")[0],
        )
    )
    assert len(named) > 8
    assert named <= set(REASONS)


def test_no_machines_path_stands_in_the_project():
    foreign = re.compile(r"/work/|/root/|/home/\w+/|file:///")
    for path in ROOT.rglob("*"):
        relative = path.relative_to(ROOT)
        if relative.parts[0].startswith(".") or "egg-info" in str(relative) or relative.parts[0] == "demo-out":
            continue
        if (
            path.suffix in (".py", ".md", ".yaml", ".toml", ".cfg", ".txt", "")
            and path.is_file()
            and path.name != Path(__file__).name
        ):
            assert not foreign.search(path.read_text("utf-8", "ignore")), relative
