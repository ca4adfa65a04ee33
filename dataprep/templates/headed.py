"""Formats that name the speaker in a header: Llama-3, ChatML (Qwen), Zephyr.

    llama3  <|begin_of_text|><|start_header_id|>user<|end_header_id|>\\n\\n<image>\\nq<|eot_id|>
            <|start_header_id|>assistant<|end_header_id|>\\n\\na<|eot_id|>          (one line, as it is written)
    chatml  <|im_start|>system\\nSYSTEM<|im_end|>\\n
            <|im_start|>user\\n<image>\\nq<|im_end|>\\n<|im_start|>assistant\\na<|im_end|>\\n
    zephyr  <|user|>\\n<image>\\nq</s>\\n<|assistant|>\\na</s>\\n

Source: the chat templates that Meta-Llama-3-8B-Instruct, Qwen2 and zephyr-7b-beta are published with, as transformers'
`apply_chat_template` renders and encodes them. So chatml and zephyr have no bos. The control token that ends an answer
is learned; the newline behind it is not. Llama-3's template trims what is said; here blanks are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from dataprep.templates.dialect import Dialect
from dataprep.templates.prompter import Opening, Template
from dataprep.templates.script import Hole, Mark, Part, Words, literal

#: Qwen2's own, and that of LLaVA-NeXT's `conv_qwen`.
CHATML_SYSTEM = "You are a helpful assistant."

#: The system prompt that a ChatML tokenizer's own template writes where a conversation brings none.
_DEFAULT_SYSTEM = re.compile(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}<]+)<\|im_end\|>")


class _Wording(NamedTuple):
    """A format's own words. `header` takes a role."""

    begin: str
    header: Callable[[str], str]
    end: str
    behind: str


class _Headed:
    opens_with_blank = True
    before_question = "\n"

    def __init__(self, dialect: Dialect, system: str, wording: _Wording) -> None:
        self.system = system
        self._wording = wording
        self._user, self._assistant, self._opening = (
            literal(text, dialect) for text in (wording.header("user"), wording.header("assistant"), wording.begin)
        )
        self._end, self._behind = literal(wording.end, dialect), wording.behind
        if system:
            # The system prompt is text: only what stands around it may hold control tokens.
            around = literal(wording.header("system"), dialect), [*self._end, self._behind]
            self._opening = [*self._opening, *around[0], system, *around[1]]

    def script(self, pairs: int, opening: Opening) -> list[Part]:
        parts = [*self._opening]
        for pair in range(pairs):
            words: list[Part] = [Words(2 * pair)]
            if pair == 0:
                words = {
                    Opening.TEXT: [Hole(), *words],
                    Opening.PICTURE: [Mark.IMAGE, *words],
                    Opening.BARE_PICTURE: [Mark.IMAGE],
                }[opening]
            asked = [*self._user, *words, *self._end, self._behind]
            answered = [Mark.ANSWER, Words(2 * pair + 1), *self._end, self._behind]
            parts += [*asked, *self._assistant, *answered]
        return [part for part in parts if part != ""]


def _llama3(dialect: Dialect, system: str | None) -> _Headed:
    dialect.need("llama3", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    dialect.need_special("llama3", "bos_token")

    def header(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    return _Headed(dialect, system or "", _Wording(dialect.specials["bos_token"], header, "<|eot_id|>", ""))


def _chatml(dialect: Dialect, system: str | None) -> _Headed:
    dialect.need("chatml", "<|im_start|>", "<|im_end|>")
    if system is None:
        # Qwen2 and Qwen2.5 differ in this prompt alone, and Qwen3 has none: the tokenizer's own template says which.
        found = _DEFAULT_SYSTEM.search(dialect.chat_template or "")
        system = found[1] if found else "" if dialect.chat_template else CHATML_SYSTEM
    wording = _Wording("", lambda role: f"<|im_start|>{role}\n", "<|im_end|>", "\n")
    return _Headed(dialect, system or "", wording)


def _zephyr(dialect: Dialect, system: str | None) -> _Headed:
    dialect.need_special("zephyr", "eos_token")
    wording = _Wording("", lambda role: f"<|{role}|>\n", dialect.specials["eos_token"], "\n")
    return _Headed(dialect, system or "", wording)


LLAMA3 = Template("llama3", 2, _llama3)
CHATML = Template("chatml", 2, _chatml)
ZEPHYR = Template("zephyr", 2, _zephyr)
