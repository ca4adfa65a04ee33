"""Conversation to Spans: the wording around the turns, and which of it is learned.

A span is encoded alone and its tokens are joined to its neighbours'. What a span trains is constant within it, so the
loss mask is born with the ids; nothing is searched for later. The cuts fall where no piece of the vocabulary can cross,
so that the ids equal those of the reference, which renders one string and tokenises it whole.

`TEMPLATES[name].bind(dialect)` fits a template to a tokenizer (`TextEncoder.dialect`) and says what is missing if it
does not; the result renders conversations and prompts.
"""

from __future__ import annotations

from dataprep.templates.chat import TOKENIZER
from dataprep.templates.dialect import AddedToken, Dialect, TemplateError
from dataprep.templates.headed import CHATML, LLAMA3, ZEPHYR
from dataprep.templates.llama2 import LLAMA2
from dataprep.templates.mistral import MISTRAL
from dataprep.templates.plain import PLAIN, PLAIN_EOS
from dataprep.templates.prompter import Prompter, Template
from dataprep.templates.spans import Kind, Span
from dataprep.templates.vicuna import VICUNA_SYSTEM, VICUNA_V1

#: A new template is a line here and a file beside this one, with golden cases in `tests/dataprep/test_templates.py`.
TEMPLATES = {
    template.name: template
    for template in (PLAIN, PLAIN_EOS, VICUNA_V1, LLAMA2, LLAMA3, CHATML, MISTRAL, ZEPHYR, TOKENIZER)
}

__all__ = [
    "TEMPLATES",
    "VICUNA_SYSTEM",
    "AddedToken",
    "Dialect",
    "Kind",
    "Prompter",
    "Span",
    "Template",
    "TemplateError",
]
