"""The dataset card: `README.md` of a folder of shards, as the Hugging Face hub reads it."""

from __future__ import annotations

import json
from typing import Any

from dataprep.report.markup import cut, visible
from dataprep.report.wording import big, number, percent, size

#: The hub's names for how many rows a dataset has: (rows below, name).
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (float("inf"), "n>1B"),
)

#: Input files and reasons that are listed, and characters of the settings.
MAX_LISTED, MAX_SETTINGS = 50, 20_000


def card(manifest: dict[str, Any]) -> str:
    """Return the card of the folder that `manifest` describes. The same manifest gives the same text."""
    layout, counts, shards = manifest["layout"], manifest["accounting"], manifest["shards"]
    num_bytes = sum(shard.get("bytes", 0) for shard in shards)
    shape = (
        f"{big(counts['rows'])} rows of {big(layout['max_seq_length'])} slots in {number(len(shards), 'HDF5 shard')}"
    )
    place = f"{big(layout['num_patches'])} slots from {big(layout['image_start_idx'])}"
    fit = f"{code(layout['image_fit'])} to {layout['image_size']} pixels"
    tokenizer = f"{code(str(layout['tokenizer_fingerprint'])[:12])} (a copy is in `tokenizer/`)"
    return f"""---
{_front_matter(layout, counts)}---

# {_title(layout)}

{shape} ({size(num_bytes)}),
compiled by llava-prep: tokens, labels, loss masks and padding masks are laid out, pictures are
{_pictures(manifest)}. One row is one sample.

| | |
| --- | --- |
| template | {code(layout["template"])} |
| picture | {place}; {fit} |
| vocabulary | {big(layout["vocab_size"])} ids, tokenizer {tokenizer} |

## Counts

{_counts(counts)}{_held_out(manifest)}
Lengths, packing, sources, refusals and a few rows are shown in `report.html`; `refused.jsonl` names every refused
record.

## Loading

```python
from dataprep.shards import ShardReader

with ShardReader("PATH") as rows:
    print(len(rows), rows.layout)
    row = rows[0]  # text_input_ids, labels, loss_mask, key_padding_mask, img_path, source
```

    llava-prep verify PATH           # sha256, rows and accounting against manifest.json
    llava-prep inspect PATH --row 0  # a row as text

The Cerebras Model Zoo's loader reads the shards too; `data_params.json` is its summary.

## How it was made

{_made(manifest)}
## Licence

Not stated here: it is that of the sources.
"""


def code(text: object, limit: int = 120) -> str:
    """Return a string as Markdown code that stays one line and one cell, whatever it holds."""
    shown = visible(cut(str(text), limit)).replace("|", "⟨U+007C⟩").replace("`", "⟨U+0060⟩").strip(" ")
    return f"`{shown or ' '}`"


def _title(layout: dict[str, Any]) -> str:
    return "Captions for LLaVA's phase 1" if layout["phase"] == 1 else "Conversations for LLaVA's phase 2"


def _front_matter(layout: dict[str, Any], counts: dict[str, Any]) -> str:
    task = "image-to-text" if layout["phase"] == 1 else "image-text-to-text"
    name = next(name for below, name in SIZES if counts["rows"] < below)
    lines = [
        # JSON strings are YAML strings.
        f"pretty_name: {json.dumps(f'{_title(layout)}, tokenised')}",
        f"task_categories: [{task}]",
        f"size_categories: [{json.dumps(name)}]",
        "tags: [llava, vision-language, tokenized, hdf5, llava-prep]",
        "# The hub's table viewer cannot show rows of tokens.",
        "viewer: false",
    ]
    return "".join(f"{line}\n" for line in lines)


def _pictures(manifest: dict[str, Any]) -> str:
    config = manifest.get("config")
    embedded = isinstance(config, dict) and config.get("images") == "embed"
    return "inside, at the tower's size" if embedded else "named by their path below an image root and not inside"


def _counts(counts: dict[str, Any]) -> str:
    records = counts["records"]
    lines = [("records read", records, ""), ("written", counts["written"], percent(counts["written"], records))]
    more = (("text_only", "of them text-only"), ("truncated", "of them truncated"), ("split", "of them split"))
    lines += [(text, counts[key], percent(counts[key], counts["written"])) for key, text in more if counts.get(key)]
    if counts.get("deduplicated"):
        lines.append(("dropped as duplicates", counts["deduplicated"], percent(counts["deduplicated"], records)))
    refused = sorted(counts.get("refused", {}).items(), key=lambda item: (-item[1], item[0]))
    lines += [(f"refused: {code(key)}", count, percent(count, records)) for key, count in refused[:MAX_LISTED]]
    lines += [
        ("rows", counts["rows"], ""),
        ("attended tokens", counts["attended_tokens"], ""),
        (
            "trained tokens",
            counts["loss_tokens"],
            f"{percent(counts['loss_tokens'], counts['attended_tokens'])} of these",
        ),
    ]
    table = "".join(f"| {text} | {big(count)} | {share} |\n" for text, count, share in lines)
    return "| | number | share |\n| --- | ---: | ---: |\n" + table


def _held_out(manifest: dict[str, Any]) -> str:
    held_out = manifest.get("holdout")
    if not isinstance(held_out, dict) or type(held_out.get("written")) is not int:
        return ""
    return f"\nBeside these, {number(held_out['written'], 'record')} were held out: they are in `holdout/`.\n"


def _made(manifest: dict[str, Any]) -> str:
    inputs = manifest.get("inputs", [])
    lines = [f"* {code(entry['file'])}, sha256 {code(entry['sha256'])}" for entry in inputs[:MAX_LISTED]]
    if len(inputs) > MAX_LISTED:
        lines.append(f"* {big(len(inputs) - MAX_LISTED)} more files, named in `manifest.json`")
    settings = json.dumps(manifest.get("config", {}), ensure_ascii=True, indent=1)
    if len(settings) > MAX_SETTINGS:
        settings = json.dumps({"too long to be shown": "see manifest.json"})
    return "\n".join(
        ["From", "", *lines, "", "with these settings (`llava-prep to-h5`):", "", "```json", settings, "```", ""]
    )
