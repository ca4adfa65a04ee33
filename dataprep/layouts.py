"""Where the picture stands, found by rendering and encoding; it is never typed in."""

from __future__ import annotations

import hashlib
import json

from dataprep.config import CompileConfig
from dataprep.conversation import IMAGE_TAG, Conversation, Turn
from dataprep.encoding import Sample, TextEncoder, encode
from dataprep.shards.layout import RowLayout
from dataprep.templates import TEMPLATES, Kind, Prompter, TemplateError
from dataprep.whole_chat import check_against_whole


class LayoutError(ValueError):
    """A config and a tokenizer that no row can be made of."""


def find_prompter(config: CompileConfig, encoder: TextEncoder) -> Prompter:
    """Bind the config's template to the tokenizer.

    Raises:
        LayoutError: they do not fit; it names what is missing.
    """
    try:
        prompter = TEMPLATES[config.template].bind(encoder.dialect, config.system)
        check_against_whole(prompter, encoder)
    except TemplateError as error:
        raise LayoutError(f"{encoder.folder}: {error}") from None
    return prompter


def find_layout(config: CompileConfig, encoder: TextEncoder) -> RowLayout:
    """Find where the picture stands by rendering and encoding; it is never typed in.

    Raises:
        LayoutError: the template does not fit the tokenizer, the picture's place is not constant, the row is too short
            for prompt and picture, or the vocabulary too large for the dtype.
    """
    num_patches = config.image.num_patches
    prompter = find_prompter(config, encoder)
    shown = _find_image(prompter, encoder, num_patches)
    hole_start, hole_length = shown.image_start, num_patches
    if config.phase == 2:
        hidden = ~_probe(prompter, encoder, num_patches, None, "a", "a").attended
        hole_start, hole_length = int(hidden.argmax()), int(hidden.sum())
    if shown.image_start + num_patches >= config.max_seq_length:
        raise LayoutError(
            f"max_seq_length {config.max_seq_length}: the prompt and {num_patches} image slots take"
            f" {shown.image_start + num_patches}, which leaves no room for an answer"
        )
    if config.dtype == "uint16" and encoder.vocab_size > 1 << 16:
        raise LayoutError(f"dtype uint16: the vocabulary has {encoder.vocab_size} ids; use int32")
    return RowLayout(
        max_seq_length=config.max_seq_length + (hole_length if config.row_width == "fit" else 0),
        num_patches=num_patches,
        image_start_idx=shown.image_start,
        hole_start=hole_start,
        hole_length=hole_length,
        phase=config.phase,
        template=config.template,
        bos_id=encoder.bos_id,
        eos_id=encoder.eos_id,
        pad_id=encoder.pad_id,
        vocab_size=encoder.vocab_size,
        tokenizer_fingerprint=encoder.fingerprint,
        image_size=config.image.size,
        image_mean=config.image.mean,
        image_std=config.image.std,
        image_fit=config.image.fit,
        config_sha256=config.sha256(),
        template_sha256=template_sha256(prompter, encoder),
        system_prompt=prompter.system,
    )


def template_sha256(prompter: Prompter, encoder: TextEncoder) -> str:
    """Return the hash of what a template writes: its wording, its control tokens' ids, a tokenizer's chat template."""
    outline = prompter.outline()
    tokens = {text for kind, text, *_ in outline if kind == Kind.CONTROL.value}
    ids = {token: encoder.control_ids[token] for token in sorted(tokens)}
    own = encoder.dialect.chat_template if prompter.template.name == "tokenizer" else None
    text = json.dumps([prompter.template.name, outline, ids, own], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _probe(prompter: Prompter, encoder: TextEncoder, num_patches: int, image: str | None, *words: str) -> Sample:
    turns = [Turn("gpt" if index % 2 else "human", text) for index, text in enumerate(words)]
    return encode(prompter.render(Conversation("", image, turns)), encoder, num_patches)


def _find_image(prompter: Prompter, encoder: TextEncoder, num_patches: int) -> Sample:
    """Return a sample with a picture, whose place is the same whatever is asked and however often."""
    first, *others = (f"{IMAGE_TAG}\na", IMAGE_TAG, f"{IMAGE_TAG}\n\n b?")
    shown = _probe(prompter, encoder, num_patches, "a", first, "a")
    talks = [(question, "a") for question in others]
    if prompter.template.phase == 2:
        talks += [(first, "a", "b", "b"), (first, "a", "b", "b", "c", "c")]
    for words in talks:
        found = _probe(prompter, encoder, num_patches, "a", *words).image_start
        if found != shown.image_start:
            raise LayoutError(
                f"template {prompter.template.name}: the picture stands at token {shown.image_start} in one"
                f" conversation and at {found} in another; rows need a constant image_start_idx"
            )
    return shown
