"""Two folders side by side on the same input: the largest difference of their logits.

Each folder runs in the program that it is for: ours through `trainer.model`, Hugging Face's through transformers, in
fp32; a format without a program of its own (an adapter, a projector) as what it makes of its base, through ours. One
model is in memory at a time.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image
from torch import Tensor

from converters.errors import ConversionError, UnsupportedError
from converters.formats import detect, read_with
from converters.formats.hf import read_record
from converters.hub import Hub, build_model
from dataprep.encoding import TextEncoder, TokenizerError, encode
from dataprep.images import ImageFault, load_image, pad_colour
from dataprep.templates import TEMPLATES, VICUNA_SYSTEM
from trainer.attention import Segments
from trainer.model import LlavaConfig, ModelInput


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt of T tokens, with one picture or none."""

    name: str
    ids: Int64[Tensor, " T"]
    is_image_slot: Bool[Tensor, " T"]
    """True where the picture's patches go."""
    pixels: UInt8[Tensor, "I 3 size size"]
    """I is 1 or 0."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came out for one probe."""

    name: str
    num_tokens: int
    max_difference: float
    """Largest absolute difference of two logits, over all tokens and the vocabulary that both have."""
    max_logit: float
    """Largest absolute logit of the first side: what the difference is to be seen against."""
    same_choice: float
    """Part of the tokens at which both sides find the same next token likeliest."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two folders."""

    folder: Path
    format: str
    hub: Hub
    others: Mapping[str, Path]


def open_side(folder: Path, others: Mapping[str, Path]) -> Side:
    """Read a folder of any format; of `others` (`vision`, `tokenizer`, `base`) its format takes what it needs.

    Raises `ConversionError` or `UnsupportedError`.
    """
    name = detect(folder)
    return Side(folder, name, read_with(name, folder, others), others)


def compare(first: Side, second: Side, image: Path | None, question: str) -> list[Comparison]:
    """Run a prompt with a picture and one without through both folders.

    `image` None draws a picture. Raises `ConversionError` where the folders cannot get the same input: other tokenizers
    or sizes of pictures; `UnsupportedError` for an unusable picture or tokenizer.
    """
    probes, others = (make_probes(side.hub, image, question) for side in (first, second))
    for probe, other in zip(probes, others, strict=True):
        if not torch.equal(probe.ids, other.ids) or probe.pixels.shape != other.pixels.shape:
            folders = f"{first.folder} and {second.folder}"
            raise ConversionError(f"{folders} make other tokens or pixels of the same prompt ({probe.name})")
    pairs = zip(run(first, probes), run(second, probes), strict=True)
    return [_compare(probe, *pair) for probe, pair in zip(probes, pairs, strict=True)]


