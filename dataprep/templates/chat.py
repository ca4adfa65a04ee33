"""`--template tokenizer`: the chat template that a tokenizer brings, rendered by Jinja as transformers renders it.

The template is rendered once for each number of turns, with a mark in place of every turn's words. What stands between
the marks is structure; the marks become slots. So no word of a record is ever seen by the template or found as a
control token, and no record costs a rendering.

What is learned is what the model has to write behind the template's own generation prompt, up to and with the control
token that ends the answer. Where the generation prompt leaves the speaker's header out, learning begins behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from dataprep.conversation import IMAGE_TAG
from dataprep.templates.dialect import Dialect, TemplateError
from dataprep.templates.jinja import compile_template
from dataprep.templates.prompter import Opening, Template
from dataprep.templates.script import Control, Hole, Mark, Part, Words, literal

#: What stands for a picture in templates that are told of one by `{"type": "image"}`.
IMAGE_TOKENS = ("<image>", "<|image_pad|>", "<|image|>", "[IMG]", "<IMG_CONTEXT>")

#: Questions of one conversation. The template is rendered once for each, and no row holds so many.
MAX_PAIRS = 256

# Private-use characters: no template trims, splits or changes them.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_SYSTEM = f"{_OPEN}s{_CLOSE}"
_PICTURE = f"{_OPEN}p{_CLOSE}"
_MARK = re.compile(f"{_OPEN}(s|p|[0-9]+){_CLOSE}")


def _mark(index: int) -> str:
    return f"{_OPEN}{index}{_CLOSE}"


def _words(pairs: int) -> list[str]:
    return [_mark(index) for index in range(2 * pairs)]


class Chat:
    """A tokenizer's own template. `image_token` is what it writes for a picture, None if it takes plain texts."""

    opens_with_blank = True

    def __init__(self, dialect: Dialect, system: str | None) -> None:
        if dialect.chat_template is None:
            raise TemplateError("template tokenizer: the tokenizer has no chat template")
        self.system = system or ""
        self._given = system
        self._dialect = dialect
        self.image_token: str | None = None
        self._scripts: dict[tuple[int, Opening], list[Part]] = {}
        try:
            self._try()
        except TemplateError as plain:
            self._scripts.clear()
            self.image_token = self._find_image_token(plain)
            self._try()

    @property
    def before_question(self) -> str:
        """LLaVA's newline in a text; a template that is told of the picture writes itself what follows it."""
        return "\n" if self.image_token is None else ""

    def _try(self) -> None:
        for opening in Opening:
            self.script(1, opening)

    def _find_image_token(self, fault: TemplateError) -> str:
        """Find what the template writes for a picture, if it wants a turn as a list of parts."""
        for token in IMAGE_TOKENS:
            self.image_token = token
            try:
                shown, hidden = (self._render(_turns(_words(1), opening, True)) for opening in _BOTH)
            except TemplateError:
                break
            if shown.count(token) == 1 and token not in hidden:
                return token
        raise fault

    def _render(self, turns: list[dict[str, Any]], prompt: bool = False, system: str = _SYSTEM) -> str:
        given = [] if self._given is None else [{"role": "system", "content": self._content(system)}]
        return render_chat(self._dialect, [*given, *turns], prompt)

    def _content(self, text: str) -> Any:
        return text if self.image_token is None else [{"type": "text", "text": text}]

    def whole(self, words: Sequence[str], has_image: bool) -> str:
        """Render real words, as the reference does."""
        opening = Opening.PICTURE if has_image else Opening.TEXT
        turns = _turns(words, opening, self.image_token is not None, IMAGE_TAG + "\n")
        return self._render(turns, system=self.system)

    def script(self, pairs: int, opening: Opening) -> list[Part]:
        """See `Writer`."""
        key = pairs, opening
        if key not in self._scripts:
            self._scripts[key] = self._script(*key)
        return self._scripts[key]

    def _script(self, pairs: int, opening: Opening) -> list[Part]:
        parts = self._parts(pairs, opening)
        if opening is not Opening.TEXT:
            return parts
        shown = self.script(pairs, Opening.PICTURE)
        lead = shown[: shown.index(Mark.IMAGE)]
        place = parts.index(Words(0))
        only_for_picture = lead[place:]
        if lead[:place] != parts[:place] or not all(isinstance(part, Control) for part in only_for_picture):
            raise TemplateError(
                "template tokenizer: it writes other words before a picture than before a question without one, so"
                " image_start_idx is not constant"
            )
        hole = Hole(tuple(part for part in only_for_picture if isinstance(part, Control)))
        return [*parts[:place], hole, *parts[place:]]

    def _parts(self, pairs: int, opening: Opening) -> list[Part]:
        if pairs > MAX_PAIRS:
            raise TemplateError(f"template tokenizer: {pairs} questions; at most {MAX_PAIRS}")
        turns = _turns(_words(pairs), opening, self.image_token is not None)
        text = self._render(turns)
        if self._given is not None and text.count(_SYSTEM) != 1:
            raise TemplateError("template tokenizer: its chat template does not write a system prompt, or not once")
        wanted = [index for index in range(2 * pairs) if index or opening is not Opening.BARE_PICTURE]
        found = [int(match[1]) for match in _MARK.finditer(text) if match[1].isdigit()]
        pictures = text.count(self.image_token or _PICTURE)
        if found != wanted or pictures != (opening is not Opening.TEXT):
            raise TemplateError(
                f"template tokenizer: of {len(wanted)} turns it writes {len(found)}, of the picture {pictures}"
            )
        borders = [self._border(text, turns, pair) for pair in range(pairs)]
        parts: list[Part] = []
        for start, stop in zip([0, *borders], [*borders, len(text)], strict=True):
            parts += [*([Mark.ANSWER] if start else []), *self._cut(text[start:stop])]
        self._check_ends(parts)
        return parts

    def _border(self, text: str, turns: list[dict[str, Any]], pair: int) -> int:
        """Return where in the rendered text an answer begins: behind its generation prompt."""
        prompt = self._render(turns[: 2 * pair + 1], prompt=True)
        words = text.index(_mark(2 * pair + 1))
        if not text.startswith(prompt):
            leads = [_MARK.split(rendered, maxsplit=1)[0] for rendered in (text, prompt)]
            raise TemplateError(
                "template tokenizer: its generation prompt is not how its conversations go on"
                if leads[0] == leads[1]
                else f"template tokenizer: before the first question it writes {leads[0]!r} in one conversation and"
                f" {leads[1]!r} in another, so image_start_idx is not constant"
            )
        between = text[len(prompt) : words]
        headers = [m for m in self._dialect.added_pattern.finditer(between) if self._dialect.added[m[0]].special]
        return words if headers or len(prompt) > words else len(prompt)

    def _cut(self, text: str) -> list[Part]:
        """Return the parts of a piece of the rendered text."""
        if self.image_token is not None:
            text = text.replace(self.image_token, _PICTURE)
        parts: list[Part] = []
        pieces = _MARK.split(text)
        for place, piece in enumerate(pieces):
            if place % 2 == 0:
                parts += literal(piece, self._dialect)
            elif piece == "s":
                parts += [self.system] if self.system else []
            else:
                parts.append(Mark.IMAGE if piece == "p" else Words(int(piece)))
        return parts

    def _check_ends(self, parts: list[Part]) -> None:
        ended = True
        for part in parts:
            if isinstance(part, Control):
                ended = True
            elif isinstance(part, Words):
                if not ended and part.index % 2 == 0:
                    break
                ended = part.index % 2 == 0
        else:
            if ended:
                return
        raise TemplateError("template tokenizer: no control token ends an answer, so a model could not stop")


_BOTH = (Opening.PICTURE, Opening.TEXT)


def _turns(words: Sequence[str], opening: Opening, parts: bool, picture: str = _PICTURE) -> list[dict[str, Any]]:
    """Return messages: plain texts with `picture` in front of the first, or lists of parts."""
    turns = []
    for index, text in enumerate(words):
        pictured = index == 0 and opening is not Opening.TEXT
        said = "" if index == 0 and opening is Opening.BARE_PICTURE else text
        content: Any = (picture if pictured else "") + said
        if parts:
            content = [{"type": "image"}] * pictured + ([{"type": "text", "text": said}] if said else [])
        turns.append({"role": "assistant" if index % 2 else "user", "content": content})
    return turns


def render_chat(dialect: Dialect, messages: list[dict[str, Any]], prompt: bool = False) -> str:
    """Render messages by the tokenizer's chat template, as transformers' `apply_chat_template(tokenize=False)` does.

    Raises:
        TemplateError: the template refuses them, or fails.
    """
    template = _compiled(dialect.chat_template or "")
    specials: Mapping[str, str] = dialect.specials
    return template(dict(specials), messages, prompt)


@lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    return compile_template(text)


TOKENIZER = Template("tokenizer", 2, Chat)
