"""`llava-prep generate` as typed, against an endpoint on this machine that misbehaves."""

import json
import os
import signal
import threading

import pytest
from click.testing import CliRunner

from dataprep.cli import main
from dataprep.shards import ShardReader
from tests.dataprep import llm_server as server

SMALL = ["--set", "max_seq_length=400", "--set", "image.size=28"]
KEY = "sk-CANARY7f3a0123456789"
LONG = (
    "The picture shows a cat on a red sofa in the middle of a bright room. The cat looks to the left, its paws lie"
    " under it, and the sofa fills most of the picture from one side to the other."
)


def pairs(*found: tuple[str, str]) -> str:
    return "\n".join(json.dumps({"question": question, "answer": answer}) for question, answer in found)


CONVERSATION = pairs(("What animal is it?", "A cat."), ("Where does it sit?", "It sits on a red sofa."))
REASONING = pairs(("Why is the cat at ease?", f"It lies on a soft seat with its paws under it. {LONG}"))


def kind_of(body: dict) -> str:
    """Which of the three kinds a request is about."""
    system = body["messages"][0]["content"]
    return "conversation" if "a talk of" in system else "detail" if "Describe the picture" in system else "reasoning"


def well(body: dict, number: int) -> server.Behaviour:
    return server.says({"conversation": CONVERSATION, "detail": LONG, "reasoning": REASONING}[kind_of(body)])


@pytest.fixture
def known(workspace):
    """Write what is known of some of the workspace's pictures; gives the file's name."""

    def write(count: int, *more: str) -> str:
        lines = [
            json.dumps(
                {
                    "id": f"p{number}",
                    "image": f"pictures/{number % 5}.jpg",
                    "captions": [f"A cat sits on red sofa {number}."],
                    "boxes": [{"category": "cat", "bbox": [0.1, 0.2, 0.6, 0.9]}],
                }
            )
            for number in range(count)
        ]
        (workspace.root / "known.jsonl").write_text("".join(f"{line}\n" for line in [*lines, *more]))
        return "known.jsonl"

    return write


def words(llm: server.Server, source: str = "known.jsonl", *more: object) -> list[object]:
    return ["generate", "--input", source, "--endpoint", llm.url, "--model", "tiny", *more]


def output(workspace) -> list[dict]:
    lines = (workspace.root / "data/jsonl/phase2/generated.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def refused(workspace) -> list[dict]:
    lines = (workspace.root / "data/reports/phase2/generated.refused.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def test_what_is_made_compiles_as_it_is(workspace, command, known):
    with server.llm_server(behave=well) as llm:
        done = command(*words(llm, known(4), "--yes", "--json", "--concurrency", 3))
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert (values["records"], values["written"], values["refused"], values["flagged"]) == (12, 12, {}, 0)
    assert values["prompts"]["detail"]["version"] == 1 and values["endpoint"] == f"{llm.url}/chat/completions"
    assert values["spent"] == {
        "requests": 12,
        "prompt_tokens": 120,
        "completion_tokens": 60,
        "assumed_tokens": 0,
        "cost": None,
    }
    made = output(workspace)
    assert [line["id"] for line in made[:4]] == ["p0-conversation", "p0-detail", "p0-reasoning", "p1-conversation"]
    assert made[0] == {
        "id": "p0-conversation",
        "image": "pictures/0.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat animal is it?"},
            {"from": "gpt", "value": "A cat."},
            {"from": "human", "value": "Where does it sit?"},
            {"from": "gpt", "value": "It sits on a red sofa."},
        ],
        "prompt": "conversation/1",
        "model": "tiny-1",
    }
    taken = ["to-h5", "--phase", 2, "--image-dir", ".", "--tokenizer", workspace.tokenizer, *SMALL, "--json"]
    done = command(*taken)
    assert done.returncode == 0, done.stderr
    accounting = json.loads(done.stdout)
    assert (accounting["rows"], accounting["refused"]) == (12, {})
    with ShardReader(workspace.root / "data/h5/phase2") as reader:
        assert len(reader) == 12


