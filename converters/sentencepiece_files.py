"""`tokenizer.json` out of `tokenizer.model`: Llama's tokenizer as LLaVA's and Vicuna's repositories hold it.

The file of the `tokenizers` library needs merges, which SentencePiece's file does not hold: it joins whichever
neighbours make the likeliest piece. So every pair that makes a piece is a merge, likeliest piece first; of equally
likely ones the first by the ids of left and right. For Llama-2's `tokenizer.model` this gives vocabulary and merges of
the published `tokenizer.json`, to the last pair.
"""

import json
from collections.abc import Mapping
from typing import Any

from converters.errors import ConversionError

_BLANK = "▁"


def tokenizer_files(model: bytes, added: Mapping[str, int], place: str) -> dict[str, bytes]:
    """Return `tokenizer.json` and a least `tokenizer_config.json` for the content of a `tokenizer.model`.

    `added` are further tokens by their text, as `added_tokens.json` holds them. Raises `ConversionError` where `model`
    is no BPE with byte pieces.
    """
    from sentencepiece import SentencePieceProcessor

    if not model:
        raise ConversionError(f"{place} is no SentencePiece file: it is empty")
    try:
        pieces = SentencePieceProcessor(model_proto=model)
    except Exception as error:  # the library's own parser, which raises what its C++ says
        raise ConversionError(f"{place} is no SentencePiece file: {' '.join(str(error).split())[:200]}") from error
    vocabulary = {pieces.id_to_piece(index): index for index in range(pieces.get_piece_size())}
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    if not has_bytes or len(vocabulary) != pieces.get_piece_size() or min(pieces.bos_id(), pieces.eos_id()) < 0:
        raise ConversionError(f"{place}: expected a piece for each byte, and tokens for begin and end, as Llama's has")
    special = {name: pieces.id_to_piece(getattr(pieces, f"{name}_id")()) for name in ("bos", "eos", "unk")}
    config = {f"{name}_token": text for name, text in special.items()} | {"tokenizer_class": "LlamaTokenizer"}
    content = _content(pieces, vocabulary, special, added)
    return {"tokenizer.json": _json(content), "tokenizer_config.json": _json(config)}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _content(
    pieces: Any, vocabulary: dict[str, int], special: Mapping[str, str], added: Mapping[str, int]
) -> dict[str, Any]:
    controls = {text: i for text, i in vocabulary.items() if pieces.is_control(i) or pieces.is_unknown(i)}
    no_text = {*controls, *(text for text, index in vocabulary.items() if pieces.is_byte(index))}
    scores = {text: pieces.get_score(index) for text, index in vocabulary.items() if text not in no_text}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_token(*token) for token in {**controls, **added}.items()],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _BLANK}, _replace()]},
        "pre_tokenizer": None,
        "post_processor": _begin(special["bos"], pieces.bos_id()),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": special["unk"],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in merges(vocabulary, scores)],
        },
    }


def merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, in the order in which they are to be joined.

    `scores` are the logarithms of the pieces' likelihoods, of text pieces alone.
    """
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in scores
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    return sorted(pairs, key=lambda pair: (-scores[pair[0] + pair[1]], vocabulary[pair[0]], vocabulary[pair[1]]))


def _token(text: str, index: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": text, **flags}


def _replace() -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}


def _begin(bos: str, index: int) -> dict[str, Any]:
    """Return the rule that puts the first token in front of a text."""

    def sequence(name: str, type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": bos, "type_id": type_id}}, {"Sequence": {"id": name, "type_id": type_id}}]

    return {
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": sequence("A", 0) + sequence("B", 1),
        "special_tokens": {bos: {"id": bos, "ids": [index], "tokens": [bos]}},
    }
