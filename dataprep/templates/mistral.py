"""Mistral's instructions, in the spelling of the tokenizer's generation.

    v1         <s> [INST] <image>\\nq [/INST] a</s> [INST] q [/INST] a</s>     7B-Instruct-v0.1, v0.2, Mixtral-8x7B
    v3         <s>[INST] <image>\\nq[/INST] a</s>[INST] q[/INST] a</s>         [INST], [/INST] are control tokens: v0.3
    v3 tekken  <s>[INST]<image>\\nq[/INST]a</s>[INST]q[/INST]a</s>             the same, byte-level: Nemo, Pixtral

Source: Mistral's cookbook on tokenization and templates, and the chat templates that the models are published with. The
original LLaVA's `mistral_instruct` differs by a blank before each `</s>`; here the format is Mistral's own. A system
prompt stands before the first question in every generation. (Mistral's v3 puts it before the last one, which would move
it with every turn.)
"""

from __future__ import annotations

from dataprep.templates.dialect import Dialect, TemplateError
from dataprep.templates.prompter import Opening, Template
from dataprep.templates.script import BOS, EOS, Hole, Mark, Part, Words, literal


class _Mistral:
    opens_with_blank = True
    before_question = "\n"

    def __init__(self, dialect: Dialect, system: str | None) -> None:
        dialect.need_special("mistral", "bos_token", "eos_token")
        controls = [token in dialect.added for token in ("[INST]", "[/INST]")]
        if any(controls) != all(controls):
            raise TemplateError("template mistral: the tokenizer has only one of [INST] and [/INST]")
        if dialect.byte_level and not all(controls):
            raise TemplateError("template mistral: the tokenizer has no [INST], which a byte-level one must have")
        blank = "" if dialect.byte_level else " "
        begin, end = (f"[INST]{blank}", "[/INST]") if all(controls) else (" [INST] ", " [/INST]")
        self.system = system or ""
        self._begin, self._end, self._blank = literal(begin, dialect), literal(end, dialect), blank

    def script(self, pairs: int, opening: Opening) -> list[Part]:
        parts: list[Part] = [BOS]
        for pair in range(pairs):
            words: list[Part] = [Words(2 * pair)]
            if pair == 0:
                picture: list[Part] = [Hole()] if opening is Opening.TEXT else [Mark.IMAGE]
                system: list[Part] = [f"{self.system}\n\n"] if self.system else []
                words = [*system, *picture, *([] if opening is Opening.BARE_PICTURE else words)]
            parts += [*self._begin, *words, *self._end, Mark.ANSWER, self._blank, Words(2 * pair + 1), EOS]
        return [part for part in parts if part != ""]


MISTRAL = Template("mistral", 2, _Mistral)
