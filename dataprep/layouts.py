"""Where the picture stands, found by rendering and encoding; it is never typed in."""

from __future__ import annotations

from contextlib import suppress

from dataprep.config import CompileConfig
from dataprep.conversation import IMAGE_TAG, Conversation, Refusal, Turn
from dataprep.encoding import Sample, TextEncoder, encode
from dataprep.shards.layout import RowLayout
from dataprep.templates import TEMPLATES, Prompter, TemplateError
from dataprep.whole_chat import check_against_whole


class LayoutError(ValueError):
    """A config and a tokenizer that no row can be made of; `key` is the config's key that decides it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def find_prompter(config: CompileConfig, encoder: TextEncoder) -> Prompter:
    """Bind the config's template to the tokenizer.

    Raises:
        LayoutError: they do not fit; it names what is missing, and the templates that do fit.
    """
    try:
        return _bind(config.template, config.system, encoder)
    except TemplateError as error:
        raise _unfit(config, encoder, str(error)) from None


def _bind(template: str, system: str | None, encoder: TextEncoder) -> Prompter:
    prompter = TEMPLATES[template].bind(encoder.dialect, system)
    try:
        check_against_whole(prompter, encoder)
    except Refusal as refusal:  # the template cannot write a conversation that is asked for as a trial
        raise TemplateError(refusal.detail) from None
    return prompter


def _unfit(config: CompileConfig, encoder: TextEncoder, reason: str) -> LayoutError:
    """Return the error that names the template's fault, and those templates of the phase that have none."""
    fitting = []
    for name, template in TEMPLATES.items():
        if template.phase == config.phase and name != config.template:
            with suppress(TemplateError):
                _find_image(_bind(name, config.system, encoder), encoder, config)
                fitting.append(name)
    choices = (
        f"templates that fit it: {', '.join(fitting)}" if fitting else f"no template of phase {config.phase} fits it"
    )
    return LayoutError("template", f"tokenizer {encoder.folder}: {reason}; {choices}")


def find_layout(config: CompileConfig, encoder: TextEncoder) -> RowLayout:
    """Find where the picture stands by rendering and encoding; it is never typed in.

    Raises:
        LayoutError: the template does not fit the tokenizer, the picture's place is not constant, the row is too short
            for prompt and picture, or the vocabulary too large for the dtype.
    """
    num_patches = config.image.num_patches
    prompter = find_prompter(config, encoder)
    try:
        shown = _find_image(prompter, encoder, config)
    except TemplateError as error:
        raise _unfit(config, encoder, str(error)) from None
    hole_start, hole_length = shown.image_start, num_patches
    if config.phase == 2:
        hidden = ~_probe(prompter, encoder, num_patches, None, "a", "a").attended
        hole_start, hole_length = int(hidden.argmax()), int(hidden.sum())
    if shown.image_start + num_patches >= config.max_seq_length:
        raise LayoutError(
            "max_seq_length",
            f"max_seq_length {config.max_seq_length}: the prompt and {num_patches} image slots take"
            f" {shown.image_start + num_patches}, which leaves no room for an answer",
        )
    if config.dtype == "uint16" and encoder.vocab_size > 1 << 16:
        raise LayoutError("dtype", f"dtype uint16: the vocabulary has {encoder.vocab_size} ids; use int32")
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
    return prompter.sha256(encoder.control_ids)


def _probe(prompter: Prompter, encoder: TextEncoder, num_patches: int, image: str | None, *words: str) -> Sample:
    turns = [Turn("gpt" if index % 2 else "human", text) for index, text in enumerate(words)]
    return encode(prompter.render(Conversation("", image, turns)), encoder, num_patches)


def _find_image(prompter: Prompter, encoder: TextEncoder, config: CompileConfig) -> Sample:
    """Return a sample with a picture, whose place is the same whatever is asked and however often.

    Raises:
        TemplateError: it is not.
    """
    first, *others = (f"{IMAGE_TAG}\na", IMAGE_TAG, f"{IMAGE_TAG}\n\n b?")
    num_patches = config.image.num_patches
    shown = _probe(prompter, encoder, num_patches, "a", first, "a")
    talks = [(question, "a") for question in others]
    if prompter.template.phase == 2:
        talks += [(first, "a", "b", "b"), (first, "a", "b", "b", "c", "c")]
    for words in talks:
        found = _probe(prompter, encoder, num_patches, "a", *words).image_start
        if found != shown.image_start:
            raise TemplateError(
                f"template {prompter.template.name}: the picture stands at token {shown.image_start} in one"
                f" conversation and at {found} in another; rows need a constant image_start_idx"
            )
    return shown
