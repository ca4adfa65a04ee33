"""The files of an export beside weights, config and tokenizer: processor, chat template, generation, model card."""

import json
from collections.abc import Mapping
from typing import Any

from converters.errors import UnsupportedError
from converters.formats.hf_config import strategy
from trainer.model import LlavaConfig

#: llava/conversation.py of the original LLaVA, `conv_vicuna_v1`.
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

#: One text and its pictures; a message's content is a string or a list of parts.
_PARTS = """\
{%- for message in messages -%}
  {%- set found = namespace(images='', text='') -%}
  {%- if message['content'] is string -%}
    {%- set found.text = message['content'] -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}
        {%- set found.images = found.images + IMAGE_TEXT -%}
      {%- elif part['type'] == 'text' -%}
        {%- set found.text = found.text + part['text'] -%}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
"""

_VICUNA = """\
{%- if messages[0]['role'] != 'system' -%}
  {{- SYSTEM + ' ' -}}
{%- endif -%}
PARTS  {%- if message['role'] == 'system' -%}
    {{- found.text + ' ' -}}
  {%- elif message['role'] == 'user' -%}
    {{- 'USER: ' + found.images + (found.text | trim if found.images else found.text) + ' ' -}}
  {%- else -%}
    {{- 'ASSISTANT: ' + found.text + EOS -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- 'ASSISTANT:' -}}
{%- endif -%}
"""

_PLAIN = """\
PARTS  {%- if message['role'] == 'user' -%}
    {{- found.images -}}
  {%- endif -%}
{%- endfor -%}
"""


#: The Jinja text of each template of the shards, and what stands for a picture in it.
_TEMPLATES = {
    "plain": (_PLAIN, "<image>"),
    "plain_eos": (_PLAIN, "<image>"),
    "vicuna_v1": (_VICUNA, "<image>\n"),
}
TEMPLATE_NAMES = tuple(_TEMPLATES)

#: The class of `preprocessor_config.json` for each way in which shards fit a picture into a square.
_PROCESSORS = {"pad": "LlavaImageProcessor", "crop": "CLIPImageProcessor"}


def check_wording(template: Any, image_fit: Any, system: Any = None) -> None:
    """Refuse what `data.json` says of prompts and pictures if no export can say it: `UnsupportedError`.

    `system` is the system prompt, None in shards from before it could be chosen.
    """
    if template == "vicuna_v1" and system not in (None, VICUNA_SYSTEM):
        raise UnsupportedError(
            f"the model's data.json: system_prompt is {system!r}; an export says LLaVA's own alone, {VICUNA_SYSTEM!r}"
        )
    for key, found, known in (("template", template, _TEMPLATES), ("image_fit", image_fit, _PROCESSORS)):
        if not isinstance(found, str) or found not in known:
            raise UnsupportedError(f"the model's data.json: {key} is {found!r}; supported is {' or '.join(known)}")


def chat_template(template: str, eos_token: str) -> str:
    """Return the Jinja template that writes prompts as the model was trained on.

    `template` is the name in the shards: `vicuna_v1` as LLaVA-1.5 with its system prompt, or one of the captions'
    (`plain`, `plain_eos`), whose prompt is the picture alone.
    """
    body, image = _TEMPLATES[template]
    words = {"PARTS": _PARTS, "IMAGE_TEXT": _quoted(image), "SYSTEM": _quoted(VICUNA_SYSTEM), "EOS": _quoted(eos_token)}
    for name, text in words.items():
        body = body.replace(name, text)
    return body


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def image_processor(config: LlavaConfig, image_fit: str) -> dict[str, Any]:
    """Return `preprocessor_config.json`: how a picture becomes pixels, as the shards' pictures did.

    `crop` is CLIP's own processor; `pad` is LLaVA's, which pads to a square before it scales.
    """
    size = config.vision.image_size
    settings = {
        "image_processor_type": _PROCESSORS[image_fit],
        "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    return settings | ({"do_pad": True} if image_fit == "pad" else {})


def processor(config: LlavaConfig) -> dict[str, Any]:
    """Return `processor_config.json`: how many image tokens a picture takes.

    The count is patches + additional - 1 for `default`: the class token is counted in, then dropped. SigLIP has none.
    """
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": int(config.vision.has_class_token),
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": strategy(config.vision),
    }


def generation(ids: Mapping[str, int]) -> dict[str, Any]:
    """Return `generation_config.json`."""
    return {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["pad"], "do_sample": False}


def model_card(
    config: LlavaConfig, data: Mapping[str, Any] | None, num_trained_rows: int, image_fit: str, legacy: bool
) -> str:
    """Return `README.md`. `legacy` is the tokenizer's setting in training; an export always has it true."""
    vision, language = config.vision, config.language
    facts = {
        "tower": f"{vision.num_layers} layers, {vision.hidden_size} wide, {vision.image_size} pixels in patches of "
        f"{vision.patch_size}; hidden state {vision.select_layer} gives {vision.num_patches} vectors a picture",
        "projector": config.projector.kind,
        "decoder": f"{language.num_layers} layers, {language.hidden_size} wide, {language.num_heads} heads "
        f"({language.num_kv_heads} of keys and values)",
        "embeddings": f"{num_trained_rows} trained rows; those behind (`<image>`, `<pad>`, filling) are their mean",
        "pictures": f"{image_fit} to a square",
        "prompts of one turn": "the ids of training",
        "later turns": "the ids of training"
        if legacy
        else "open with `▁USER`; in training (`legacy: false`) with `USER`",
    }
    return _CARD.format(facts=_table(facts), data=trained_on(data))


def trained_on(data: Mapping[str, Any] | None) -> str:
    """Return what `data.json` says as Markdown: the shards' fingerprint, and how the model was trained."""
    if not data:
        return "Not known: starting weights, or converted from another program's."
    training = data.get("training")
    shards = _table({key: value for key, value in data.items() if key != "training"})
    if not isinstance(training, Mapping):
        return shards
    settings = training.get("settings")
    flat = {key: value for key, value in training.items() if key != "settings"}
    return f"{shards}\n\n## How\n\n{_table(flat | dict(settings if isinstance(settings, Mapping) else {}))}"


def _table(facts: Mapping[str, Any]) -> str:
    rows = [f"| {key} | {value} |" for key, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


_CARD = """\
---
library_name: transformers
pipeline_tag: image-text-to-text
---

# A LLaVA model

Exported by llava-prep.

{facts}

```python
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
messages = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "What is shown?"}}]}}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=Image.open("picture.png"), text=prompt, return_tensors="pt")
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))
```

## What it was trained on

The shards' fingerprint: a model and shards, or a model and prompts, fit together only where these agree.

{data}
"""
