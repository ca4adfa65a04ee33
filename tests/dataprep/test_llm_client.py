"""The client of language-model endpoints against one that misbehaves in each way that is known."""

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
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dataprep.errors import CommandError, Exit
from dataprep.llm.budget import Usage, most
from dataprep.llm.exchange import read_answer, retry_after
from dataprep.llm.journal import KINDS, Journal, Reply
from dataprep.llm_client import Limits, Patience, Prices, Settings, ask_all, open_endpoint, picture_part, unanswered
from tests.dataprep import llm_server as server

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = 5000 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 150
KEY = "sk-CANARY7f3a0123456789"
QUICK = {"first_pause": 0.01, "longest_pause": 0.02, "tries": 3, "whole": 5.0, "read": 5.0, "grace": 0.3}


def chat(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Ask a server; gives what came, the journal lies in `ask.journal`."""
    monkeypatch.setenv("LLM_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    journal = tmp_path / "journal.jsonl"

    def run(llm, *texts: str, settings=None, limits=None, concurrency=1, model="tiny", key="LLM_KEY", **patience):
        endpoint = open_endpoint(llm.url, model, key)
        patience = Patience(**(QUICK | patience))
        requests = [chat(text) for text in texts or ("Hello?",)]
        return ask_all(endpoint, requests, settings or Settings(), journal, limits, patience, concurrency)

    run.journal = journal
    return run


def test_an_answer_comes_with_its_counts_and_the_key_is_sent(ask):
    with server.llm_server(server.says("Hello.")) as llm:
        asked = ask(llm, settings=Settings(max_tokens=7, extra={"seed": 3, "temperature": None}))
    (reply,) = asked.replies
    assert (reply.kind, reply.text, reply.model) == ("answer", "Hello.", "tiny-1")
    assert asked.spent == reply.usage == Usage(1, 10, 5)
    (request,) = llm.asked
    assert request["path"] == "/v1/chat/completions"
    assert request["headers"]["authorization"] == f"Bearer {KEY}"
    assert request["body"] == {"model": "tiny", "messages": chat("Hello?"), "max_tokens": 7, "seed": 3}


PASSING = {
    "429 with a time": server.status(429, "slow down", headers={"Retry-After": "0"}),
    "429 without": server.status(429, "slow down"),
    "500": server.status(500, "oops"),
    "503 in html": lambda handler: handler.send(503, b"<html>busy</html>", {"Content-Type": "text/html"}),
    "cut mid-body": server.cuts,
    "closed without a word": server.vanishes,
}


@pytest.mark.parametrize("behaviour", PASSING.values(), ids=PASSING.keys())
def test_what_passes_is_tried_again(ask, behaviour):
    with server.llm_server(behaviour, behaviour, server.says("Fine.")) as llm:
        asked = ask(llm)
    assert asked.replies[0].text == "Fine."
    assert len(llm.asked) == asked.spent.requests == 3


@pytest.mark.parametrize("behaviour", PASSING.values(), ids=PASSING.keys())
def test_what_does_not_pass_is_given_up_and_asked_again_by_a_rerun(ask, behaviour):
    with server.llm_server(behaviour, behaviour, behaviour, server.says("At last.")) as llm:
        asked = ask(llm)
        assert (asked.replies[0].kind, len(llm.asked)) == ("gave_up", 3)
        assert asked.replies[0].detail
        assert ask(llm).replies[0].text == "At last."
    assert len(llm.asked) == 4


def test_a_server_that_hangs_is_left_after_a_time(ask):
    release = threading.Event()
    hangs = server.waits(release, server.says("Late."))
    with server.llm_server(hangs, server.says("Fine.")) as llm:
        asked = ask(llm, whole=0.2)
        release.set()
    assert asked.replies[0].text == "Fine."
    # Nobody knows what the first one has cost, so it counts as its most.
    needed = most(chat("Hello?"), Settings().longest)
    assert asked.spent == Usage(2, 10 + needed.prompt_tokens, 5 + needed.completion_tokens, needed.tokens)


def test_a_server_that_drips_is_left_after_a_time(ask):
    drips = server.drips(json.dumps(server.completion("Slow.")).encode(), 0.05)
    with server.llm_server(drips, server.says("Fine.")) as llm:
        asked = ask(llm, whole=0.5, read=5.0)
    assert (asked.replies[0].text, len(llm.asked)) == ("Fine.", 2)


def test_a_slow_server_within_the_time_is_waited_for(ask):
    with server.llm_server(server.drips(json.dumps(server.completion("Slow.")).encode(), 0.001)) as llm:
        assert ask(llm, whole=30.0).replies[0].text == "Slow."
    assert len(llm.asked) == 1


ENDS = {
    "wrong key": (server.status(401, f"bad key {KEY}"), "does not take the key (401: bad key [key]); see --key-vari"),
    "forbidden": (server.status(403, "no"), "does not take the key (403: no)"),
    "unknown model": (server.status(404, "no such model"), "knows no model 'tiny' or no such address (404: no such"),
    "bad request": (
        server.status(400, "no \x1b[31mtemperature"),
        "does not take the request (400: no [31mtemperature)",
    ),
    "no quota": (server.status(429, "pay", "insufficient_quota"), "the quota is exhausted (429: pay)"),
    "no balance": (server.status(402, "pay"), "the quota is exhausted (402: pay)"),
    "long wait": (server.status(429, "x", headers={"Retry-After": "9999"}), "asks to wait 9999 s, longer than 300 s"),
    "redirection": (server.status(307, headers={"Location": "http://evil.test/x"}), "redirects to http://evil.test"),
}


@pytest.mark.parametrize(("behaviour", "sentence"), ENDS.values(), ids=ENDS.keys())
def test_what_no_further_try_mends_ends_at_once_in_one_sentence(ask, behaviour, sentence):
    with server.llm_server(server.says("First."), behaviour) as llm:
        with pytest.raises(CommandError) as caught:
            ask(llm, "one", "two", "three")
        assert len(llm.asked) == 2
    assert sentence in str(caught.value) and f"endpoint {llm.url}/chat/completions: " in str(caught.value)
    assert KEY not in str(caught.value) and caught.value.code == Exit.USAGE
    assert b"First." in ask.journal.read_bytes()


def test_the_key_follows_no_redirection(ask):
    with server.llm_server(server.says("Mine now.")) as thief:
        behaviour = server.status(307, headers={"Location": thief.url})
        with server.llm_server(behaviour) as llm, pytest.raises(CommandError, match="where no key is sent"):
            ask(llm)
        assert thief.asked == []


def test_a_variable_goes_to_no_host_that_it_was_not_named_for(ask, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert open_endpoint("https://api.openai.com/v1", "m").key == KEY
    with server.llm_server(server.says("Hello.")) as llm:
        ask(llm, key=None)
    assert "authorization" not in llm.asked[0]["headers"]


def test_the_key_reaches_neither_the_journal_nor_a_repr(ask):
    echo = server.raw(json.dumps(server.completion(f"Your key is {KEY}.")).encode())
    with server.llm_server(server.status(500, KEY), echo, server.raw(KEY.encode())) as llm:
        texts = [reply.text for reply in ask(llm, "one", "two").replies]
        assert KEY not in repr(open_endpoint(llm.url, "tiny", "LLM_KEY"))
    assert texts == ["Your key is [key].", ""]
    assert KEY.encode() not in ask.journal.read_bytes() and b"[key]" in ask.journal.read_bytes()


ADDRESSES = {
    "no scheme": ("127.0.0.1:8000", "expected an address such as"),
    "another scheme": ("ftp://a/v1", "expected an address such as"),
    "a bad port": ("http://a:b/v1", "expected an address such as"),
    "a password": ("http://user:secret@a/v1", "--endpoint http://a/v1: holds a password"),
}


@pytest.mark.parametrize(("url", "sentence"), ADDRESSES.values(), ids=ADDRESSES.keys())
def test_an_address_that_is_none_is_refused(url, sentence):
    with pytest.raises(CommandError, match=sentence):
        open_endpoint(url, "tiny")


def test_an_address_may_be_given_with_its_path():
    assert open_endpoint("http://a/v1/chat/completions?v=1", "m").url == open_endpoint("http://a/v1/?v=1", "m").url


def test_a_variable_that_is_not_set_is_named():
    with pytest.raises(CommandError, match="--key-variable NOT_THERE: the environment holds no key of this name"):
        open_endpoint("http://a/v1", "tiny", "NOT_THERE")


def test_nothing_that_listens_is_said_soon(ask):
    with server.llm_server(server.says("x")) as llm:
        pass
    with pytest.raises(CommandError, match="nothing answers there"):
        ask(llm, tries=50)


NO_ANSWERS = {
    "garbage": (server.raw(b"\xff\xfe{"), "not_json", 3, ""),
    "html": (server.raw(b"<html>log in</html>", "text/html"), "not_json", 3, ""),
    "a list": (server.gives([1]), "not_json", 3, ""),
    "no choices": (server.gives({"choices": []}), "no_choices", 3, ""),
    "choices of another shape": (server.gives({"choices": ["x"]}), "no_choices", 3, ""),
    "an error with 200": (server.gives({"error": {"message": "overloaded"}}), "no_choices", 3, ""),
    "no words": (server.says(" \n"), "empty", 3, ""),
    "null": (server.says(None), "empty", 3, ""),
    "cut by length": (server.says("Once upon", "length"), "cut", 2, "Once upon"),
    "filtered": (server.says(None, "content_filter"), "filtered", 2, ""),
    "refused": (server.says(None, refusal="I won't."), "filtered", 2, ""),
    "filtered with 400": (server.status(400, "no", "content_filter"), "filtered", 2, ""),
    "too long": (server.status(400, "8192 at most", "context_length_exceeded"), "too_long", 1, ""),
    "too big": (server.raw(b" " * 5000), "too_big", 2, ""),
    "endless": (server.floods, "too_big", 2, ""),
}


@pytest.mark.parametrize(("behaviour", "kind", "tries", "text"), NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
def test_a_response_without_an_answer_is_a_kind_of_its_own(ask, behaviour, kind, tries, text):
    with server.llm_server(behaviour) as llm:
        (reply,) = ask(llm, max_bytes=4000).replies
        assert (reply.kind, reply.text, reply.usage.requests, len(llm.asked)) == (kind, text, tries, tries)
        assert reply.detail
        again = ask(llm, max_bytes=4000).replies[0].usage.requests
    # The endpoint's own decision is not asked for twice; a fault of its is.
    assert len(llm.asked) - tries == (0 if reply.final else again)


def test_the_second_response_of_a_kind_may_be_an_answer(ask):
    with server.llm_server(server.raw(b"?"), server.says("Fine.")) as llm:
        asked = ask(llm)
    assert asked.replies[0].text == "Fine." and asked.spent.assumed_tokens > 0


def test_half_a_surrogate_does_not_break_the_journal(ask):
    with server.llm_server(server.raw(json.dumps(server.completion("a \ud800 b")).encode())) as llm:
        assert ask(llm).replies[0].text == "a ? b"
        assert ask(llm).replies[0].text == "a ? b"
    assert len(llm.asked) == 1


#: What a server may say in place of an answer: any JSON, as a rule in the shape of a response.
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("length") | st.just("\ud800")
ANY = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
MESSAGES = st.fixed_dictionaries({"content": ANY}, optional={"refusal": ANY}) | ANY
CHOICES = st.lists(st.fixed_dictionaries({"message": MESSAGES}, optional={"finish_reason": ANY}) | ANY) | ANY
COUNT = st.integers() | st.integers(2**63, 2**70) | ANY
COUNTS = st.fixed_dictionaries({"prompt_tokens": COUNT, "completion_tokens": COUNT}) | ANY
RESPONSES = st.fixed_dictionaries({"choices": CHOICES}, optional={"usage": COUNTS, "model": ANY, "error": ANY}) | ANY


@given(value=RESPONSES, cut=st.integers(0, 30))
@hypothesis_settings(max_examples=EXAMPLES, deadline=None)
def test_whatever_a_server_says_can_be_kept_and_read_again(tmp_path_factory, value, cut):
    content = json.dumps(value).encode()
    outcome = read_answer(
        content[: len(content) - cut] if cut > 20 else content, "application/json", Usage(1, 7, 8, 15)
    )
    assert outcome.kind in KINDS and outcome.usage.requests == 1 and outcome.usage.tokens >= 0
    assert outcome.kind != "answer" or outcome.text.strip()
    reply = Reply("k", outcome.kind, outcome.text, outcome.detail, outcome.model, outcome.usage)
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    with Journal(path) as journal:
        journal.write(reply)
    with Journal(path) as journal:
        assert journal.replies == {"k": reply} and journal.spent == outcome.usage


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
