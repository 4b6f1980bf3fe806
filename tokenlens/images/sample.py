"""The sample images: crops of photographs that come with the dependencies, so that a first run needs no download."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from tokenlens.images.decoding import decode
from tokenlens.images.files import RawImage

PHOTOGRAPHS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
"""Package, and path in it. The other sample images of the packages are drawings and measurements."""

VIEWS = 64
AREA = (0.15, 0.7)
RATIO = (3 / 4, 4 / 3)


class SampleViews:
    """The first ``views`` views of the sample images for a seed."""

    def __init__(self, views: int, seed: int) -> None:
        self.views = views
        self.seed = seed

    def __len__(self) -> int:
        return self.views

    def __getitem__(self, index: int) -> RawImage:
        name = f"{Path(PHOTOGRAPHS[index % len(PHOTOGRAPHS)][1]).stem}-view{index:03d}"
        return RawImage(name, view(index, self.seed))


@lru_cache(maxsize=len(PHOTOGRAPHS))
def photograph(number: int) -> Image.Image:
    """Read one of ``PHOTOGRAPHS`` as RGB; ValueError if its package was installed without it."""
    package, inside = PHOTOGRAPHS[number]
    spec = find_spec(package)  # finds the package without importing it
    path = Path(spec.origin).parent / inside if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise ValueError(f"the installed package {package} lacks the sample photograph {inside}; use your own images")
    return decode(path.read_bytes())


def view(index: int, seed: int = 0) -> Image.Image:
    """Return view ``index``: a random crop of a photograph, mirrored with probability 1/2.

    The crop covers 15 to 70 % of the area with an aspect ratio from 3:4 to 4:3, in the photograph's resolution. It
    depends only on ``seed`` and ``index``, not on the number of views.
    """
    photo = photograph(index % len(PHOTOGRAPHS))
    # RandomState: NumPy promises the same numbers in every version, which it does not for Generator.
    random = np.random.RandomState([seed % 2**32, index])
    while True:
        area = photo.width * photo.height * random.uniform(*AREA)
        ratio = math.exp(random.uniform(*np.log(RATIO)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width <= photo.width and height <= photo.height:
            break
    left = random.randint(photo.width - width + 1)
    top = random.randint(photo.height - height + 1)
    crop = photo.crop((left, top, left + width, top + height))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.uniform() < 0.5 else crop
