"""Llama-2-chat as LLaVA trains it.

    <s> [INST] <<SYS>>\\nSYSTEM\\n<</SYS>>\\n\\n<image>\\nq [/INST] a </s><s>[INST] q [/INST] a </s>

Source: `conv_llava_llama_2` and `preprocess_llama_2` of the original LLaVA. The text is that of the chat template which
Llama-2-chat is published with. Of the tokens, LLaVA opens the first turn and what follows the picture with a blank
always, as Meta's own code does; later turns do where `legacy` is set. The blank before `</s>` is learned.
"""

from __future__ import annotations

from dataprep.templates.dialect import Dialect
from dataprep.templates.prompter import Opening, Template
from dataprep.templates.script import BOS, EOS, Hole, Mark, Part, Words

#: llava/conversation.py, `conv_llava_llama_2`.
LLAMA2_SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)


class _Llama2:
    opens_with_blank = False
    before_question = "\n"

    def __init__(self, dialect: Dialect, system: str | None) -> None:
        dialect.need_llama_type("llama2")
        dialect.need_special("llama2", "bos_token", "eos_token")
        self.system = LLAMA2_SYSTEM if system is None else system
        # An empty system prompt is not wrapped; else it is folded into the first question.
        self._opening = f" [INST] <<SYS>>\n{self.system}\n<</SYS>>\n\n" if self.system else " [INST] "
        self._later = " [INST] " if dialect.legacy else "[INST] "

    def script(self, pairs: int, opening: Opening) -> list[Part]:
        picture: list[Part] = [Hole()] if opening is Opening.TEXT else [Mark.IMAGE, " "]
        parts: list[Part] = []
        for pair in range(pairs):
            words: list[Part] = [] if pair == 0 and opening is Opening.BARE_PICTURE else [Words(2 * pair)]
            begin: list[Part] = [self._later] if pair else [self._opening, *picture]
            parts += [BOS, *begin, *words, " [/INST]", Mark.ANSWER, " ", Words(2 * pair + 1), " ", EOS]
        return parts


LLAMA2 = Template("llama2", 2, _Llama2)