def make_probes(hub: Hub, image: Path | None, question: str) -> list[Probe]:
    """Return the same question with a picture and without, as vicuna_v1 asks it."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in hub.tokenizer.items():
            (Path(folder) / name).write_bytes(content)
        try:
            encoder = TextEncoder(folder)
        except TokenizerError as error:
            raise UnsupportedError(f"prompts cannot be made with this tokenizer: {error}") from error
    pixels = torch.from_numpy(_picture(hub, image)).permute(2, 0, 1)[None].contiguous()
    return [
        _probe("picture and text", encoder, hub.config.vision.num_patches, question, pixels),
        _probe("text alone", encoder, hub.config.vision.num_patches, question, pixels[:0]),
    ]


def _probe(name: str, encoder: TextEncoder, num_patches: int, question: str, pixels: Tensor) -> Probe:
    has_image = len(pixels) > 0
    sample = encode(TEMPLATES["vicuna_v1"].bind(encoder.dialect).prompt(question, has_image), encoder, num_patches)
    slots = np.arange(len(sample.ids)) - sample.image_start
    is_slot = (slots >= 0) & (slots < num_patches) & has_image
    # A prompt without a picture carries the picture's hole, which is not attended: here it is left out.
    kept = sample.attended
    return Probe(name, torch.from_numpy(sample.ids[kept]).long(), torch.from_numpy(is_slot[kept]), pixels)


def _picture(hub: Hub, path: Path | None) -> UInt8[np.ndarray, "size size 3"]:
    size = hub.config.vision.image_size
    if path is None:
        # Smooth colours under noise, so that every patch differs from every other.
        ramp = np.linspace(0, 200, size)
        smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], 100.0), axis=-1)
        return (smooth + np.random.default_rng(0).integers(0, 56, (size, size, 3))).astype(np.uint8)
    try:
        fit = (hub.data or {}).get("image_fit", "pad")
        return load_image(path, size, fit, pad_colour(hub.config.image_mean)).copy()
    except ImageFault as fault:
        raise UnsupportedError(str(fault)) from fault


def run(side: Side, probes: Sequence[Probe]) -> list[Float[Tensor, "T V"]]:
    """Return the fp32 logits of every token of each probe."""
    with torch.inference_mode():
        return RUNNERS.get(side.format, _run_ours)(side, probes)


def _run_ours(side: Side, probes: Sequence[Probe]) -> list[Tensor]:
    model = build_model(side.hub, torch.device("cpu"), torch.float32)
    return [model(_as_input(probe)) for probe in probes]


def _as_input(probe: Probe) -> ModelInput:
    count = len(probe.ids)
    return ModelInput(
        input_ids=probe.ids,
        positions=torch.arange(count),
        segments=Segments(torch.tensor([0, count], dtype=torch.int32), count),
        image_slots=probe.is_image_slot.nonzero().flatten(),
        pixels=probe.pixels,
    )


def _run_hf(side: Side, probes: Sequence[Probe]) -> list[Tensor]:
    from transformers import AutoModelForImageTextToText

    config = side.hub.config
    model = AutoModelForImageTextToText.from_pretrained(side.folder, local_files_only=True).float().eval()
    logits = []
    for probe in probes:
        ids = probe.ids.masked_fill(probe.is_image_slot, model.config.image_token_index)
        picture = {"pixel_values": _normalised(probe.pixels, config)} if len(probe.pixels) else {}
        logits.append(model(input_ids=ids[None], **picture).logits[0])
    return logits


def _run_llava(side: Side, probes: Sequence[Probe]) -> list[Tensor]:
    from converters.formats.llava_reference import original

    return _run_reference(original(side.folder, side.others.get("vision")), side, probes)


def _run_components(side: Side, probes: Sequence[Probe]) -> list[Tensor]:
    from converters.formats.components_reference import in_parts

    return _run_reference(in_parts(side.folder), side, probes)


def _run_cerebras(side: Side, probes: Sequence[Probe]) -> list[Tensor]:
    from converters.formats.cerebras import CHECKPOINT, PARAMS
    from converters.formats.cerebras_reference import ModelZoo

    folder = side.folder
    if not (folder / CHECKPOINT).is_file() or not (folder / PARAMS).is_file():
        raise UnsupportedError(f"{folder}: verify runs a Model Zoo folder of ours, with {CHECKPOINT} and {PARAMS}")
    return _run_reference(ModelZoo(folder / CHECKPOINT, folder / PARAMS), side, probes)


def _run_reference(model: Any, side: Side, probes: Sequence[Probe]) -> list[Tensor]:
    pictures = [_normalised(probe.pixels, side.hub.config) for probe in probes]
    return [
        model.logits(probe.ids, probe.is_image_slot, picture) for probe, picture in zip(probes, pictures, strict=True)
    ]


#: How each format is run in a program that is not ours.
RUNNERS: dict[str, Callable[[Side, Sequence[Probe]], list[Tensor]]] = {
    "hf": _run_hf,
    "llava": _run_llava,
    "components": _run_components,
    "cerebras": _run_cerebras,
}


def _compare(probe: Probe, first: Tensor, second: Tensor) -> Comparison:
    common = min(first.shape[1], second.shape[1])
    first, second = first[:, :common], second[:, :common]
    return Comparison(
        name=probe.name,
        num_tokens=len(probe.ids),
        max_difference=(first - second).abs().max().item(),
        max_logit=first.abs().max().item(),
        same_choice=(first.argmax(1) == second.argmax(1)).double().mean().item(),
    )


def processor_differences(side: Side, other: Side, image: Path | None, question: str) -> list[str] | None:
    """Say where a Hugging Face folder's own processor makes something else of a prompt than training does.

    The question is asked in vicuna_v1's wording with the picture, or with a drawn one. What training makes of it is
    taken from `other`, where that is a checkpoint or an export of ours, else from `side`. Returns a sentence for other
    ids and one for other pixels; None where `side` is no export of ours, since
    nothing says what it was trained on. Pixels are compared of opaque 8-bit pictures: of others transformers makes
    something else on purpose (`dataprep.images` says why).
    """
    folder = side.folder
    if side.format != "hf" or read_record(folder) is None:
        return None
    from transformers import AutoProcessor

    is_ours = other.format == "trainer" or (other.format == "hf" and read_record(other.folder) is not None)
    hub = (other if is_ours else side).hub
    with tempfile.TemporaryDirectory() as drawn:
        path = image or _draw(Path(drawn) / "picture.png")
        probe = make_probes(hub, path, question)[0]
        try:
            # Pillow is what training scales with; torchvision differs by rounding.
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
            with Image.open(path) as picture:
                comparable = picture.mode in _OPAQUE_MODES and "transparency" not in picture.info
                theirs = processor(images=picture.convert("RGB"), text=_wording(question), return_tensors="pt")
        except Exception as error:  # files of any content make transformers raise nearly anything
            return [f"{folder}: its processor cannot be used: {type(error).__name__}: {' '.join(str(error).split())}"]
    found = [_ids_differ(folder, probe, processor, theirs["input_ids"][0])]
    if comparable:
        found.append(_pixels_differ(folder, _normalised(probe.pixels, hub.config), theirs["pixel_values"]))
    return [sentence for sentence in found if sentence is not None]


#: Pillow's names of pictures with 8 bits a channel at most, and no transparency.
_OPAQUE_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")

#: Largest difference of two normalised pixels that is rounding; one step of 256 is at least ten times as much.
_PIXEL_TOLERANCE = 1e-3


def _draw(path: Path) -> Path:
    """Draw a picture that is no square, so that padding and cropping make different pixels of it."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)).save(path)
    return path


