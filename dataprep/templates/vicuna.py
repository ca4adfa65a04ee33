"""LLaVA-1.5's conversations: `<s> SYSTEM USER: <image>\\nq ASSISTANT: a</s>USER: q ASSISTANT: a</s>`.

Source: `conv_vicuna_v1` and `preprocess_v1` of the original LLaVA, whose tokens these are, for `legacy` true and false.
Every leading space is written out here: the tokenizer adds none (see `encoding.py`).
"""

from __future__ import annotations

from dataprep.templates.dialect import Dialect
from dataprep.templates.prompter import Opening, Template
from dataprep.templates.script import BOS, EOS, Hole, Mark, Part, Words

#: llava/conversation.py, `conv_vicuna_v1`.
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


class _Vicuna:
    opens_with_blank = False
    before_question = "\n"

    def __init__(self, dialect: Dialect, system: str | None) -> None:
        dialect.need_llama_type("vicuna_v1")
        dialect.need_special("vicuna_v1", "bos_token", "eos_token")
        self.system = VICUNA_SYSTEM if system is None else system
        # transformers' `legacy` tokenizers put a blank before text that follows `</s>`, the others do not.
        self._later = " USER: " if dialect.legacy else "USER: "

    def script(self, pairs: int, opening: Opening) -> list[Part]:
        """The blank before an answer belongs to its first word: at inference the prompt ends in "ASSISTANT:"."""
        picture: list[Part] = [Hole()] if opening is Opening.TEXT else [Mark.IMAGE, " "]
        parts: list[Part] = [BOS, f" {self.system} USER: " if self.system else " USER: ", *picture]
        for pair in range(pairs):
            if pair:
                parts.append(self._later)
            # LLaVA's question is in one piece with " ASSISTANT:": it may end in blanks, and a run of them is not cut.
            words: list[Part] = [] if pair == 0 and opening is Opening.BARE_PICTURE else [Words(2 * pair)]
            parts += [*words, " ASSISTANT:", Mark.ANSWER, " ", Words(2 * pair + 1), EOS]
        return parts


VICUNA_V1 = Template("vicuna_v1", 2, _Vicuna)
