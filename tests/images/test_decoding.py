"""Images of every mode become RGB, and nothing but UnreadableImageError comes out of broken ones."""

import contextlib
import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.support.image_batches import SIZE, read_names, shrink
from tests.support.image_files import encoded, picture, png
from tokenlens.images.decoding import UnreadableImageError, decode, image_extensions
from tokenlens.images.sources import open_images


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    image = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    decoded = decode(encoded(image, kind))
    assert decoded.mode == "RGB"
    assert np.asarray(decoded).min() >= 254


def test_transparency_is_dropped_also_from_palettes() -> None:
    red = Image.new("RGBA", (4, 4), (200, 10, 20, 0))
    assert decode(encoded(red)).getpixel((0, 0)) == (200, 10, 20)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 20])
    assert decode(encoded(palette, transparency=bytes([255, 0]))).getpixel((0, 0)) == (200, 10, 20)


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    grey_HW = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode(encoded(Image.fromarray(grey_HW))))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (decoded[..., 0] == decoded[..., 2]).all()


@pytest.mark.parametrize("values", [np.array([[0.5]], dtype=np.float32), np.array([[70000]], dtype=np.int32)])
def test_pixels_without_a_stated_range_are_unreadable(values: np.ndarray) -> None:
    with pytest.raises(UnreadableImageError, match="pixels have no stated range"):
        decode(encoded(Image.fromarray(values), "TIFF"))


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture(1, 30, 20), "JPEG", exif=exif)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (20, 30)
    assert decode(data).size == (30, 20)


def test_postscript_never_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import EpsImagePlugin

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)
    (tmp_path / "disguised.jpg").write_bytes(encoded(picture(1), "EPS"))
    (tmp_path / "good.jpg").write_bytes(encoded(picture(1), "JPEG"))
    source = open_images(tmp_path, transform=shrink)
    assert read_names(source) == ["good.jpg"]
    assert source.skipped == [{"name": "disguised.jpg", "reason": "not an image that PIL can read"}]
    assert {".jpg", ".png", ".webp", ".tif"} <= image_extensions()
    assert not {".eps", ".ps", ".h5", ".mpg", ".wmf"} & image_extensions()


def test_random_damage_never_crashes() -> None:
    chance = random.Random(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        for _ in range(15):
            data = bytearray(encoded(picture(1), kind))
            for _ in range(8):
                data[chance.randrange(4, len(data))] = chance.randrange(256)
            with contextlib.suppress(UnreadableImageError):  # nothing else may be raised
                assert decode(bytes(data[: chance.randrange(len(data))])).mode == "RGB"


def test_decompression_bombs_are_skipped_by_pils_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.png").write_bytes(encoded(Image.new("RGB", (100, 100))))
    (tmp_path / "good.png").write_bytes(encoded(picture(1)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    source = open_images(tmp_path, transform=shrink, image_size=(SIZE, SIZE))
    assert read_names(source) == ["good.png"]
    (bomb,) = source.skipped
    assert bomb["reason"].startswith("DecompressionBombError: Image size (10000 pixels) exceeds limit")
    with pytest.raises(UnreadableImageError, match="DecompressionBombError"):
        decode(png(60000, 60000, 8, 2, b"\0" * 100))  # the header alone: nothing is allocated


def test_a_line_that_resizing_would_enlarge_beyond_the_limit_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "line.png").write_bytes(encoded(Image.new("RGB", (1, 30000))))
    (tmp_path / "strip.png").write_bytes(encoded(Image.new("RGB", (4, 300))))
    source = open_images(tmp_path, transform=shrink)
    assert read_names(source) == ["strip.png"]
    assert source.skipped[0]["name"] == "line.png"
    assert "1×30000 pixels: resized for the model, it would exceed" in source.skipped[0]["reason"]
