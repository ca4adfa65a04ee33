"""The command as a user runs it: a real process, and a real terminal for the conversation."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from trainer.inference import Request, Sampling, open_assistant
from trainer.inference.dialogue import Dialogue
from trainer.inference.generation import generate, new_cache
from trainer.inference.prompts import Prompt
from trainer.model import load_model, save_model

ROOT = Path(__file__).parents[3]
PROGRAM = [sys.executable, "-m", "trainer.inference.chat"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "dumb"}

#: How long a busy machine may take for one answer of a tiny model, torch's start included.
PATIENCE = 120


def chat(*arguments, given: str = "") -> subprocess.CompletedProcess:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(
        command, input=given.encode(), cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=PATIENCE
    )


def test_one_answer_stands_alone_on_stdout(checkpoint, assistant, pictures):
    settings = Sampling(max_new_tokens=9)
    (expected,) = assistant.answer([Request(["How many?"], pictures[0])], settings)
    done = chat(checkpoint, "--image", pictures[0], "--prompt", "How many?", "--max-new-tokens", 9, "--json")
    assert (done.returncode, done.stderr.decode()) == (0, "")
    found = json.loads(done.stdout)
    assert (found["text"], found["ids"], found["ended"]) == (expected.text, expected.ids, expected.ended)
    assert found["num_prompt_tokens"] == expected.num_prompt_tokens
    assert (found["template"], found["prompt"], found["image"]) == ("vicuna_v1", "How many?", str(pictures[0]))


def test_lines_that_are_piped_in_are_a_conversation(checkpoint, assistant, pictures):
    settings = Sampling(max_new_tokens=8, temperature=1.3, top_p=0.9, top_k=100, seed=7)
    given = f"How many?\nWhy?\n/image {pictures[1]}\nA chart?\n"
    options = ["--temperature", 1.3, "--top-p", 0.9, "--top-k", 100, "--seed", 7, "--max-new-tokens", 8]
    done = chat(checkpoint, "--image", pictures[0], *options, given=given)
    assert done.returncode == 0, done.stderr.decode()
    (first,) = assistant.answer([Request(["How many?"], pictures[0])], settings)
    (second,) = assistant.answer([Request(["How many?", first.text, "Why?"], pictures[0])], settings)
    (third,) = assistant.answer([Request(["A chart?"], pictures[1])], settings)
    assert done.stdout.decode() == "".join(f"{answer.text}\n" for answer in (first, second, third))
    assert f"a new conversation begins, about {pictures[1]}" in done.stderr.decode()


FAULTS = [
    (["none", "--prompt", "q"], 2, "error: none: no such folder"),
    (["MODEL", "--prompt", "q", "--template", "plain"], 2, "error: template: plain is asked for, but "),
    (["MODEL", "--prompt", "q", "--image", "BROKEN"], 5, "of no picture format that can be read"),
    (["MODEL", "--prompt", ""], 2, "error: a question is empty (turn 1)"),
    (["MODEL", "--json"], 2, "--json prints one answer: give --prompt"),
    (["MODEL", "--prompt", "q", "--device", "cuda:9"], 2, "error: device: cuda:9: "),
    (["HALF", "--prompt", "q"], 5, "is not a whole safetensors file"),
    (["MODEL", "--prompt", "q", "--top-p", "2"], 2, "--top-p"),
    (["MODEL", "--prompt", "q", "--temperature", "nan"], 2, "temperature: nan, expected 0"),
]


@pytest.mark.parametrize(("arguments", "exit_code", "said"), FAULTS)
def test_a_fault_is_one_sentence_with_an_exit_code(checkpoint, tmp_path, arguments, exit_code, said):
    from click.testing import CliRunner

    from trainer.inference.chat import main

    (tmp_path / "broken.png").write_bytes(b"no picture")
    shutil.copytree(checkpoint, tmp_path / "half")
    (tmp_path / "half" / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:-50])
    places = {"MODEL": checkpoint, "BROKEN": tmp_path / "broken.png", "HALF": tmp_path / "half"}
    result = CliRunner().invoke(main, [str(places.get(argument, argument)) for argument in arguments])
    assert result.exit_code == exit_code, result.output
    assert said in result.stderr and result.stdout == ""
    assert result.stderr.count("error") <= 1 or exit_code == 2


def test_help_does_not_wait_for_torch():
    program = "import trainer.inference.chat, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "numpy", "PIL"}.isdisjoint(done.stdout.split())


class Terminal:
    """The far end of a pseudo-terminal."""

    def __init__(self, process: subprocess.Popen, end: int) -> None:
        self.process, self._end, self.seen = process, end, ""

    def read_until(self, text: str, since: int = 0) -> str:
        deadline, pending = time.monotonic() + PATIENCE, b""
        while text not in self.seen[since:]:
            assert time.monotonic() < deadline, f"{text!r} never came; seen: {self.seen!r}"
            if select.select([self._end], [], [], 1.0)[0]:
                try:
                    pending += os.read(self._end, 65536)
                except OSError:  # the process has gone
                    break
                whole = pending.decode("utf-8", "ignore")
                pending = pending[len(whole.encode()) :]
                self.seen += whole.replace("\r\n", "\n")
        assert text in self.seen[since:], f"{text!r} never came; seen: {self.seen!r}"
        return self.seen[since:]

    def type(self, text: str) -> int:
        """Type; return how much was seen before."""
        before = len(self.seen)
        os.write(self._end, text.encode())
        return before

    def press_until_it_ends(self, key: str) -> int:
        """Press a key; return the exit code. Python's input() misses a signal just behind its prompt: press again."""
        for _ in range(PATIENCE // 20):
            self.type(key)
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(20)
        raise AssertionError(f"it goes on; seen: {self.seen!r}")


@contextmanager
def terminal(*arguments):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=ROOT,
        env=ENVIRONMENT,
        start_new_session=True,
        # Ctrl-C reaches what the terminal controls.
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.fixture(scope="module")
def talkative(checkpoint, tmp_path_factory):
    """A model that never ends its answers: the output layer cannot write `</s>`; and with room for long ones."""
    folder = tmp_path_factory.mktemp("talkative") / "final"
    model, config = load_model(checkpoint)
    config = config.model_copy(
        update={"language": config.language.model_copy(update={"max_position_embeddings": 200_000})}
    )
    weights = dict(model.state_dict())
    with torch.no_grad():
        weights["language.lm_head.weight"][2] = 0
    data = json.loads((checkpoint / "data.json").read_text())
    save_model(folder, weights, config, checkpoint / "tokenizer", data)
    return folder


def shown(text: str) -> str:
    """What a terminal shows of a text: control characters become U+FFFD."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def test_a_conversation_in_a_terminal(talkative, pictures):
    assistant, short = open_assistant(talkative, device="cpu"), Sampling(max_new_tokens=6)
    (first,) = assistant.answer([Request(["How many?"], pictures[0])], short)
    (second,) = assistant.answer([Request(["How many?", first.text, "Why?"], pictures[0])], short)
    (anew,) = assistant.answer([Request(["Why?"], pictures[0])], short)
    assert first.text and second.text != anew.text
    with terminal(talkative, "--image", pictures[0], "--max-new-tokens", 6) as screen:
        screen.read_until("/help")
        screen.read_until("> ")
        for typed, expected in (
            ("How many?", shown(first.text)),
            ("Why?", shown(second.text)),
            ("/reset", "a new conversation begins"),
            ("Why?", shown(anew.text)),
            ("/images", "/images is no command; there are /image PATH, /reset, /help and /quit"),
            ("/image nowhere.png", "nowhere.png: no such file"),
            ("/image ~no.such.user/a.png", "~no.such.user/a.png: Could not determine home directory."),
            ("/help", "Ctrl-C stops an answer; where there is none, it ends"),
        ):
            before = screen.type(f"{typed}\n")
            screen.read_until(f"{expected}\n", before)
            screen.read_until("> ", before + len(typed))
        screen.type("\x04")  # Ctrl-D
        assert screen.process.wait(PATIENCE) == 0
        assert "Traceback" not in screen.seen


def test_ctrl_c_stops_an_answer_and_a_second_one_ends(talkative):
    with terminal(talkative, "--max-new-tokens", 100_000) as screen:
        screen.read_until("> ")
        before = screen.type("Why?\n")
        # The answer has begun, and would go on for hours.
        while len(screen.seen) < before + 60:
            screen.read_until(" ", len(screen.seen))
        screen.type("\x03")
        screen.read_until("\n> ", before + 20)
        # The conversation goes on; then Ctrl-C where no answer is written ends it.
        before = screen.type("/reset\n")
        screen.read_until("a new conversation begins", before)
        screen.read_until("\n> ", before + 8)
        assert screen.press_until_it_ends("\x03") == 130
        assert "Traceback" not in screen.seen


@pytest.mark.parametrize("word", ["/quit", " /exit ", "/q"])
def test_a_word_ends_it_too(assistant, word):
    assert Dialogue(assistant, None, Sampling()).take(word) is False


def test_two_signals_in_one_answer_end_the_program(talkative):
    with terminal(talkative, "--max-new-tokens", 100_000) as screen:
        screen.read_until("> ")
        before = screen.type("Why?\n")
        while len(screen.seen) < before + 40:
            screen.read_until(" ", len(screen.seen))
        # The first ends the answer, the second meets the prompt or the answer's last moment: both end the program.
        os.kill(screen.process.pid, signal.SIGINT)
        time.sleep(0.05)
        assert screen.press_until_it_ends("\x03") == 130


def test_pieces_are_the_answer_and_what_was_read_is_not_read_again(assistant, pictures, monkeypatch):
    from trainer.inference import generation

    read, original = [], generation._lay_out

    def counting(prompts, starts, counts):
        read.append((starts[0], counts[0]))
        return original(prompts, starts, counts)

    monkeypatch.setattr(generation, "_lay_out", counting)
    settings, turns = Sampling(max_new_tokens=10), []
    for picture, question in ((pictures[0], "How many?"), (pictures[0], "Why?"), (pictures[0], "In 2012?")):
        request = Request([*turns, question], picture)
        (expected,) = assistant.answer([request], settings)
        stream = assistant.stream(request, settings)
        pieces = list(stream)
        assert "".join(pieces) == expected.text and len(pieces) > 1
        assert stream.answer == expected
        turns += [question, expected.text]
    alone, streamed = read[::2], read[1::2]
    assert [start for start, _ in alone] == [0, 0, 0]
    # Of later turns only what is new: the whole prompt before it was kept.
    assert streamed[0][0] == 0
    assert all(sum(ours) == sum(theirs) for ours, theirs in zip(streamed, alone, strict=True))
    assert all(start >= sum(before) for (start, _), before in zip(streamed[1:], streamed, strict=False))


def test_a_token_that_was_written_but_never_read_is_read_now(assistant, pictures):
    """The last token of an answer is in the next prompt, but not in the cache."""
    from trainer.inference.assistant import AnswerStream

    settings = Sampling(max_new_tokens=5)
    for picture in (pictures[0], None):
        stream = assistant.stream(Request(["Why?"], picture), settings)
        assert "".join(stream) and not stream.answer.ended
        before = assistant.prompts.make(Request(["Why?"], picture))
        for behind in ([40, 50, 60], [40]):
            prompt = Prompt([*before.ids, *stream.answer.ids, *behind], before.image_slots, before.pixels)
            found = AnswerStream(assistant, prompt, assistant._draft(prompt, settings), settings)
            text, draft = "".join(found), assistant._draft(prompt, settings)
            for _ in generate(assistant.model, [prompt], [draft], settings, new_cache(assistant.model, 1)):
                pass
            assert (found.answer.ids, text) == (draft.ids, draft.text())


def test_another_picture_is_read_anew_although_the_words_are_the_same(assistant, pictures):
    settings = Sampling(max_new_tokens=10)
    for picture in (pictures[0], pictures[1], None, pictures[1]):
        request = Request(["How many bars are there?"], picture)
        assert "".join(assistant.stream(request, settings)) == assistant.answer([request], settings)[0].text


def test_an_answer_that_is_stopped_is_what_was_shown_and_the_next_one_is_right(assistant, pictures):
    settings = Sampling(max_new_tokens=40)
    stream = assistant.stream(Request(["Why?"], pictures[0]), settings)
    shown_so_far = next(stream) + next(stream)
    stream.close()
    assert list(stream) == []
    stopped = stream.answer
    assert stopped.text.startswith(shown_so_far) and not stopped.ended and len(stopped.ids) < 40
    request = Request(["Why?", stopped.text, "How?"], pictures[0])
    assert "".join(assistant.stream(request, settings)) == assistant.answer([request], settings)[0].text


def test_a_caption_model_takes_an_empty_line_for_a_question(save_checkpoint, tiny_tokenizer_dir, pictures, capsys):
    from tests.trainer.inference.conftest import fingerprint

    assistant = open_assistant(save_checkpoint(data=fingerprint(tiny_tokenizer_dir, "plain")), device="cpu")
    (expected,) = assistant.answer([Request([""], pictures[0])], Sampling(max_new_tokens=5))
    dialogue = Dialogue(assistant, pictures[0], Sampling(max_new_tokens=5))
    capsys.readouterr()
    assert dialogue.take("") and dialogue.take("again")
    assert capsys.readouterr().out == f"{expected.text}\n" * 2
    dialogue = Dialogue(assistant, None, Sampling(max_new_tokens=5))
    assert dialogue.take("")
    assert "a caption template takes a picture" in capsys.readouterr().err


def test_a_prompt_that_grew_too_long_says_how_to_begin_anew(save_checkpoint, capsys):
    assistant = open_assistant(save_checkpoint(max_position_embeddings=90), device="cpu")
    dialogue = Dialogue(assistant, None, Sampling(max_new_tokens=4))
    for _ in range(6):
        dialogue.take("How many bars are there?")
    said = capsys.readouterr().err
    assert "longer than the row" not in said
    assert re.search(r"^the prompt has \d+ tokens, the model was made for 90; /reset begins anew$", said, re.MULTILINE)
