"""Is a tokenizer's own chat template encoded in pieces as it is in one? Asked once, before anything is compiled.

The reference renders a conversation to one string and encodes it whole, control tokens and all. Some probes go both
ways; the first difference refuses the template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import Tokenizer

from dataprep.conversation import IMAGE_TAG, Conversation, Turn
from dataprep.encoding import TextEncoder, encode
from dataprep.shards.fingerprint import read_tokenizer_files
from dataprep.templates import Prompter, TemplateError
from dataprep.templates.chat import Chat
from dataprep.tokenizer_kinds import BLANK

#: Questions and answers that begin and end in letters, digits and signs.
PROBES = (("What is it?", "A bus."), ("3 or 4", "(3)", "Why?", '"Because"'), ("é", "中", "b", "c", "Is x<y?", "Yes"))


def check_against_whole(prompter: Prompter, encoder: TextEncoder) -> None:
    """Compare with the whole string's ids, for text alone and for a picture in front of the first question.

    Raises:
        TemplateError: some ids differ, or the template changes what is said.
    """
    chat = prompter.writer
    if not isinstance(chat, Chat):
        return
    image_token = chat.image_token or IMAGE_TAG
    whole, image_id = _whole(encoder, image_token)
    for words in PROBES:
        for has_image in (False, True):
            text = chat.whole(words, has_image)
            expected = whole.encode(text, add_special_tokens=False).ids
            found = _in_pieces(prompter, encoder, words, has_image, image_id)
            if expected != found:
                raise TemplateError(
                    f"template tokenizer: {text!r} is {expected} as a whole and {found} in pieces, so the template does"
                    " more than write words between control tokens"
                )


def _in_pieces(
    prompter: Prompter, encoder: TextEncoder, words: Sequence[str], has_image: bool, image_id: int
) -> list[int]:
    """Return the attended ids, with one slot for the picture."""
    said = [f"{IMAGE_TAG}\n{words[0]}" if has_image else words[0], *words[1:]]
    turns = [Turn("gpt" if index % 2 else "human", text) for index, text in enumerate(said)]
    sample = encode(prompter.render(Conversation("", "a" if has_image else None, turns)), encoder, 1)
    ids = sample.ids.copy()
    ids[sample.image_start] = image_id
    return ids[sample.attended].tolist()


def _whole(encoder: TextEncoder, image_token: str) -> tuple[Tokenizer, int]:
    """Return the tokenizer as transformers 5 loads it, with a token for the picture, and that token's id."""
    files, _ = read_tokenizer_files(encoder.folder)
    added = list(files.get("added_tokens", []))
    image_id = encoder.control_ids.get(image_token)
    if image_id is None:
        image_id = encoder.vocab_size
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added.append({"id": image_id, "content": image_token, **flags})
    changed = {"added_tokens": added, "truncation": None, "padding": None}
    if not encoder.dialect.byte_level:
        scheme = "always" if encoder.dialect.legacy else "first"
        changed["normalizer"] = None
        changed["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": BLANK,
            "prepend_scheme": scheme,
            "split": False,
        }
    return Tokenizer.from_str(json.dumps({**files, **changed})), image_id
