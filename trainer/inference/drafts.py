"""An answer while it is written: tokens to text, never half a character, and where it ends."""

import codecs
from collections.abc import Iterable
from pathlib import Path

from dataprep.encoding import TextEncoder, TokenizerError
from trainer.errors import TrainError
from trainer.inference.prompts import Ending


def open_encoder(tokenizer: Path, model: Path) -> TextEncoder:
    """Return the tokenizer of a folder; raises `TrainError`, which names `model` as its owner, when it is unfit."""
    try:
        return TextEncoder(tokenizer)
    except (TokenizerError, OSError, ValueError) as error:
        said = str(error).replace(str(tokenizer), f"{model}'s tokenizer")
        raise TrainError(f"prompts cannot be made with this tokenizer: {said}") from None


def text_of(encoder: TextEncoder, ids: Iterable[int]) -> str:
    """Return what tokens write, without control tokens and without blanks around it."""
    return b"".join(encoder.bytes_of(int(token)) for token in ids).decode("utf-8", "replace").strip()


class Draft:
    """The tokens of one answer so far.

    Attributes:
        ids: without the token that ended it.
        ended: whether the model ended it.
    """

    def __init__(self, encoder: TextEncoder, ending: Ending, max_tokens: int) -> None:
        self.ids: list[int] = []
        self.ended = False
        self._encoder, self._ending, self._max_tokens = encoder, ending, max_tokens
        # Characters may be spread over several tokens; what is no UTF-8 at all becomes U+FFFD.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""

    def take(self, token: int) -> bool:
        """Add a token; return whether the answer goes on."""
        if token in self._ending.ids:
            self.ended = True
            return False
        written = self._decoder.decode(self._encoder.bytes_of(token))
        self._text += written
        if self._ending.text and self._ending.text in self._text:
            self.ended = True
            if written != self._ending.text:
                self.ids.append(token)
            return False
        self.ids.append(token)
        return len(self.ids) < self._max_tokens

    def so_far(self) -> str:
        """Return the text that no further token can change: without blanks in front, and none at the end yet."""
        return self._before_end(self._text).strip()

    def text(self) -> str:
        """Return the whole text, without blanks around it; half a character at the end becomes U+FFFD."""
        return self._before_end(self._text + self._decoder_left()).strip()

    def _before_end(self, text: str) -> str:
        return text.partition(self._ending.text)[0] if self._ending.text else text

    def _decoder_left(self) -> str:
        left, _ = self._decoder.getstate()
        return bytes(left).decode("utf-8", "replace")
