"""Make something to start from: `python examples/start.py OUT TEXT.jsonl ...`.

    OUT/vision/      a CLIP vision tower, as transformers saves it, with its processor
    OUT/language/    a Llama decoder, as transformers saves it, with its tokenizer

Both are tiny and random; a real run starts from CLIP's and Vicuna's folders instead. The tokenizer is a byte-pair
encoding in Llama's manner, learned from the texts of the given jsonl files.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

#: The words that the vicuna_v1 template puts around every conversation: text to learn from like any other.
TEMPLATE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ASSISTANT:"
)
CONTROL = ("<unk>", "<s>", "</s>")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
IMAGE_SIZE = 84
PATCH_SIZE = 14
MAX_LENGTH = 512


def texts(files: Sequence[Path]) -> Iterator[str]:
    """Yield the template's words and every turn of every record."""
    yield TEMPLATE
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                yield from (turn["value"].replace("<image>", "") for turn in json.loads(line)["conversations"])


def learn_pieces(corpus: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Learn pieces and merges word by word, so that no piece has a blank (`▁`) after another character."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Split("\n", "isolated"),  # a line feed is a byte piece, as Llama's is, and in no other
            pre_tokenizers.Punctuation("isolated"),  # `red,` is two pieces, so that `red` is one wherever it stands
        ]
    )
    learner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, show_progress=False))
    model = json.loads(learner.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [tuple(merge) for merge in model["merges"]]


def make_tokenizer(corpus: Sequence[str]) -> Tokenizer:
    """Build a tokenizer of Llama's form: control pieces 0 to 2, bytes from 3, then what was learned."""
    pieces, merges = learn_pieces(corpus)
    vocabulary = [*CONTROL, *BYTES, *(piece for piece in pieces if piece != "\n")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(vocabulary)},
            merges=merges,
            unk_token=CONTROL[0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in CONTROL])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the two files that a Llama folder has beside it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": CONTROL[0], "bos_token": CONTROL[1], "eos_token": CONTROL[2]}
    config = {
        **special,
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_LENGTH,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def vision_config() -> CLIPVisionConfig:
    """Describe the tower; LLaVA reads the features before its last layer."""
    return CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )


def save_image_settings(folder: Path) -> None:
    """Write the `preprocessor_config.json` that CLIP's folders have; mean and deviation are OpenAI CLIP's."""
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


def language_config(vocab_size: int) -> LlamaConfig:
    """Describe the decoder: grouped-query attention, as larger Llamas have."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.05,
    )


def main() -> None:
    """Read the command line and write the two folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    tokenizer = make_tokenizer(list(texts(options.texts)))
    torch.manual_seed(options.seed)
    tower = CLIPVisionModel(vision_config())
    decoder = LlamaForCausalLM(language_config(tokenizer.get_vocab_size()))
    disable_progress_bar()
    tower.save_pretrained(options.out / "vision")
    save_image_settings(options.out / "vision")
    decoder.save_pretrained(options.out / "language")
    save_tokenizer(tokenizer, options.out / "language")
    for name, model in (("tower", tower), ("decoder", decoder)):
        print(f"{name}: {sum(weight.numel() for weight in model.parameters()):,} parameters")
    print(f"tokenizer: {tokenizer.get_vocab_size()} pieces")


if __name__ == "__main__":
    main()
