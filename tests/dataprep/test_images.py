"""Pictures: the pixels that the originals give, and a named refusal for everything that is none."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep import images
from dataprep.images import ImageFault, check_image, dummy_image, load_image, pad_colour, resolve_key

MEAN = (0.48145466, 0.4578275, 0.40821073)
COLOUR = (122, 116, 104)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels if len(mode) > 1 else pixels[:, :, 0], mode)


@pytest.mark.parametrize("size", [(50, 30), (30, 50), (41, 41), (333, 100)])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_pixels_equal_transformers(tmp_path, size, fit):
    from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

    picture = noise(*size)
    picture.save(tmp_path / "a.png")
    kind = {"pad": LlavaImageProcessorPil, "crop": CLIPImageProcessorPil}[fit]
    settings = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    processor = kind(**settings, do_normalize=False, do_rescale=False, **({"do_pad": True} if fit == "pad" else {}))
    theirs = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    ours = load_image(tmp_path / "a.png", 56, fit, COLOUR)
    assert ours.dtype == np.uint8 and ours.shape == (56, 56, 3)
    assert (ours == theirs).all()


def test_the_padding_colour_is_llavas():
    assert pad_colour(MEAN) == COLOUR
    assert (dummy_image(28, COLOUR) == COLOUR).all()


def pixel(path):
    return tuple(load_image(path, 14, "pad", COLOUR)[7, 7])


def test_transparent_pixels_are_white_and_opaque_ones_as_they_are(tmp_path):
    Image.new("RGBA", (20, 20), (200, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (20, 20), (200, 0, 0, 255)).save(tmp_path / "opaque.png")
    palette = Image.new("P", (20, 20), 3)
    palette.putpalette([200, 0, 0] * 256)
    palette.save(tmp_path / "palette.png", transparency=3)
    assert pixel(tmp_path / "clear.png") == pixel(tmp_path / "palette.png") == (255, 255, 255)
    assert pixel(tmp_path / "opaque.png") == (200, 0, 0)


def test_sixteen_bits_are_scaled_and_gray_and_cmyk_are_converted(tmp_path):
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (20, 20), 90).save(tmp_path / "gray.png")
    Image.new("CMYK", (20, 20), (0, 0, 0, 0)).save(tmp_path / "cmyk.jpg")
    assert pixel(tmp_path / "deep.png") == (155, 155, 155)
    assert pixel(tmp_path / "gray.png") == (90, 90, 90)
    assert pixel(tmp_path / "cmyk.jpg") == (255, 255, 255)


def test_the_content_decides_not_the_extension(tmp_path):
    noise(20, 20).convert("P").save(tmp_path / "a.jpg", format="GIF")
    check_image(tmp_path / "a.jpg", "decode")


def reason_of(path, check="decode"):
    with pytest.raises(ImageFault) as caught:
        check_image(path, check)
    return caught.value.reason


def test_truncated_pictures_are_refused_only_by_decoding_them(tmp_path):
    noise(100, 100).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    for share in (0.5, 0.9, 0.99):
        (tmp_path / "b.jpg").write_bytes(content[: int(len(content) * share)])
        check_image(tmp_path / "b.jpg", "header")
        assert reason_of(tmp_path / "b.jpg") == "unreadable_image"


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"<html>not found</html>")
    for name in ("empty.jpg", "page.jpg"):
        assert reason_of(tmp_path / name, "header") == "unreadable_image"
        check_image(tmp_path / name, "exists")
    assert reason_of(tmp_path / "no.jpg", "exists") == reason_of(tmp_path, "exists") == "missing_image"
    check_image(tmp_path / "no.jpg", "none")


def test_a_name_too_long_for_any_file_is_refused(tmp_path):
    assert reason_of(tmp_path / ("x" * 300), "exists") == "unreadable_image"
    with pytest.raises(ImageFault, match="File name too long"):
        load_image(tmp_path / ("x" * 300), 14, "pad", COLOUR)


def test_bombs_are_refused_by_their_header(tmp_path, monkeypatch):
    Image.new("1", (9500, 9500)).save(tmp_path / "bomb.png")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")

    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    assert reason_of(tmp_path / "bomb.png") == reason_of(tmp_path / "huge.png") == "image_too_large"


def test_slivers_are_refused(tmp_path):
    noise(1, 101).save(tmp_path / "a.png")
    assert reason_of(tmp_path / "a.png") == "image_too_thin"


@pytest.mark.parametrize("key", ["/etc/passwd", "../a.jpg", "a/../../b", "~/a", "a\\b", "C:a", "a\0b", "", "."])
def test_keys_that_leave_the_root_are_refused(tmp_path, key):
    with pytest.raises(ImageFault) as caught:
        resolve_key(tmp_path, key)
    assert caught.value.reason == "unsafe_image_path"


def test_links_that_the_user_made_are_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    noise(20, 20).save(tmp_path / "elsewhere/a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/coco").symlink_to(tmp_path / "elsewhere")
    check_image(resolve_key(tmp_path / "root", "coco/a.png"), "decode")


def test_every_reason_of_an_image_fault_is_a_reason_of_a_refusal():
    from dataprep.conversation import REASONS

    source = Path(images.__file__).read_text()
    named = {name for name in REASONS if f'"{name}"' in source}
    assert named == {"unsafe_image_path", "missing_image", "unreadable_image", "image_too_large", "image_too_thin"}