def test_cocos_files_are_taken(workspace, command, shared):
    real = json.loads((shared / "raw-coco/person_keypoints_excerpt.json").read_text())
    said = [{"image_id": image["id"], "caption": "A person with skis."} for image in real["images"]]
    (workspace.root / "c.json").write_text(json.dumps({"images": real["images"], "annotations": said}))
    typed = ["generate", "--captions", "c.json", "--boxes", shared / "raw-coco/person_keypoints_excerpt.json"]
    typed += ["--image-prefix", "coco/val2017", "--model", "tiny", "--kind", "detail", "--yes"]
    with server.llm_server(server.says(LONG)) as llm:
        done = command(*typed, "--endpoint", llm.url)
    assert done.returncode == 0, done.stderr
    made = output(workspace)
    assert [line["image"] for line in made][0] == "coco/val2017/000000000785.jpg" and len(made) == len(real["images"])
    assert "person: [0.439, 0.105, 0.780, 0.921]" in llm.asked[0]["body"]["messages"][-1]["content"] or len(made) > 1
    # The answer is about a cat and a sofa, which nobody has told of.
    assert all(line["unsupported_objects"] == ["cat", "sofa"] for line in made)


def test_every_answer_ends_in_one_place(workspace, command, known):
    replies = {
        "p0": server.says(LONG),
        "p1": server.says(f"- {LONG}"),
        "p2": server.says(f"The caption says: {LONG}"),
        "p3": server.says("A cat."),
        "p4": server.says(LONG, "length"),
        "p5": server.raw(b"<html>", "text/html"),
        "p6": server.says(f"{LONG} A dog sits beside it."),
        "p7": server.says(None, "content_filter"),
        "p8": server.says(f"I'm sorry, but. {LONG}"),
    }

    def behave(body, number):
        said = body["messages"][-1]["content"]
        return next(reply for name, reply in replies.items() if f"sofa {name[1:]}." in said)

    again = json.dumps({"id": "p0", "image": "pictures/0.jpg", "captions": ["A dog."]})
    with server.llm_server(behave=behave) as llm:
        typed = words(llm, known(9, "{bad", again), "--kind", "detail", "--yes")
        done = command(*typed, "--json")
        assert done.returncode == 3 and "9 of 11 refused: more than 20.00%" in done.stderr, done.stderr
        values = json.loads(done.stdout)
        assert values["refused"] == {
            "bad_record": 1,
            "bad_response": 1,
            "cut": 1,
            "filtered": 1,
            "generic": 1,
            "markdown": 1,
            "repeated_id": 1,
            "speaks_of_the_source": 1,
            "too_short": 1,
        }
        assert (values["records"], values["written"], values["flagged"]) == (11, 2, 1)
        assert [line.get("unsupported_objects") for line in output(workspace)] == [None, ["dog"]]
        assert [line["line"] for line in refused(workspace)] == [2, 3, 4, 5, 6, 8, 9, 10, 11]
        # With --objects refuse it is another file, which the answers on hand are enough for.
        sent = len(llm.asked)
        assert command(*typed, "--objects", "refuse").returncode == 4
        strict = command(*typed, "--objects", "refuse", "--overwrite", "--max-refused", 1)
        assert strict.returncode == 0 and "refused: unsupported_object" in strict.stdout
        # Only the html is asked for again: three tries.
        assert len(llm.asked) == sent + 3
    assert [line["id"] for line in output(workspace)] == ["p0-detail"]


