"""Small images, the folders, archives and shards that hold them, and reading them with their labels."""

import io
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokenlens.images.labelled import LabelledImages


def picture(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    """Return noise whose first pixel equals its seed."""
    pixels_HW3 = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
    pixels_HW3[0, 0] = seed % 256
    return Image.fromarray(pixels_HW3)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour_type: int, data: bytes) -> bytes:
    """Return a PNG file with this header and data, which PIL might not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def write_images(folder: Path, counts: dict[str, int], first: int = 0) -> None:
    """Write ``counts`` images to each class folder ("" for the folder itself), with seeds from ``first``."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / name / f"img{number}.png").write_bytes(encoded(picture(first)))
            first += 1


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def files_below(folder: Path, prefix: str = "") -> dict[str, bytes]:
    return {
        prefix + path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_pets(root: Path) -> Path:
    """Write three classes to train/ and two of them to val/."""
    write_images(root / "train", {"cat": 3, "dog": 2, "eel": 1})
    write_images(root / "val", {"cat": 1, "eel": 2}, first=50)
    return root


def read_seeds(images: LabelledImages) -> list[int]:
    """Return the seed of each image, which shows that the images that are read are those that are named."""
    return [images.read(index).getpixel((0, 0))[0] for index in range(len(images))]


def read_labels(images: LabelledImages) -> list[int]:
    assert images.labels is not None
    return images.labels.tolist()
