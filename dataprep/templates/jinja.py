"""Chat templates in Jinja's sandbox, set up as transformers sets it up (utils/chat_template_utils.py).

One thing is left out on purpose: `strftime_now`. A template that writes today's date would make other shards tomorrow.
Those that ask whether it is defined (Llama-3.2) fall back to the date they were published with.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dataprep.templates.dialect import TemplateError

Renderer = Callable[[dict[str, str], list[dict[str, Any]], bool], str]


def compile_template(text: str) -> Renderer:
    """Return a function of special tokens, messages and `add_generation_prompt`.

    Raises:
        TemplateError: not a Jinja template. So does the function, where the template refuses the messages or fails.
    """
    # Imported here: only this template needs it.
    import jinja2
    import jinja2.ext
    import jinja2.nodes
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """`{% generation %}` marks what is generated for transformers' masks; ours come from the turns."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            # A scope of its own, as in transformers: what is set inside is not seen behind.
            return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    try:
        template = environment.from_string(text)
    except jinja2.TemplateError as error:
        raise TemplateError(f"template tokenizer: its chat template is not Jinja: {error}") from None

    def render(specials: dict[str, str], messages: list[dict[str, Any]], prompt: bool) -> str:
        try:
            return template.render(
                **specials, messages=messages, tools=None, documents=None, add_generation_prompt=prompt
            )
        # A template is a program: whatever its code raises is its fault, and said of it.
        except Exception as error:
            raise TemplateError(f"template tokenizer: its chat template fails: {_sentence(error)}") from None

    return render


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "strftime_now" in text:
        text += " (it writes today's date, so the same records would give other shards tomorrow)"
    return f"{type(error).__name__}: {text}" if not isinstance(error, _Refused) else text


class _Refused(Exception):
    """What `raise_exception` in a template raises."""


def _raise(message: str) -> None:
    raise _Refused(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter escapes HTML, transformers' does not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
