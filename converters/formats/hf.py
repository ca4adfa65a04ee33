"""transformers' `LlavaForConditionalGeneration`: the folder that `save_pretrained` writes.

```
FOLDER/config.json                 LlavaConfig
FOLDER/model.safetensors           (or shards with an index)
FOLDER/tokenizer.json, tokenizer_config.json
FOLDER/preprocessor_config.json, processor_config.json
FOLDER/chat_template.jinja, chat_template.json
FOLDER/generation_config.json, README.md
```

Tensor names: transformers changed them twice. What is written are the names of the Hugging Face hub's LLaVA folders
(`vision_tower.vision_model.*`, `language_model.model.*`), which transformers 4 and 5 both load; what is read are all.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from converters.errors import ConversionError
from converters.files import LazyTensor, write_tensors
from converters.formats import hf_config, hf_files, hf_tokenizer
from converters.formats.transformers_names import decoder_rules, tower_rules
from converters.hub import Hub, check_shapes, read_tokenizer
from converters.pickles import read_weights
from converters.rules import Rule, to_ours, to_theirs
from trainer.model import LlavaConfig, parameter_shapes

_TOWER = "vision_tower.vision_model."
_LANGUAGE = "language_model."

#: How names begin in other versions -> how the hub's begin; the first that fits is taken.
#: `model.`: in memory since 4.52; no `vision_model.`: in memory and saved by 5.
ALIASES = (
    ("model.language_model.", _LANGUAGE + "model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.vision_tower.vision_model.", _TOWER),
    ("model.vision_tower.", _TOWER),
    (_TOWER, _TOWER),
    ("vision_tower.", _TOWER),
    ("lm_head.", _LANGUAGE + "lm_head."),
)

#: The embedding table and the output layer: the tensors that have a row for each token.
_ROWS = ("language.embed.weight", "language.lm_head.weight")

#: Rows of those that are added up at a time.
ROWS_AT_A_TIME = 256


def rules(config: LlavaConfig) -> list[Rule]:
    """Return the table: every tensor of the format and of ours."""
    return [*tower_rules(_TOWER, config.vision), *_PROJECTOR, *decoder_rules(_LANGUAGE, config.language)]


_PROJECTOR = [
    Rule("multi_modal_projector.linear_1.weight", "projector.up.weight"),
    Rule("multi_modal_projector.linear_1.bias", "projector.up.bias"),
    Rule("multi_modal_projector.linear_2.weight", "projector.down.weight"),
    Rule("multi_modal_projector.linear_2.bias", "projector.down.bias"),
]


def suits(folder: Path) -> bool:
    """Return whether a folder looks like this format."""
    try:
        config = hf_config.read_json(folder / "config.json")
        # The original LLaVA's first folders have the same type.
        return config.get("model_type") == "llava" and "mm_vision_tower" not in config
    except ConversionError:
        return False


def read(folder: Path) -> Hub:
    """Read an export of ours or of any other program; the rows and tokens that an export adds are dropped."""
    theirs = hf_config.load_their_config(folder, ("llava",))
    record = read_record(folder) or Record(None, None, None)
    files = read_tokenizer(folder)
    tensors = [tensor.renamed(_canonical(tensor.name)) for tensor in read_weights(folder)]
    kind = "mlp2x_gelu"
    if theirs.projector_hidden_act == "linear":
        kind, tensors = "linear", without_identity(tensors)
    num_rows = record.num_rows or _num_rows(files, theirs.text_config.vocab_size)
    tokenizer = hf_tokenizer.restore(files, record.tokenizer)
    hf_tokenizer.check_rows(tokenizer, num_rows)
    config = hf_config.to_our_config(theirs, num_rows, kind, folder)
    expected = parameter_shapes(config)
    renamed = to_ours(tensors, rules(config), expected)
    kept = _with_rows(renamed, _first_rows, num_rows)
    check_shapes(config, kept)
    return Hub(config, kept, tokenizer, record.data)


@dataclass(frozen=True, slots=True)
class Record:
    """What an export of ours says of itself in `config.json`, under `hf_config.RECORD`."""

    num_rows: int | None
    """Trained rows of the embedding table."""
    tokenizer: Mapping[str, Any] | None
    """How `hf_tokenizer.restore` takes the two tokens out again."""
    data: Mapping[str, Any] | None


def read_record(folder: Path) -> Record | None:
    """Return the record of an export of ours; None for other programs' folders.

    Raises `ConversionError` when it is damaged.
    """
    place = f"{folder}/config.json: {hf_config.RECORD}"
    found = hf_config.table_in(hf_config.read_json(folder / "config.json"), hf_config.RECORD, f"{folder}/config.json")
    if found is None:
        return None
    num_rows = found.get("num_rows")
    if num_rows is not None and (type(num_rows) is not int or num_rows < 1):
        raise ConversionError(f"{place}: num_rows: expected a number of rows, found {num_rows!r}")
    return Record(num_rows, hf_config.table_in(found, "tokenizer", place), hf_config.table_in(found, "data", place))


def _canonical(name: str) -> str:
    for begins, hub in ALIASES:
        if name.startswith(begins):
            return hub + name.removeprefix(begins)
    return name


def _num_rows(files: dict[str, bytes], vocab_size: int) -> int:
    added = hf_tokenizer.removable(files)
    return min(added.values()) if added else vocab_size


def _with_rows(tensors: Iterable[LazyTensor], change: Callable[[int, Tensor], Tensor], count: int) -> list[LazyTensor]:
    """Give the tensors that have a row for each token `count` rows."""
    return [tensor.mapped(partial(change, count)) if tensor.name in _ROWS else tensor for tensor in tensors]


def _first_rows(count: int, table: Tensor) -> Tensor:
    return table[:count]


def without_identity(tensors: list[LazyTensor]) -> list[LazyTensor]:
    """Drop the second layer of a projector without activation; `write` says why it is there."""
    second = {tensor.name: tensor for tensor in tensors if tensor.name.startswith("multi_modal_projector.linear_2.")}
    for name, tensor in second.items():
        values = tensor.load()
        neutral = torch.eye(len(values)) if values.ndim == 2 else torch.zeros(len(values))
        if not torch.equal(values.float(), neutral):
            raise ConversionError(f"{name}: projector_hidden_act is linear, so the second layer must be the identity")
    return [tensor for tensor in tensors if tensor.name not in second]


def write(hub: Hub, folder: Path, max_shard_bytes: int) -> None:
    """Write a complete export into an existing, empty folder.

    The embedding table grows by `<image>` and `<pad>` to a multiple of 64, as in Hugging Face's own conversion of
    LLaVA; new rows are the mean of the old ones. A `linear` projector gets a second layer that is the identity and no
    activation between, since transformers' LLaVA always has two: the same numbers.
    """
    data = dict(hub.data or {})
    template, image_fit = data.get("template", "vicuna_v1"), data.get("image_fit", "pad")
    hf_files.check_wording(template, image_fit, data.get("system_prompt"))
    num_rows = hub.config.language.vocab_size
    hf_tokenizer.check_rows(hub.tokenizer, num_rows)
    extended = hf_tokenizer.extend(hub.tokenizer, hf_files.chat_template(template, _eos(hub)))
    num_exported = -(-max(num_rows, extended.num_tokens) // 64) * 64
    # One dtype stands in the config, and transformers loads everything in it: the one that loses nothing.
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in hub.tensors})
    tensors = to_theirs(_with_rows(hub.tensors, _more_rows, num_exported), rules(hub.config))
    if hub.config.projector.kind == "linear":
        tensors += _identity(hub.config.language.hidden_size, dtype)
    write_tensors(folder, tensors, max_shard_bytes)
    config = hf_config.to_their_config(hub.config, extended.ids, num_exported, str(dtype).removeprefix("torch."))
    config[hf_config.RECORD] = {"num_rows": num_rows, "tokenizer": extended.undo, "data": hub.data}
    _write_json(folder / "config.json", config)
    for name, content in extended.files.items():
        (folder / name).write_bytes(content)
    _write_settings(hub, folder, extended.ids, template, image_fit)


def _write_settings(hub: Hub, folder: Path, ids: dict[str, int], template: str, image_fit: str) -> None:
    _write_json(folder / "preprocessor_config.json", hf_files.image_processor(hub.config, image_fit))
    _write_json(folder / "processor_config.json", hf_files.processor(hub.config))
    _write_json(folder / "generation_config.json", hf_files.generation(ids))
    jinja = hf_files.chat_template(template, _eos(hub))
    (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    _write_json(folder / "chat_template.json", {"chat_template": jinja})
    legacy = hf_tokenizer.is_legacy(hub.tokenizer)
    card = hf_files.model_card(hub.config, hub.data, hub.config.language.vocab_size, image_fit, legacy)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _eos(hub: Hub) -> str:
    return hf_tokenizer.special_token(hub.tokenizer, "eos_token") or "</s>"


def _more_rows(count: int, table: Tensor) -> Tensor:
    if table.is_meta or count == len(table):
        return table.new_empty((count, *table.shape[1:])) if table.is_meta else table
    # A few rows at a time: the whole table in a wider dtype would be the conversion's largest piece of memory.
    grown, total = table.new_empty((count, table.shape[1])), torch.zeros(table.shape[1], dtype=torch.float64)
    for rows, target in zip(table.split(ROWS_AT_A_TIME), grown.split(ROWS_AT_A_TIME), strict=False):
        target[: len(rows)] = rows
        total += rows.double().sum(dim=0)
    grown[len(table) :] = (total / len(table)).to(table.dtype)
    return grown


def _identity(width: int, dtype: torch.dtype) -> list[LazyTensor]:
    name = "multi_modal_projector.linear_2."
    return [
        LazyTensor(name + "weight", (width, width), dtype, lambda: torch.eye(width, dtype=dtype)),
        LazyTensor(name + "bias", (width,), dtype, lambda: torch.zeros(width, dtype=dtype)),
    ]
