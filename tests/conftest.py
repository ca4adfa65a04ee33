"""What tests of several parts share."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

from tests.browser import Browser, chromium, find_chromium

#: A report that cannot be made never fails a compile, but it fails a test (`dataprep/report/`).
os.environ["LLAVA_PREP_STRICT_REPORT"] = "1"

#: Words for the tiny tokenizer to learn, the prompt's own among them.
CORPUS = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: What colour is the tallest bar? ASSISTANT: red",
    "USER: How many bars are there in this chart?\nAnswer with one word. ASSISTANT: seven",
    "a bar chart of the sales in each year, from the lowest in 2012 to the highest in 2019",
)


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory) -> Path:
    """A folder with a small tokenizer built like Llama-2's: byte fallback, `▁` for blanks, <unk> <s> </s> = 0 1 2."""
    folder = tmp_path_factory.mktemp("tokenizer")
    specials = [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    # The byte pieces follow the control tokens, as in Llama-2; added as specials while training, plain pieces after.
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*specials, *alphabet], show_progress=False)
    # Word by word, so that no piece crosses a blank; the normalizer gives each its `▁`.
    tokenizer.train_from_iterator([word for line in CORPUS for word in line.split(" ")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["id"] < len(specials)]
    (folder / "tokenizer.json").write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(saved["added_tokens"])), encoding="utf-8")
    return folder


def tokenizer_config(added_tokens: list[dict]) -> dict:
    decoder = {str(t["id"]): {key: value for key, value in t.items() if key != "id"} for t in added_tokens}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 2048,
        "pad_token": "<unk>",
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real samples and of the original programs' outputs; it lies beside a checkout, where it is had."""
    folder = Path(__file__).parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout: real samples and golden outputs are not at hand")
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A real browser, to look at pages."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine: `apt-get install chromium fonts-dejavu-core` brings one")
    with chromium(program, tmp_path_factory.mktemp("chromium")) as found:
        yield found
