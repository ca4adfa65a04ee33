"""The client of language-model endpoints against one that misbehaves in each way that is known."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dataprep.errors import CommandError, Exit
from dataprep.llm.budget import Usage, most
from dataprep.llm.exchange import read_answer
from dataprep.llm.journal import KINDS, Journal, Reply
from dataprep.llm_client import Settings, open_endpoint
from tests.dataprep import llm_server as server
from tests.dataprep.llm_asking import KEY, chat

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = 5000 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 150


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
        asked = ask(llm, whole=2.0)
        release.set()
    assert asked.replies[0].text == "Fine."
    # Nobody knows what the first one has cost, so it counts as its most.
    needed = most(chat("Hello?"), Settings().longest)
    assert asked.spent == Usage(2, 10 + needed.prompt_tokens, 5 + needed.completion_tokens, needed.tokens)


def test_a_server_that_drips_is_left_after_a_time(ask):
    drips = server.drips(json.dumps(server.completion("Slow.")).encode(), 0.05)
    with server.llm_server(drips, server.says("Fine.")) as llm:
        asked = ask(llm, whole=2.0, read=5.0)
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


def test_a_key_with_escaped_slashes_is_taken_out_too(ask, monkeypatch):
    monkeypatch.setenv("SLASHED", "sk/CANARY/7f3a0123456789")
    said = json.dumps(server.completion("It is sk/CANARY/7f3a0123456789.")).replace("/", "\\/")
    with server.llm_server(server.raw(said.encode())) as llm:
        assert ask(llm, key="SLASHED").replies[0].text == "It is [key]."


ADDRESSES = {
    "no scheme": ("127.0.0.1:8000", "expected an address such as"),
    "another scheme": ("ftp://a/v1", "expected an address such as"),
    "a bad port": ("http://a:b/v1", "expected an address such as"),
    "a password where nothing else is right": ("htp://user:secret@a/v1", "^--endpoint a/v1: expected an address"),
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
