"""What a run of requests keeps, spends and asks again: journal, budget, ends in order."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from dataprep.errors import CommandError, Exit
from dataprep.llm.budget import Usage
from dataprep.llm.exchange import retry_after
from dataprep.llm_client import Limits, Prices, Settings, ask_all, open_endpoint, picture_part, unanswered
from tests.dataprep import llm_server as server
from tests.dataprep.llm_asking import chat

ROOT = Path(__file__).parent.parent.parent


def test_replies_stand_in_the_order_of_the_requests_and_equal_ones_are_asked_once(ask):
    late = threading.Event()

    def behave(body, number):
        text = body["messages"][0]["content"]
        if text == "0":
            return server.waits(late, server.says("re 0"))
        if text == "8":
            late.set()
        return server.says(f"re {text}")

    texts = [str(number) for number in range(9)]
    with server.llm_server(behave=behave) as llm:
        asked = ask(llm, *texts, "3", concurrency=3)
    assert [reply.text for reply in asked.replies] == [f"re {text}" for text in [*texts, "3"]]
    assert len(llm.asked) == 9 and 2 <= llm.most_under_way <= 3


def test_a_rerun_asks_only_what_is_missing(ask):
    with server.llm_server(server.says("Hello.")) as llm:
        ask(llm, "one", "two")
        assert ask(llm, "two", "three").spent.requests == 3
        assert [request["body"]["messages"][0]["content"] for request in llm.asked] == ["one", "two", "three"]
        ask(llm, "two", model="other")
        ask(llm, "two", settings=Settings(max_tokens=5))
        assert len(llm.asked) == 5
        missing, spent = unanswered(ask.journal, open_endpoint(llm.url, "tiny"), [chat("one"), chat("x")], Settings())
    assert missing == [chat("x")] and spent == Usage(5, 50, 25)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": -1, "completion_tokens": 2}, [1], "x"])
def test_what_nobody_counts_is_taken_at_its_most(ask, usage):
    with server.llm_server(server.gives({**server.completion("Hello."), "usage": usage})) as llm:
        (reply,) = ask(llm, settings=Settings(max_tokens=90)).replies
    assert reply.usage == Usage(1, len("Hello?") + 8, 90, len("Hello?") + 8 + 90)


def test_a_torn_last_line_and_a_damaged_one_cost_asking_again_only(ask):
    with server.llm_server(server.says("Hello.")) as llm:
        ask(llm, "one", "two", "three")
        lines = ask.journal.read_bytes().splitlines(keepends=True)
        ask.journal.write_bytes(lines[0] + b"\x00\xff\n" + lines[2][:-9])
        replies = ask(llm, "one", "two", "three").replies
    assert [reply.text for reply in replies] == ["Hello."] * 3 and len(llm.asked) == 5
    assert [json.loads(line)["text"] for line in ask.journal.read_bytes().splitlines()[2:]] == ["Hello."] * 2


def test_a_journal_has_one_writer(ask):
    release = threading.Event()
    with server.llm_server(server.waits(release, server.says("Hello."))) as llm:
        first = threading.Thread(target=lambda: ask(llm, "one", whole=60.0, read=60.0))
        first.start()
        llm.wait_for(1)
        with pytest.raises(CommandError) as caught:
            ask(llm, "two")
        release.set()
        first.join()
    assert caught.value.code == Exit.CONFLICT and len(llm.asked) == 1


LIMITS = {
    "requests": (Limits(max_requests=4), 4, "--max-requests 4"),
    "tokens": (Limits(max_tokens=2 * 15 + 117), 3, "--max-total-tokens 147"),
    "cost": (Limits(max_cost=0.0003, prices=Prices(1.0, 2.0)), 5, "--max-cost 0.0003"),
}


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(("limits", "sent", "stopped"), LIMITS.values(), ids=LIMITS.keys())
def test_a_budget_ends_the_run_before_it_is_exceeded(ask, limits, sent, stopped, concurrency):
    texts = [f"question {number:07d}" for number in range(9)]  # 16 bytes: at most 24 tokens with the template's
    with server.llm_server(server.says("Hello.")) as llm:
        asked = ask(llm, *texts, settings=Settings(max_tokens=93), limits=limits, concurrency=concurrency)
        assert len(llm.asked) == sent and asked.stopped == stopped
        assert limits.exceeded(asked.spent) is None
        assert [reply is None for reply in asked.replies].count(False) == sent
        # What the runs before have spent counts.
        again = ask(llm, *texts, settings=Settings(max_tokens=93), limits=limits, concurrency=concurrency)
    assert len(llm.asked) == sent and again.stopped == stopped


def test_a_budget_counts_the_most_that_tries_without_a_response_can_have_cost(ask):
    with server.llm_server(server.cuts) as llm:
        asked = ask(llm, settings=Settings(max_tokens=90), limits=Limits(max_tokens=300), tries=9)
    assert (len(llm.asked), asked.stopped, asked.replies) == (2, "--max-total-tokens 300", [None])
    assert asked.spent.tokens == asked.spent.assumed_tokens == 2 * (90 + 6 + 8)


def test_a_cost_without_prices_is_refused():
    with pytest.raises(CommandError, match="--max-cost: a limit needs prices"):
        Limits(max_cost=1.0)


@pytest.mark.parametrize("figures", [("nan", 1, 1), (1, "nan", 1), (1, 1, "nan")])
def test_a_limit_that_is_no_number_is_refused(figures):
    cost, *prices = map(float, figures)
    with pytest.raises(CommandError, match="nan is none"):
        Limits(max_cost=cost, prices=Prices(*prices))


def test_an_endpoint_that_is_down_ends_the_run(ask):
    with server.llm_server(server.says("x"), server.status(502, "bad gateway")) as llm:
        with pytest.raises(CommandError, match="no response to 2 requests in a row, the last: status 502: bad gateway"):
            ask(llm, *"abcdef", give_up_after=2, tries=2)
        assert len(llm.asked) == 5


def test_a_pause_that_the_endpoint_asks_for_holds_for_all(ask):
    came = []

    def behave(body, number):
        came.append(time.monotonic())
        return server.says("x") if number else server.status(429, headers={"Retry-After": "1"})

    with server.llm_server(behave=behave) as llm:
        # The first request is given up at once; the second one waits for it all the same.
        assert [reply.kind for reply in ask(llm, "one", "two", tries=1).replies] == ["gave_up", "answer"]
    assert came[1] - came[0] >= 1


def test_retry_after_is_read_as_seconds_or_as_a_date():
    assert retry_after("7") == 7 and retry_after("0.5") == 0.5
    assert 50 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("soon") is None and retry_after(None) is None


PROGRAM = """
import signal, sys
from dataprep.llm_client import Patience, Settings, ask_all, open_endpoint
from pathlib import Path
def told(number, frame): sys.exit(128 + number)
signal.signal(signal.SIGTERM, told); signal.signal(signal.SIGINT, told)
requests = [[{"role": "user", "content": text}] for text in "abcd"]
endpoint = open_endpoint(sys.argv[1], "tiny")
ask_all(endpoint, requests, Settings(), Path(sys.argv[2]), patience=Patience(grace=float(sys.argv[3])), concurrency=2)
"""


@pytest.mark.parametrize(("number", "grace"), [(signal.SIGINT, 60.0), (signal.SIGTERM, 60.0), (signal.SIGTERM, 0.1)])
def test_a_signal_ends_in_order_and_what_is_under_way_is_kept_or_counted(tmp_path, number, grace):
    release, journal = threading.Event(), tmp_path / "journal.jsonl"
    with server.llm_server(server.says("First."), server.waits(release, server.says("Second."))) as llm:
        words = [sys.executable, "-c", PROGRAM, llm.url, str(journal), str(grace)]
        run = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)
        llm.wait_for(3)
        run.send_signal(number)
        if grace > 1:
            release.set()
        _, error = run.communicate(timeout=60)
        release.set()
    assert (run.returncode, error, len(llm.asked)) == (128 + number, "", 3)
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    assert [line["kind"] for line in lines] == ["answer", *["answer" if grace > 1 else "interrupted"] * 2]
    assert all(line["usage"]["requests"] == 1 for line in lines)


def test_what_waited_for_room_in_the_budget_when_the_run_ended_has_cost_nothing(tmp_path):
    release, journal = threading.Event(), tmp_path / "journal.jsonl"
    program = PROGRAM.replace("concurrency=2", "limits=Limits(max_requests=1), concurrency=2")
    program = program.replace("import Patience", "import Limits, Patience")
    with server.llm_server(server.waits(release, server.says("Late."))) as llm:
        words = [sys.executable, "-c", program, llm.url, str(journal), "0.1"]
        run = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)})
        llm.wait_for(1)
        run.send_signal(signal.SIGTERM)
        run.wait(timeout=60)
        release.set()
    lines = [json.loads(line) for line in journal.read_bytes().splitlines()]
    assert [(line["kind"], line["usage"]["requests"]) for line in lines] == [("interrupted", 1)]


def test_a_picture_travels_inside_the_request(ask, tmp_path):
    part = picture_part(b"\x89PNG\r\n\x1a\nrest")
    assert part["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgpyZXN0"
    message = [{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}]
    with server.llm_server(server.says("A dot.")) as llm:
        asked = ask_all(open_endpoint(llm.url, "tiny"), [message], Settings(), tmp_path / "j.jsonl")
    assert llm.asked[0]["body"]["messages"] == message and asked.replies[0].text == "A dot."
    assert b"iVBOR" not in (tmp_path / "j.jsonl").read_bytes()
    with pytest.raises(ValueError, match="expected a JPEG, PNG, GIF or WebP"):
        picture_part(b"%PDF-1.4")
