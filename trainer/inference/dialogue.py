"""A conversation in a terminal: questions and commands in, answers out as they are written."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dataprep.conversation import Refusal
from dataprep.images import ImageFault, check_image
from trainer.inference.asking import Request, Sampling
from trainer.inference.assistant import AnswerStream, Assistant
from trainer.inference.prompts import sentence

HELP = """\
/image PATH  talk about another picture (begins anew); /image alone: about none
/reset       begin anew with the same picture
/help        this
/quit        end (so does Ctrl-D)
Ctrl-C stops an answer; where there is none, it ends"""

_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)

#: What would steer a terminal instead of being shown on it.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Return a text with U+FFFD for every character that would steer a terminal; newlines and tabs stay."""
    return _CONTROL.sub("\ufffd", text)


class Dialogue:
    """One conversation, which may begin anew."""

    def __init__(self, assistant: Assistant, image: Path | None, sampling: Sampling) -> None:
        self.assistant, self.image, self.sampling = assistant, image, sampling
        self.turns: list[str] = []
        # A caption has no question and nothing after it: every line, an empty one too, asks for one.
        self._captions = assistant.prompts.prompter.template.phase == 1
        self._is_terminal = sys.stdout.isatty()

    def take(self, line: str) -> bool:
        """Answer a line or do what it commands; return whether the conversation goes on."""
        command = _COMMAND.fullmatch(line.strip())
        if command is None:
            if line.strip() or self._captions:
                self._ask(line.strip())
            return True
        name, rest = command[1], (command[2] or "").strip()
        if name in ("quit", "exit", "q"):
            return False
        if name == "image":
            self._look_at(rest)
        elif name == "reset":
            self.turns = []
            self._say("a new conversation begins")
        elif name == "help":
            self._say(HELP)
        else:
            self._say(f"/{name} is no command; there are /image PATH, /reset, /help and /quit")
        return True

    def _look_at(self, name: str) -> None:
        try:
            path = Path(name.strip("'\"")).expanduser() if name else None
            if path is not None:
                check_image(path, "decode")
        except (ImageFault, RuntimeError) as fault:  # `~nobody` has no home
            self._say(str(fault) if isinstance(fault, ImageFault) else f"{name}: {fault}")
            return
        self.image, self.turns = path, []
        self._say(f"a new conversation begins, {'without a picture' if path is None else f'about {path}'}")

    def _ask(self, question: str) -> None:
        try:
            stream = self.assistant.stream(Request([*self.turns, question], self.image), self.sampling)
        except (ImageFault, Refusal) as error:
            self._say(sentence(error) + ("; /reset begins anew" if self.turns else ""))
            return
        with _stoppable() as stop:
            self._show(stream, stop)
        answer = stream.answer
        if not self._captions:
            self.turns += [question, answer.text]
        if not answer.ended and not stop.asked:
            self._say(f"(cut after {len(answer.ids)} tokens)")

    def _show(self, stream: AnswerStream, stop: "_Stop") -> None:
        for piece in stream:
            sys.stdout.write(printable(piece) if self._is_terminal else piece)
            sys.stdout.flush()
            if stop.asked:
                stream.close()
                break
        sys.stdout.write("\n")
        sys.stdout.flush()

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Stop:
    """Whether Ctrl-C was pressed once."""

    asked = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    before = signal.signal(signal.SIGINT, stop.receive)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def talk(assistant: Assistant, image: Path | None, sampling: Sampling) -> None:
    """Talk until /quit or the end of the input. Raises `ImageFault` for a first picture that cannot be used."""
    if image is not None:
        check_image(image, "decode")
    dialogue = Dialogue(assistant, image, sampling)
    is_typed = sys.stdin.isatty()
    if is_typed:
        import readline  # noqa: F401  (arrow keys and a history for input())

        about = f", about {image}" if image else ""
        print(f"asking in {assistant.template} on {_place(assistant)}{about}; /help", file=sys.stderr, flush=True)
    while True:
        try:
            line = input("> " if is_typed else "")
        except EOFError:
            if is_typed:
                print(file=sys.stderr)
            return
        if not dialogue.take(line):
            return


def _place(assistant: Assistant) -> str:
    weight = assistant.model.language.embed.weight
    return f"{weight.device} in {str(weight.dtype).removeprefix('torch.')}"
