"""The sample set: views of the photographs that come with the dependencies, so that a first run needs no download."""

from __future__ import annotations

import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from tokenlens.images.decoding import decode

PHOTOGRAPHS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
"""Package and path inside it. The packages' other samples are drawings and measurements, not photographs."""

VIEWS = 64
AREA = (0.15, 0.7)
RATIO = (3 / 4, 4 / 3)


@lru_cache(maxsize=len(PHOTOGRAPHS))
def photograph(number: int) -> Image.Image:
    """One of ``PHOTOGRAPHS`` as RGB; ValueError if its package was installed without it."""
    package, inside = PHOTOGRAPHS[number]
    spec = find_spec(package)  # finds the package without importing it
    path = Path(spec.origin).parent / inside if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise ValueError(f"the installed {package} lacks the sample photograph {inside}; name a folder of images")
    return decode(path.read_bytes())


def view_name(index: int) -> str:
    """Photograph and number of a view, e.g. ``china-view000``."""
    return f"{Path(PHOTOGRAPHS[index % len(PHOTOGRAPHS)][1]).stem}-view{index:03d}"


def view(index: int, seed: int = 0) -> Image.Image:
    """View ``index`` of the sample set: a random crop of a photograph, mirrored half of the time.

    The crop takes 15 to 70 % of the area with sides of ratio 3:4 to 4:3. It depends on ``seed`` and ``index`` alone,
    not on how many views are asked for. It keeps the photograph's resolution; the model's transform brings it to size.
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
