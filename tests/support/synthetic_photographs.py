"""Photographs with maps that an analysis could have kept, without a model."""

import io

import numpy as np
from PIL import Image

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.photographs import BINS, Photographs


def with_photographs(analysis: Analysis, images: int = 2, pixels: bool = True, seed: int = 0) -> Analysis:
    """Give an analysis photographs of one colour each, whose CLS-patch cosine falls from about 0.3 to -0.1."""
    rng = np.random.default_rng(seed)
    shape = (images, analysis.blocks, *analysis.layout.grid)
    cosines = np.stack([rng.normal(0.3, 0.05, shape), rng.normal(-0.1, 0.05, shape)], 1)
    norms = np.stack([rng.normal(10, 1, shape), rng.normal(20, 2, shape)], 1)
    norms[:, :, :, 0, 0] *= 5
    described = analysis.provenance["images"]
    analysis.photographs = Photographs(
        names=tuple(described["names"][:images]),
        hashes=tuple(f"{index:064x}" for index in range(images)),
        blocks=tuple(range(analysis.blocks)),
        cosines=cosines.astype(np.float16),
        norms=norms.astype(np.float16),
        pairs=np.tile(np.bincount([50, 55, 55, 60], minlength=BINS), (2, analysis.blocks, 1)),
        jpegs=tuple(_jpeg(index) for index in range(images)) if pixels else (),
        heads=rng.dirichlet(np.ones(norms[0, 0, 0].size), (images, analysis.heads))
        .astype(np.float16)
        .reshape(images, analysis.heads, *analysis.layout.grid)
        if analysis.heads
        else None,
    )
    return analysis


def _jpeg(index: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (32, 32), (60 * index, 120, 90)).save(written, format="jpeg")
    return written.getvalue()