def _wording(question: str) -> str:
    """Return vicuna_v1's prompt as text, with the picture in front of the question."""
    rest = question.replace("<image>", "").strip()
    asked = f"\n{rest}" if rest else ""
    return f"{VICUNA_SYSTEM} USER: <image>{asked} ASSISTANT:"


def _ids_differ(folder: Path, probe: Probe, processor: Any, theirs: Tensor) -> str | None:
    ours = probe.ids.masked_fill(probe.is_image_slot, processor.tokenizer.convert_tokens_to_ids("<image>"))
    if torch.equal(theirs, ours):
        return None
    common = min(len(ours), len(theirs))
    differing = (ours[:common] != theirs[:common]).nonzero().flatten().tolist()
    place = differing[0] if differing else common
    return (
        f"{folder}: its processor makes other ids of the prompt: {len(theirs)}, training {len(ours)};"
        f" the first difference is at {place}"
    )


def _pixels_differ(folder: Path, ours: Tensor, theirs: Tensor) -> str | None:
    if theirs.shape != ours.shape:
        return f"{folder}: its processor makes pixels of shape {tuple(theirs.shape)}, training {tuple(ours.shape)}"
    largest = (theirs - ours).abs().max().item()
    if largest <= _PIXEL_TOLERANCE:
        return None
    return f"{folder}: its processor makes other pixels of the picture: the largest difference is {largest:.3g}"


def _normalised(pixels: UInt8[Tensor, "I 3 size size"], config: LlavaConfig) -> Float[Tensor, "I 3 size size"]:
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    return (pixels / 255 - mean) / std
