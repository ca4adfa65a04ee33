"""A model folder of any format that converts, opened to be asked.

Template, system prompt, picture fit and the picture's place come from the fingerprint of the shards that the model was
trained on, which lies in the folder (`data.json`; in exports inside `config.json`). What does not agree with it is
refused: a prompt that is a little different from training's would be answered a little worse, and nobody would know.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dataprep.encoding import TextEncoder
from dataprep.templates import TEMPLATES, Prompter, TemplateError
from trainer.errors import IntegrityError, TrainError
from trainer.inference.assistant import Assistant, Wording
from trainer.inference.drafts import open_encoder
from trainer.inference.facts import check_facts
from trainer.inference.prompts import PromptMaker
from trainer.inference.sources import Source, open_source

#: What a model without a fingerprint is asked in: LLaVA-1.5's own.
USUAL_TEMPLATE = "vicuna_v1"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_assistant(
    folder: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    template: str | None = None,
    system: str | None = None,
    base: Path | None = None,
    force_template: bool = False,
) -> Assistant:
    """Open a model folder; memory: the model once, and one tensor. What had to be guessed is said on stderr.

    Args:
        folder: a checkpoint of the trainer, an export, any format that `llava-convert` reads, or a run: its `final/`,
            and before that its latest checkpoint, or any of them.
        device: `auto` (CUDA where there is a device), `cpu`, `cuda`, or what torch calls one.
        dtype: one of `DTYPES`, or `auto`: bfloat16 on CUDA (float16 where it is only emulated), else float32.
        template: in place of the fingerprint's; needed where there is none, unless it is vicuna_v1.
        system: the system prompt, in place of training's; empty for none.
        base: the model that an adapter was trained beside, or that a checkpoint's run started from.
        force_template: take `template` although the model was trained with another.

    Raises:
        TrainError: an unknown or contradicting template, device or dtype; `IntegrityError`: prompts that cannot be
            those of training.
        ConversionError, UnsupportedError, FolderError: a folder that cannot be read.
    """
    where = pick(device)
    number_type = pick_dtype(dtype, where)
    source = open_source(folder, base)
    config, facts, notes = source.config, source.facts, list(source.notes)
    encoder, fingerprint = _open_tokenizer(source, folder)
    check_facts(folder, facts, config, encoder, fingerprint)
    prompter, forced = _prompter(folder, facts, encoder, template, system, force_template, notes)
    prompts = PromptMaker(prompter, encoder, config, _image_fit(folder, facts, notes))
    layout = Wording(
        template=prompter.template.name,
        system_prompt=prompter.system,
        image_fit=prompts.image_fit,
        image_start_idx=prompts.image_start(),
        num_patches=config.vision.num_patches,
        image_size=config.vision.image_size,
        tokenizer_fingerprint=fingerprint,
    )
    _check_place(folder, facts, layout, forced or system is not None, notes)
    _say(notes)
    return Assistant(source.fill(where, number_type), prompts, layout)


def pick(device: str) -> torch.device:
    """Return the device of a name; of several processes on a machine each gets a GPU of its own.

    Raises:
        TrainError: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TrainError(f"device: {device}: {str(error).splitlines()[0]}; choose auto, cpu or cuda") from None


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of a name, for `auto` that of the device; raises `TrainError` for an unknown one."""
    if name != "auto":
        if name not in DTYPES:
            raise TrainError(f"dtype: {name!r} is not known; choose auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _open_tokenizer(source: Source, folder: Path) -> tuple[TextEncoder, str]:
    """Return the tokenizer and its fingerprint."""
    with tempfile.TemporaryDirectory() as made:
        files = source.tokenizer
        place = files if isinstance(files, Path) else Path(made)
        if not isinstance(files, Path):
            for name, content in files.items():
                (place / name).write_bytes(content)
        encoder = open_encoder(place, folder)
        return encoder, encoder.fingerprint


def _prompter(
    folder: Path,
    facts: Mapping[str, Any],
    encoder: TextEncoder,
    template: str | None,
    system: str | None,
    force: bool,
    notes: list[str],
) -> tuple[Prompter, bool]:
    """Bind the template; return it, and whether it is another than training's on purpose."""
    trained = facts.get("template")
    if template is not None and template not in TEMPLATES:
        raise TrainError(f"template: {template!r} is not known; choose one of {', '.join(TEMPLATES)}")
    forced = trained is not None and template is not None and template != trained
    if forced and not force:
        raise TrainError(
            f"template: {template} is asked for, but {folder} was trained with {trained}; leave --template out, or add"
            " --force-template to ask in the other all the same"
        )
    name = template or trained
    if name is None:
        name = USUAL_TEMPLATE
        notes.append(f"{folder} does not say which template it was trained with; taken: {name} (see --template)")
    if name not in TEMPLATES:
        raise IntegrityError(f"{folder} was trained with the template {name}; known here are {', '.join(TEMPLATES)}")
    if forced:
        notes.append(f"asked in {name}, although {folder} was trained with {trained}")
    recorded = None if forced or trained is None else facts.get("template_sha256")
    choices = [system] if system is not None or forced else _systems(facts)
    bound = [_bind(name, encoder, choice, folder) for choice in choices]
    same = [prompter for prompter in bound if prompter.sha256(encoder.control_ids) == recorded]
    if recorded and system is None and not same and not force:
        raise IntegrityError(
            f"{folder}: template {name} writes other words or control tokens here"
            f" ({bound[0].sha256(encoder.control_ids)[:12]}…) than in training ({recorded[:12]}…): the tokenizer's chat"
            " template or this program has changed; --force-template asks all the same"
        )
    return (same or bound)[0], forced


