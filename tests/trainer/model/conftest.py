"""Tiny models of ours, and transformers' models with the same weights."""

import re
from collections.abc import Callable

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SiglipVisionConfig,
)
from transformers import LlavaConfig as TheirConfig

from tests.tiny_llava import tiny_llava
from trainer.attention import Segments
from trainer.model import LanguageConfig, LlavaConfig, LlavaModel, ModelInput, VisionConfig

IMAGE_ID = 95

#: Our names -> the names that transformers 5 uses in memory, written down apart from the converters' tables.
NAMES = (
    (r"^vision\.class_embedding", "model.vision_tower.embeddings.class_embedding"),
    (r"^vision\.(patch|position)_embedding", r"model.vision_tower.embeddings.\1_embedding"),
    (r"^vision\.pre_norm", "model.vision_tower.pre_layrnorm"),
    (r"^vision\.post_norm", "model.vision_tower.post_layernorm"),
    (r"^vision\.layers\.(\d+)\.norm(\d)", r"model.vision_tower.encoder.layers.\1.layer_norm\2"),
    (r"^vision\.layers\.(\d+)\.attention\.o", r"model.vision_tower.encoder.layers.\1.self_attn.out_proj"),
    (r"^vision\.layers\.(\d+)\.attention\.(\w)", r"model.vision_tower.encoder.layers.\1.self_attn.\2_proj"),
    (r"^vision\.layers\.(\d+)\.mlp\.up", r"model.vision_tower.encoder.layers.\1.mlp.fc1"),
    (r"^vision\.layers\.(\d+)\.mlp\.down", r"model.vision_tower.encoder.layers.\1.mlp.fc2"),
    (r"^projector\.up", "model.multi_modal_projector.linear_1"),
    (r"^projector\.down", "model.multi_modal_projector.linear_2"),
    (r"^language\.embed", "model.language_model.embed_tokens"),
    (r"^language\.layers\.(\d+)\.attention_norm", r"model.language_model.layers.\1.input_layernorm"),
    (r"^language\.layers\.(\d+)\.mlp_norm", r"model.language_model.layers.\1.post_attention_layernorm"),
    (r"^language\.layers\.(\d+)\.attention\.(q|k)_norm", r"model.language_model.layers.\1.self_attn.\2_norm"),
    (r"^language\.layers\.(\d+)\.attention\.(\w)", r"model.language_model.layers.\1.self_attn.\2_proj"),
    (r"^language\.layers\.(\d+)\.mlp\.(\w+)", r"model.language_model.layers.\1.mlp.\2_proj"),
    (r"^language\.norm", "model.language_model.norm"),
    (r"^language\.lm_head", "lm_head"),
)


@pytest.fixture(scope="session")
def their_name() -> Callable[[str], str]:
    return translate


def translate(ours: str) -> str:
    return next(re.sub(pattern, theirs, ours) for pattern, theirs in NAMES if re.match(pattern, ours))


@pytest.fixture(autouse=True)
def _one_thread():
    # For tensors this small a second thread only waits, much longer when the machine is busy.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_id() -> int:
    return IMAGE_ID


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LlavaModel]:
    """Build a tiny model; keywords change the decoder, `vision` and `kind` the tower and the projector."""

    def make(seed: int = 0, **changed) -> LlavaModel:
        return tiny_llava(seed, 9, **changed)

    return make


def their_vision(vision: VisionConfig) -> PretrainedConfig:
    """Written down apart from the converters' tables, as are the names."""
    sizes = {
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_act": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
    }
    return CLIPVisionConfig(**sizes) if vision.kind == "clip" else SiglipVisionConfig(**sizes, vision_use_head=False)


def their_language(language: LanguageConfig) -> PretrainedConfig:
    kinds = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    rope: dict = {"rope_type": "default", "rope_theta": language.rope_theta}
    if language.rope_scaling is not None:
        rope |= language.rope_scaling.model_dump(exclude={"kind"}) | {"rope_type": language.rope_scaling.kind}
    own: dict = {"attention_bias": language.attention_bias} if language.family in ("llama", "qwen3") else {}
    if language.family == "mistral":
        own["sliding_window"] = language.sliding_window
    return kinds[language.family](
        vocab_size=language.vocab_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.intermediate_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads,
        num_key_value_heads=language.num_kv_heads,
        head_dim=language.head_dim,
        rms_norm_eps=language.rms_norm_eps,
        rope_parameters=rope,
        tie_word_embeddings=language.tie_embeddings,
        max_position_embeddings=language.max_position_embeddings,
        **own,
    )


@pytest.fixture(scope="session")
def hf_twin() -> Callable[[LlavaModel], LlavaForConditionalGeneration]:
    """Build transformers' model with the weights of one of ours."""

    def build(model: LlavaModel) -> LlavaForConditionalGeneration:
        vision, language = model.config.vision, model.config.language
        config = TheirConfig(
            vision_config=their_vision(vision),
            text_config=their_language(language),
            image_token_index=IMAGE_ID,
            vision_feature_layer=vision.select_layer,
            vision_feature_select_strategy=(
                "default" if vision.kind == "clip" and vision.select_feature == "patch" else "full"
            ),
            tie_word_embeddings=language.tie_embeddings,
        )
        twin = LlavaForConditionalGeneration(config)
        weights = {translate(name): tensor for name, tensor in model.state_dict().items()}
        if language.tie_embeddings:
            weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
        twin.load_state_dict(weights, strict=True)
        return twin.train()

    return build


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., ModelInput]:
    """Lay samples end to end; a sample is (text tokens, pictures), its pictures after its first token."""

    def make(samples: list[tuple[int, int]], config: LlavaConfig, seed: int = 0) -> ModelInput:
        generator = torch.Generator().manual_seed(seed)
        ids, positions, slots, bounds = [], [], [], [0]
        for num_text, num_images in samples:
            num_slots = num_images * config.vision.num_patches
            sample = torch.randint(3, IMAGE_ID, (num_text + num_slots,), generator=generator)
            sample[1 : 1 + num_slots] = IMAGE_ID
            slots.append(torch.arange(1, 1 + num_slots) + bounds[-1])
            ids.append(sample)
            positions.append(torch.arange(len(sample)))
            bounds.append(bounds[-1] + len(sample))
        num_images = sum(images for _, images in samples)
        size = config.vision.image_size
        return ModelInput(
            input_ids=torch.cat(ids),
            positions=torch.cat(positions),
            segments=Segments(torch.tensor(bounds, dtype=torch.int32), max(map(len, ids))),
            image_slots=torch.cat(slots),
            pixels=torch.randint(0, 256, (num_images, 3, size, size), generator=generator, dtype=torch.uint8),
        )

    return make


@pytest.fixture(scope="session")
def split_batch() -> Callable[[ModelInput, LlavaConfig], list[ModelInput]]:
    """Take a pack apart: one input for each of its samples."""

    def split(batch: ModelInput, config: LlavaConfig) -> list[ModelInput]:
        parts, bounds, first_image = [], batch.segments.cu_seqlens.tolist(), 0
        for start, end in zip(bounds, bounds[1:], strict=False):
            slots = batch.image_slots[(batch.image_slots >= start) & (batch.image_slots < end)] - start
            num_images = len(slots) // config.vision.num_patches
            parts.append(
                ModelInput(
                    input_ids=batch.input_ids[start:end],
                    positions=batch.positions[start:end],
                    segments=Segments(torch.tensor([0, end - start], dtype=torch.int32), end - start),
                    image_slots=slots,
                    pixels=batch.pixels[first_image : first_image + num_images],
                )
            )
            first_image += num_images
        return parts

    return split
