"""Pictures into shards: decoded once, brought to the tower's size, coded, and handed to the writer.

Bringing a picture to size is its full decode too, so that the verdict costs nothing more.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from dataprep.config import ImageConfig
from dataprep.images import load_image, pad_colour
from dataprep.shards.embedded import CodedPicture, code_picture
from dataprep.shards.writer import ShardWriter
from dataprep.verdicts import ImageVerdicts

#: Coded pictures kept for the rows and shards that follow: those of a block of records, and some more.
KEPT_BYTES = 64 << 20


class EmbeddedPictures(ImageVerdicts):
    """Verdicts on pictures that go into the shards. Every picture is decoded, whatever `check_images` says.

    Args:
        root: the image root.
        image: size, padding colour and fit.
        pixels: `exact` or `fast` (`images.load_image`).
        store: as in `ImageVerdicts`.
    """

    def __init__(self, root: Path, image: ImageConfig, pixels: str, store: Path | None = None) -> None:
        super().__init__(root, "decode", store)
        self._size, self._fit, self._pixels = image.size, image.fit, pixels
        self._colour = pad_colour(image.mean)
        self._kept: OrderedDict[bytes, CodedPicture] = OrderedDict()
        self._num_bytes = 0
        if pixels == "fast":
            _use_one_thread()

    def embed(self, key: str | None, writer: ShardWriter) -> None:
        """Give the writer the picture of an image key that was found good, unless its shard has it.

        Raises:
            ImageFault: the file is no longer what it was.
        """
        if key is None or writer.has_picture(key):
            return
        content = self._verdict(key).content
        self.require(key)
        assert content is not None
        writer.add_picture(key, self._kept.get(content) or self._code(self._prefix + key, content))

    def _examine(self, path: str, content: bytes) -> None:
        self._code(path, content)

    def _code(self, path: str, content: bytes) -> CodedPicture:
        picture = code_picture(load_image(Path(path), self._size, self._fit, self._colour, self._pixels))
        self._kept[content] = picture
        self._num_bytes += len(picture.code)
        while self._num_bytes > KEPT_BYTES:
            self._num_bytes -= len(self._kept.popitem(last=False)[1].code)
        return picture


def _use_one_thread() -> None:
    import torch

    # One process a core: torch's own threads would only compete. The pixels do not depend on their number.
    torch.set_num_threads(1)