def _systems(facts: Mapping[str, Any]) -> list[str | None]:
    """Return the system prompts that training may have had: an empty record may also mean the template's own."""
    recorded = facts.get("system_prompt")
    return [recorded, None] if recorded else [None, ""] if facts.get("template_sha256") else [None]


def _bind(name: str, encoder: TextEncoder, system: str | None, folder: Path) -> Prompter:
    try:
        return TEMPLATES[name].bind(encoder.dialect, system)
    except TemplateError as error:
        fitting = []
        for other, template in TEMPLATES.items():
            with suppress(TemplateError):
                template.bind(encoder.dialect)
                fitting.append(other)
        raise TrainError(f"{folder}: {error}; templates that fit its tokenizer: {', '.join(fitting)}") from None


def _image_fit(folder: Path, facts: Mapping[str, Any], notes: list[str]) -> str:
    fit = facts.get("image_fit")
    if fit is None:
        fit = _fit_of_processor(folder)
        notes.append(f"{folder} does not say how pictures were fitted in training; taken: {fit}")
    if fit not in ("pad", "crop"):
        raise IntegrityError(f"{folder} was trained with image_fit {fit!r}; known here are pad and crop")
    return fit


def _fit_of_processor(folder: Path) -> str:
    """Return what a foreign export's image processor does: CLIP's crops, LLaVA's pads."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        with suppress(OSError, ValueError):
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            # transformers 5 keeps the settings of the picture inside those of the whole processor.
            settings = content.get("image_processor", content) if isinstance(content, dict) else None
            if isinstance(settings, dict) and (kind := settings.get("image_processor_type")):
                pads = str(kind).startswith("LlavaImageProcessor") and settings.get("do_pad", True)
                return "pad" if pads else "crop"
    return "pad"


def _check_place(folder: Path, facts: Mapping[str, Any], layout: Wording, is_changed: bool, notes: list[str]) -> None:
    """Compare where the picture stands in a prompt with where it stood in training."""
    trained, found = facts.get("image_start_idx"), layout.image_start_idx
    if trained is None or trained == found:
        return
    said = f"the picture stands at token {found} in a prompt of {layout.template}, at {trained} in training"
    if not is_changed:
        raise IntegrityError(f"{folder}: image_start_idx: {said}")
    notes.append(f"{folder}: {said}")


def _say(notes: Iterable[str]) -> None:
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            print(f"note: {note}", file=sys.stderr, flush=True)