def test_nothing_is_sent_without_consent(workspace, command, known):
    prices = ["--price-in", 1000, "--price-out", 2000]
    with server.llm_server(behave=well) as llm:
        typed = words(llm, known(2))
        done = command(*typed)
        assert done.returncode == 2
        assert "6 requests for 2 pictures: about " in done.stderr and "; no prices given" in done.stderr
        assert "nothing was sent: go on with --yes, or with --max-cost, --price-in and --price-out" in done.stderr
        done = command(*typed, *prices, "--max-cost", 0.5)
        assert done.returncode == 2 and "is more than --max-cost 0.5; go on with --yes" in done.stderr
        done = command(*typed, "--max-cost", 0.5)
        assert done.returncode == 2 and "--max-cost: a limit needs prices" in done.stderr
        assert llm.asked == [] and not (workspace.root / "data").exists()
        done = command(*typed, *prices, "--max-cost", 100)
        assert done.returncode == 0 and len(llm.asked) == 6


def test_a_dry_run_shows_what_would_be_sent_and_sends_nothing(workspace, command, known):
    with server.llm_server(behave=well) as llm:
        done = command(*words(llm, known(2), "--dry-run", "--price-in", 1, "--price-out", 2))
        assert done.returncode == 0, done.stderr
        assert llm.asked == [] and not (workspace.root / "data").exists()
        assert command(*words(llm, known(2), "--dry-run", "--key-variable", "NOT_SET")).returncode == 0
        assert "NOT_SET" in command(*words(llm, known(2), "--yes", "--key-variable", "NOT_SET")).stderr
        assert llm.asked == []
    assert done.stdout.startswith("6 requests for 2 pictures: about ") and ", about 0.00" in done.stdout
    assert done.stdout.count("[system]\n") == 3
    assert "[user]\nA cat sits on red sofa 0.\n\ncat: [0.100, 0.200, 0.600, 0.900]" in done.stdout


def test_the_output_is_the_same_whatever_the_concurrency(workspace, command, known):
    made = []
    with server.llm_server(behave=well) as llm:
        for concurrency in (1, 16):
            done = command(
                *words(llm, known(5), "--yes", "--concurrency", concurrency, "--output", f"{concurrency}.jsonl")
            )
            assert done.returncode == 0, done.stderr
            made.append((workspace.root / f"{concurrency}.jsonl").read_bytes())
    assert made[0] == made[1] and len(llm.asked) == 30


def test_a_budget_keeps_what_was_paid_for_and_a_larger_one_goes_on(workspace, command, known):
    with server.llm_server(behave=well) as llm:
        typed = words(llm, known(4), "--yes")
        done = command(*typed, "--max-requests", 5)
        assert done.returncode == 3
        assert "--max-requests 5 leaves no room for 7 requests; with more, the same command goes on" in done.stderr
        assert len(llm.asked) == 5 and len(output(workspace)) == 5
        assert {line["reason"] for line in refused(workspace)} == {"not_asked"}
        done = command(*typed)
        assert done.returncode == 0, done.stderr
        assert "(5 are answered already)" in done.stderr
        assert len(llm.asked) == 12 and len(output(workspace)) == 12


ENDS = {
    "wrong key": (server.status(401, f"Incorrect API key provided: {KEY}"), "does not take the key (401: Incorrect"),
    "no quota": (server.status(429, "no credit", "insufficient_quota"), "the quota is exhausted (429: no credit)"),
    "unknown model": (server.status(404, "no model"), "knows no model 'tiny'"),
}


