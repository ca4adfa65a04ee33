"""Captions: the picture and its words, no prompt.

    plain      <s><image> caption\\n        LLaVA's `preprocess_plain`: no </s>, the newline is learned
    plain_eos  <s><image> caption</s>      what the Cerebras Model Zoo's phase 1 trains on

The question is dropped. A Llama-type tokenizer writes the blank; a byte-level one puts none before the first word. A
tokenizer without a bos (Qwen) begins with the picture. Source: llava/train/train.py of the original LLaVA.
"""

from __future__ import annotations

from dataprep.templates.dialect import Dialect
from dataprep.templates.prompter import Opening, Template
from dataprep.templates.script import BOS, EOS, Mark, Part, Words


class _Plain:
    system = ""
    opens_with_blank = False
    before_question = "\n"

    def __init__(self, dialect: Dialect, end: Part) -> None:
        self._begin: list[Part] = [BOS] if "bos_token" in dialect.specials else []
        self._blank = "" if dialect.byte_level else " "
        self._end = end

    def script(self, pairs: int, opening: Opening) -> list[Part]:
        return [*self._begin, Mark.IMAGE, Mark.ANSWER, self._blank, Words(1), self._end]


PLAIN = Template("plain", 1, lambda dialect, system: _Plain(dialect, "\n"))
PLAIN_EOS = Template("plain_eos", 1, lambda dialect, system: _Plain(dialect, EOS))
