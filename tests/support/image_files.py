"""Small images, and the folders, archives and shards that hold them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    """Noise whose first pixel says its seed."""
    pixels_HW3 = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
    pixels_HW3[0, 0] = seed % 256
    return Image.fromarray(pixels_HW3)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_images(folder: Path, counts: dict[str, int], first: int = 0) -> None:
    """``counts`` images in each class folder ("" for the folder itself), with seeds that go on from ``first``."""
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
