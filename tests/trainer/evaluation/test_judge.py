"""`python -m trainer.evaluation.judge` against an endpoint on this machine that misbehaves."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.dataprep import llm_server as server
from trainer.evaluation.judge import command
from trainer.evaluation.judging import Case, mean_interval, parse, ratio_interval

ROOT = Path(__file__).parent.parent.parent.parent
KEY = "sk-CANARY7f3a0123456789"


@pytest.fixture
def judge(tmp_path):
    """Run the command in a folder of its own; returns the finished process."""

    def run(*arguments: object, start: bool = False, **environment: str):
        words = [sys.executable, "-m", "trainer.evaluation.judge", *map(str, arguments)]
        options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT), **environment}, "text": True}
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        if start:
            return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        return subprocess.run(words, capture_output=True, timeout=120, **options)

    run.folder = tmp_path
    return run


def record(number: int, text: str = "It is red.", **metadata) -> dict:
    known = {"benchmark": "llava", "answers": ["Red."], "kind": "conv" if number % 2 else "detail", "options": []}
    return {
        "question_id": number,
        "prompt": f"<image>\nWhat colour is bar {number}?",
        "text": text,
        "answer_id": f"a{number}",
        "model_id": "ours",
        "metadata": {**known, "image": f"/pictures/{number}.png", "num_tokens": 4, "ended": True, **metadata},
    }


def write(folder: Path, name: str, lines: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def lines_of(folder: Path, name: str = "judged.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_bytes().splitlines()]


def typed(llm: server.Server, answers: str, *more: object) -> list[object]:
    return [answers, "--output", "judged.jsonl", "--endpoint", llm.url, "--model", "examiner", *more]


def asked_about(body: dict) -> int:
    content = body["messages"][1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    return int(re.search(r"colour is bar (\d+)", text)[1])


SCORES = {
    "7": (7.0,),
    "7.5\nGood.": (7.5,),
    "Score: 8\n...": (8.0,),
    "**Score: 8/10**": (8.0,),
    "\n\n10.\nRight.": (10.0,),
    "The overall score is 3": (3.0,),
    "0": None,
    "11": None,
    "-3": None,
    "8 7": None,
    "I would give it 8 of 10.": None,
    "The answer names 3 bars.\n8": None,
    "eight": None,
    "": None,
}
PAIRS = {
    "8 7\nThe first...": (8.0, 7.0),
    "8, 7.5": (8.0, 7.5),
    "(8, 7)": (8.0, 7.0),
    "Scores: 8/10 6/10": (8.0, 6.0),
    "8": None,
    "8 7 6": None,
    "87": None,
    "8 11": None,
    "Assistant 1 gets 8, assistant 2 gets 7": None,
}


@pytest.mark.parametrize(("review", "scores"), SCORES.items())
def test_a_score_is_what_stands_alone_on_the_first_line(review, scores):
    assert parse(review, 1) == scores


@pytest.mark.parametrize(("review", "scores"), PAIRS.items())
def test_two_scores_are_what_stands_alone_on_the_first_line(review, scores):
    assert parse(review, 2) == scores


def test_a_mean_has_an_interval_over_pictures():
    found = mean_interval([2.0, 4.0, 9.0], ["a", "a", "b"], seed=0)
    assert found["value"] == 5.0 and found["low"] == 3.0 and found["high"] == 9.0
    assert found == mean_interval([2.0, 4.0, 9.0], ["a", "a", "b"], seed=0)
    assert mean_interval([5.0], ["a"], 0) == {"value": 5.0, "low": None, "high": None}
    assert mean_interval([], [], 0) == {"value": None, "low": None, "high": None}
    assert ratio_interval([6.0, 3.0], [8.0, 4.0], ["a", "b"], 0) == {"value": 0.75, "low": 0.75, "high": 0.75}


def test_a_request_holds_what_is_known_and_nothing_else():
    case = Case("1", "conv", "a", "What?", "Red.", ("Blue.", "Navy."), "A bar.", baseline="Green.")
    text = case.single()[1]["content"]
    found = [text.index(part) for part in ("A bar.", "What?", "Blue.\nNavy.", "Red.", "Write the score alone")]
    assert found == sorted(found) and "Green." not in text
    first, second = (case.pair(baseline_first)[1]["content"] for baseline_first in (True, False))
    assert "[Answer 1]\nGreen." in first and "[Answer 2]\nRed." in first
    assert "[Answer 1]\nRed." in second and "[Answer 2]\nGreen." in second
    assert "(no answer)" in Case("1", "", "a", "What?", "", baseline="x").pair(True)[1]["content"]


def test_answers_are_scored_against_their_references_by_kind(judge):
    write(judge.folder, "answers.jsonl", [*map(record, range(6)), record(6, "", error="missing_image: gone")])
    with server.llm_server(behave=lambda body, _: server.says(f"{asked_about(body) + 3}\nWell.")) as llm:
        done = judge(*typed(llm, "answers.jsonl", "--json"))
        assert done.returncode == 0, done.stderr
        plain = judge(*typed(llm, "answers.jsonl"))
    values = json.loads(done.stdout)
    assert values["status"] == {"judged": 6, "not_answered": 1} and values["prompt"] == "single/1"
    rows = {row["kind"]: row for row in values["rows"]}
    # 4, 6, 8 of kind conv; 3, 5, 7 and the lowest, for what could not be asked, of kind detail.
    assert rows["conv"]["score"]["value"] == 6.0 and rows["detail"]["score"]["value"] == 4.0
    assert rows["all"]["n"] == 7 and rows["detail"]["num_not_answered"] == 1
    assert 4.0 <= rows["conv"]["score"]["low"] < 6.0 < rows["conv"]["score"]["high"] <= 8.0
    assert lines_of(judge.folder)[1] == {
        "question_id": 1,
        "kind": "conv",
        "status": "judged",
        "score": 4.0,
        "review": "4\nWell.",
        "judge": "examiner",
        "prompt": "single/1",
    }
    assert "[Reference answer]\nRed." in llm.asked[0]["body"]["messages"][1]["content"]
    # The second run has asked nothing.
    assert done.stderr.startswith("6 requests: about ") and "0 requests (6 are answered already)" in plain.stderr
    assert len(llm.asked) == 6 and "conv             n     3  score 6.00 (" in plain.stdout


def test_a_reply_without_a_score_is_asked_for_again_and_never_guessed(judge):
    write(judge.folder, "answers.jsonl", [record(number) for number in range(4)])
    replies = {0: ["8"], 1: ["Good, I say 9.", "7"], 2: ["It is fine: 9/10 in all."] * 9, 3: [None] * 9}
    used = dict.fromkeys(replies, 0)

    def behave(body, _):
        number = asked_about(body)
        used[number] += 1
        return server.says(replies[number][used[number] - 1], "stop" if number < 3 else "content_filter")

    with server.llm_server(behave=behave) as llm:
        done = judge(*typed(llm, "answers.jsonl", "--json", "--concurrency", 1))
        assert done.returncode == 0, done.stderr
        first = len(llm.asked)
        judge(*typed(llm, "answers.jsonl"))
    assert len(llm.asked) == first
    values = json.loads(done.stdout)
    assert used == {0: 1, 1: 2, 2: 3, 3: 2}
    assert values["status"] == {"judged": 2, "unparsed": 1, "not_judged": 1}
    assert [line["score"] for line in lines_of(judge.folder)] == [8.0, 7.0, None, None]
    (row,) = [row for row in values["rows"] if row["kind"] == "all"]
    assert (row["n"], row["score"]["value"], row["num_unparsed"], row["num_not_judged"]) == (2, 7.5, 1, 1)
    reminded = next(each["body"]["messages"] for each in llm.asked if len(each["body"]["messages"]) == 4)
    assert reminded[2] == {"role": "assistant", "content": "Good, I say 9."}
    assert reminded[3]["content"].startswith("Your first line was no score.")


def test_a_pair_is_judged_in_both_orders_and_the_bias_is_shown(judge):
    write(judge.folder, "ours.jsonl", [record(number, "Ours.") for number in range(6)])
    write(judge.folder, "theirs.jsonl", [{"question_id": n, "text": "Theirs.", "metadata": {}} for n in range(6)])

    def behave(body, _):
        # Question 5: the judge only ever likes the first. Others: ours is worth 6, theirs 8, the first place 1 more.
        number, first_is_ours = asked_about(body), "[Answer 1]\nOurs." in body["messages"][1]["content"]
        if number == 5:
            return server.says("9 2")
        return server.says("7 8" if first_is_ours else "9 6")

    with server.llm_server(behave=behave) as llm:
        done = judge(*typed(llm, "ours.jsonl", "--baseline", "theirs.jsonl", "--json"))
        assert done.returncode == 0, done.stderr
        plain = judge(*typed(llm, "ours.jsonl", "--baseline", "theirs.jsonl"))
    assert len(llm.asked) == 12
    row = json.loads(done.stdout)["rows"][-1]
    assert row["kind"] == "all" and (row["wins"], row["ties"], row["losses"]) == (0, 1, 5)
    assert row["score"]["value"] == pytest.approx((5 * 6.5 + 5.5) / 6)
    assert row["baseline_score"]["value"] == pytest.approx((5 * 8.5 + 5.5) / 6)
    assert row["relative"]["value"] == pytest.approx((5 * 6.5 + 5.5) / (5 * 8.5 + 5.5))
    assert row["first_place_favoured_by"]["value"] == pytest.approx((5 * 1 + 7) / 6) and row["order_decided"] == 1
    first, last = lines_of(judge.folder)[0], lines_of(judge.folder)[-1]
    assert (first["baseline_first"], first["baseline_second"]) == ([9.0, 6.0], [7.0, 8.0])
    assert (first["score"], first["baseline_score"], last["score"]) == (6.5, 8.5, 5.5)
    assert "the first place is favoured by 2.00 (" in plain.stdout and "it decided 1 pairs" in plain.stdout


def test_a_pair_with_one_order_unparsed_is_unparsed(judge):
    write(judge.folder, "ours.jsonl", [record(0, "Ours.")])
    write(judge.folder, "theirs.jsonl", [{"question_id": 0, "text": "Theirs."}])

    def behave(body, _):
        return server.says("7 8" if "[Answer 1]\nOurs." in body["messages"][1]["content"] else "Both are fine.")

    with server.llm_server(behave=behave) as llm:
        done = judge(*typed(llm, "ours.jsonl", "--baseline", "theirs.jsonl", "--json"))
    assert json.loads(done.stdout)["status"] == {"unparsed": 1} and len(llm.asked) == 1 + 3
    assert lines_of(judge.folder)[0]["score"] is None


def test_references_and_what_is_known_come_from_files(judge):
    write(judge.folder, "answers.jsonl", [record(0, answers=[]), record(1, answers=[])])
    references = [{"question_id": 0, "text": "Blue."}, {"question_id": "1", "answers": ["Navy.", "Dark blue."]}]
    write(judge.folder, "references.jsonl", references)
    context = [
        {"image": "val/0.png", "captions": ["A chart."], "instances": [{"category": "tv", "bbox": [0, 0, 1, 1]}]},
        {"question_id": 1, "caption": "Bars."},
    ]
    write(judge.folder, "context.jsonl", context)
    more = ["--reference", "references.jsonl", "--context", "context.jsonl", "--concurrency", 1]
    with server.llm_server(server.says("5")) as llm:
        done = judge(*typed(llm, "answers.jsonl", *more))
        assert done.returncode == 0, done.stderr
    first, second = (each["body"]["messages"][1]["content"] for each in llm.asked)
    assert "[Reference answer]\nBlue." in first and "A chart.\ntv: [0, 0, 1, 1]" in first
    assert "[Reference answers]\nNavy.\nDark blue." in second and "Bars." in second


def test_an_answer_without_a_reference_is_not_judged(judge):
    write(judge.folder, "answers.jsonl", [record(0), record(1, answers=[])])
    with server.llm_server(server.says("5")) as llm:
        values = json.loads(judge(*typed(llm, "answers.jsonl", "--json")).stdout)
    assert values["status"] == {"judged": 1, "without_reference": 1} and len(llm.asked) == 1


def test_a_judge_that_sees_gets_the_picture(judge):
    picture = judge.folder / "0.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\nrest")
    write(judge.folder, "answers.jsonl", [record(0, image=str(picture))])
    with server.llm_server(server.says("5")) as llm:
        done = judge(*typed(llm, "answers.jsonl", "--pictures"))
        assert done.returncode == 0, done.stderr
        picture.write_bytes(b"%PDF")
        done = judge(*typed(llm, "answers.jsonl", "--pictures"))
    assert llm.asked[0]["body"]["messages"][1]["content"][0]["image_url"]["url"].startswith(
        "data:image/png;base64,iVBO"
    )
    assert done.returncode == 2 and "0.png: expected a JPEG, PNG, GIF or WebP" in done.stderr


def test_a_budget_ends_before_it_is_exceeded_and_a_larger_one_goes_on(judge):
    write(judge.folder, "answers.jsonl", [record(number) for number in range(5)])
    prices = ["--price-in", 100, "--price-out", 100, "--max-answer-tokens", 50]
    with server.llm_server(server.says("6", usage=(300, 50))) as llm:
        done = judge(*typed(llm, "answers.jsonl", *prices, "--max-cost", 0.18, "--concurrency", 1, "--json"))
        assert done.returncode == 3 and "--max-cost 0.18 leaves no room for more" in done.stderr
        values = json.loads(done.stdout)
        assert 0 < values["spent"]["cost"] <= 0.18 and values["spent"]["requests"] == len(llm.asked) < 5
        assert values["status"]["not_judged"] == 5 - len(llm.asked)
        done = judge(*typed(llm, "answers.jsonl", *prices, "--max-cost", 9, "--json"))
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == {"judged": 5} and len(llm.asked) == 5


ENDS = {
    "wrong key": (server.status(401, f"bad {KEY}"), "does not take the key (401: bad [key]); see --key-variable"),
    "no quota": (server.status(429, "pay", "insufficient_quota"), "the quota is exhausted (429: pay)"),
}


@pytest.mark.parametrize(("behaviour", "sentence"), ENDS.values(), ids=ENDS.keys())
def test_what_nothing_mends_ends_in_one_sentence_and_the_key_is_told_nowhere(judge, behaviour, sentence):
    write(judge.folder, "answers.jsonl", [record(number) for number in range(4)])
    words = ["--key-variable", "LLM_KEY", "--concurrency", 1]
    with server.llm_server(server.says("6"), behaviour) as llm:
        done = judge(*typed(llm, "answers.jsonl", *words), LLM_KEY=KEY)
        assert done.returncode == 2 and sentence in done.stderr and len(llm.asked) == 2
    assert not (judge.folder / "judged.jsonl").exists()
    with server.llm_server(server.says("6")) as llm:
        again = judge(*typed(llm, "answers.jsonl", *words), LLM_KEY=KEY)
        assert again.returncode == 0 and len(llm.asked) == 3
    assert KEY not in done.stdout + done.stderr + again.stdout + again.stderr
    assert not any(KEY.encode() in path.read_bytes() for path in judge.folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_goes_on(judge, number, code):
    write(judge.folder, "answers.jsonl", [record(number) for number in range(5)])
    release = threading.Event()
    with server.llm_server(server.says("6"), server.waits(release, server.says("7"))) as llm:
        run = judge(*typed(llm, "answers.jsonl", "--concurrency", 1), start=True)
        llm.wait_for(2)
        run.send_signal(number)
        release.set()
        _, error = run.communicate(timeout=60)
        assert run.returncode == code and "run the same command again to go on" in error
        assert not (judge.folder / "judged.jsonl").exists() and len(llm.asked) == 2
        assert judge(*typed(llm, "answers.jsonl")).returncode == 0
    assert len(llm.asked) == 5 and [line["score"] for line in lines_of(judge.folder)][0] == 6.0


MISTAKES = {
    "no such file": (["gone.jsonl"], 2, "gone.jsonl: no such file"),
    "the input": (
        ["answers.jsonl", "--output", "answers.jsonl"],
        4,
        "answers.jsonl: there already, and not from a judge",
    ),
    "no answer in the baseline": (["answers.jsonl", "--baseline", "few.jsonl"], 2, "has no answer to 1 of 2 questions"),
    "no reference": (["answers.jsonl", "--reference", "few.jsonl"], 2, "few.jsonl: has no answer to 1 of 2 questions"),
    "damaged": (["answers.jsonl", "--reference", "bad.jsonl"], 5, "bad.jsonl, line 1: is not JSON"),
    "context of nothing": (["answers.jsonl", "--context", "few.jsonl"], 5, "few.jsonl, line 1: expected caption"),
}


@pytest.mark.parametrize(("words", "code", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_said_in_one_sentence(tmp_path, monkeypatch, words, code, sentence):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "answers.jsonl", [record(0), record(1)])
    write(tmp_path, "few.jsonl", [{"question_id": 0, "text": "Red."}])
    (tmp_path / "bad.jsonl").write_text("{bad\n")
    more = [] if "--output" in words else ["--output", "judged.jsonl"]
    done = CliRunner().invoke(command, [*words, *more, "--endpoint", "http://127.0.0.1:9/v1", "--model", "x"])
    assert done.exit_code == code and sentence in done.stderr and done.stderr.count("\n") == 1