@pytest.mark.parametrize(("behaviour", "sentence"), ENDS.values(), ids=ENDS.keys())
def test_what_nothing_mends_ends_in_one_sentence_and_goes_on_later(
    workspace, command, known, monkeypatch, behaviour, sentence
):
    monkeypatch.setenv("LLM_KEY", KEY)
    answers = threading.Event()

    def behave(body, number):
        return well(body, number) if number < 2 or answers.is_set() else behaviour

    with server.llm_server(behave=behave) as llm:
        typed = words(llm, known(2), "--yes", "--key-variable", "LLM_KEY", "--concurrency", 1)
        done = command(*typed)
        assert done.returncode == 2 and sentence in done.stderr.splitlines()[-1]
        assert not (workspace.root / "data/jsonl/phase2/generated.jsonl").exists()
        answers.set()
        again = command(*typed)
        assert again.returncode == 0 and len(llm.asked) == 3 + 4
    told = "".join([done.stdout, done.stderr, again.stdout, again.stderr])
    files = [path.read_bytes() for path in workspace.root.rglob("*") if path.is_file()]
    assert KEY not in told and not any(KEY.encode() in content for content in files) and len(files) > 5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_goes_on(workspace, command, known, number, code):
    release = threading.Event()

    def behave(body, asked):
        return well(body, asked) if asked < 4 else server.waits(release, well(body, asked))

    with server.llm_server(behave=behave) as llm:
        typed = words(llm, known(4), "--yes", "--concurrency", 2)
        run = command(*typed, start=True)
        llm.wait_for(6)
        os.kill(run.pid, number)
        release.set()
        _, error = run.communicate(timeout=60)
        assert run.returncode == code
        assert error.splitlines()[-1].endswith("run the same command again to go on")
        assert not (workspace.root / "data/jsonl").exists()
        # What was under way when it was told to end came in time, and is kept.
        assert command(*typed).returncode == 0
        assert len(llm.asked) == 12 and len(output(workspace)) == 12


def test_a_killed_run_goes_on(workspace, command, known):
    release = threading.Event()

    def behave(body, asked):
        return well(body, asked) if asked != 4 else server.waits(release, well(body, asked))

    with server.llm_server(behave=behave) as llm:
        typed = words(llm, known(4), "--yes", "--concurrency", 1)
        run = command(*typed, start=True)
        llm.wait_for(5)
        run.kill()
        run.communicate(timeout=60)
        release.set()
        journal = workspace.root / "data/reports/phase2/generated.journal.jsonl"
        journal.write_bytes(journal.read_bytes()[:-20])
        done = command(*typed)
        assert done.returncode == 0, done.stderr
        # Four were there, of which one is torn now; the fifth was under way.
        assert len(llm.asked) == 5 + 9 and len(output(workspace)) == 12


MISTAKES = {
    "no input": ([], "give either --input (jsonl) or --captions (COCO's json)"),
    "both": (["--input", "known.jsonl", "--captions", "known.jsonl"], "give either --input"),
    "boxes of jsonl": (
        ["--input", "known.jsonl", "--boxes", "b.json"],
        "--boxes and --image-prefix go with --captions",
    ),
    "missing": (["--input", "gone.jsonl"], "--input gone.jsonl: no such file or folder"),
    "one price": (["--input", "known.jsonl", "--price-in", 1], "--price-in and --price-out: give both, or neither"),
    "a body that is none": (["--input", "known.jsonl", "--body", "seed"], "--body seed: expected KEY=JSON"),
    "our own key": (["--input", "known.jsonl", "--body", 'model="x"'], "and a key that is not ours"),
    "no jsonl": (["--input", "known.jsonl", "--output", "a.json"], "--output a.json: expected the name of a file"),
    "no key": (
        ["--input", "known.jsonl", "--key-variable", "NONE_X"],
        "--key-variable NONE_X: the environment holds no",
    ),
    "no address": (["--input", "known.jsonl", "--endpoint", "x"], "--endpoint x: expected an address"),
}


@pytest.mark.parametrize(("typed", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_said_in_one_sentence(workspace, known, monkeypatch, typed, sentence):
    monkeypatch.chdir(workspace.root)
    known(1)
    before = signal.getsignal(signal.SIGTERM)
    words = ["generate", "--endpoint", "http://127.0.0.1:9/v1", "--model", "tiny", *map(str, typed)]
    done = CliRunner().invoke(main, words)
    signal.signal(signal.SIGTERM, before)
    assert done.exit_code == 2 and done.stderr.startswith("llava-prep: ") and sentence in done.stderr
    assert done.stderr.count("\n") == 1
