"""A tower, a decoder and a projector, each in a folder of its own; starting weights, where the projector is fresh.

```
FOLDER/image_model/    CLIP or SigLIP, whole or tower: config.json, *.safetensors (or .bin),
                       preprocessor_config.json (mean and deviation)
FOLDER/text_model/     Llama, Mistral, Qwen2 or Qwen3: config.json, *.safetensors (or .bin), the tokenizer's files
FOLDER/projector/      mm_projector.bin and config.json, as `llava-projector` writes them; or none: a fresh one
```

The first two may lie anywhere, each as transformers saves it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from converters.errors import ConversionError
from converters.files import LazyTensor
from converters.formats import hf_config, llava_projector
from converters.formats.hf_tokenizer import check_rows
from converters.formats.parts import read_decoder, read_tower, write_decoder, write_tower
from converters.hub import Hub, check_shapes, read_tokenizer
from trainer.model import LlavaConfig, ProjectorConfig, VisionConfig, initialise
from trainer.model.projector import Projector

IMAGE_MODEL, TEXT_MODEL, PROJECTOR = "image_model", "text_model", "projector"


def suits(folder: Path) -> bool:
    """Return whether a folder looks like this format."""
    return all((folder / part / "config.json").is_file() for part in (IMAGE_MODEL, TEXT_MODEL))


def read(folder: Path, tokenizer: Path | None = None) -> Hub:
    """Read the three folders of one model; without a projector among them, one is made as `join` makes it."""
    projector = folder / PROJECTOR
    if not projector.is_dir():
        hub = join(folder / IMAGE_MODEL, folder / TEXT_MODEL, tokenizer=tokenizer)
        return replace(hub, notes=[f"{folder} holds no folder {PROJECTOR}: a fresh one was made (mlp2x_gelu, seed 0)"])
    settings = hf_config.read_json(projector / "config.json")
    keys = ("select_layer", "select_feature")
    chosen = {key: settings[f"mm_vision_{key}"] for key in keys if f"mm_vision_{key}" in settings}
    hub = join(folder / IMAGE_MODEL, folder / TEXT_MODEL, tokenizer=tokenizer, chosen=chosen)
    return llava_projector.join(hub, projector / llava_projector.PROJECTOR)


def join(
    vision_folder: Path,
    language_folder: Path,
    projector_kind: str = "mlp2x_gelu",
    seed: int = 0,
    tokenizer: Path | None = None,
    chosen: dict[str, Any] | None = None,
) -> Hub:
    """Join a tower and a decoder by a fresh projector, whose weights depend on `seed` and the sizes alone.

    `tokenizer` is a folder whose files stand in place of the decoder's; `chosen` says which of the tower's states
    is used (keys of `VisionConfig`). The projector takes the decoder's dtype. Raises `ConversionError` or
    `UnsupportedError`.
    """
    config = _config(vision_folder, language_folder, projector_kind, chosen or {})
    decoder = read_decoder(language_folder, config)
    tensors = read_tower(vision_folder, config)
    tensors += _fresh_projector(config, seed, decoder[0]) + decoder
    check_shapes(config, tensors)
    files = read_tokenizer(tokenizer or language_folder)
    check_rows(files, config.language.vocab_size)
    return Hub(config, tensors, files, data=None)


def _config(vision_folder: Path, language_folder: Path, projector_kind: str, chosen: dict[str, Any]) -> LlavaConfig:
    vision = hf_config.to_our_vision(hf_config.load_their_config(vision_folder, hf_config.TOWERS))
    theirs = hf_config.load_their_config(language_folder, hf_config.DECODERS)
    mean, std = hf_config.read_mean_and_std(vision_folder)
    try:
        vision = VisionConfig.model_validate(vision.model_dump() | chosen)
    except ValueError as error:
        raise ConversionError(f"{vision_folder}: {chosen} does not fit this tower: {error}") from error
    return LlavaConfig(
        vision=vision,
        projector=ProjectorConfig.model_validate({"kind": projector_kind}),
        language=hf_config.to_our_language(theirs, theirs.vocab_size, bool(theirs.tie_word_embeddings)),
        image_mean=mean,
        image_std=std,
    )


def write(hub: Hub, folder: Path, max_shard_bytes: int) -> None:
    """Write the three folders; the projector's is what `llava-projector` writes, with the record of the training."""
    write_tower(hub, folder / IMAGE_MODEL, max_shard_bytes)
    write_decoder(hub, folder / TEXT_MODEL, max_shard_bytes)
    (folder / PROJECTOR).mkdir()
    llava_projector.write(hub, folder / PROJECTOR, max_shard_bytes)


def _fresh_projector(config: LlavaConfig, seed: int, like: LazyTensor) -> list[LazyTensor]:
    projector = Projector(config)
    initialise(projector, seed)
    state = projector.to(like.dtype).state_dict()
    return [LazyTensor(f"projector.{name}", tuple(t.shape), t.dtype, lambda t=t: t) for name, t in state.items()]
