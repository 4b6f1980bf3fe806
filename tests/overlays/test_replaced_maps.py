"""Maps of an intervention's photographs are those of the result, and are drawn."""

from __future__ import annotations

import numpy as np
import pytest

import tokenlens
from tests.support.tiny_models import MODELS, images
from tokenlens.interventions import intervene
from tokenlens.overlays.replaced_maps import replaced_maps


@pytest.fixture(scope="module")
def found():
    return intervene(MODELS["timm_vit"](), images("timm_vit", 4), by=["zero", "mean"])


def test_maps_and_captions_are_those_of_the_result(found):
    grid = replaced_maps(found, 1, by=["mean"])
    kept = found.photographs
    k = kept.conditions.index(("cls", "mean", "resid_post", 1))
    assert grid.titles == ("untouched", "block 0", "block 1")
    assert np.allclose(grid.maps[0, ..., :3], kept.untouched[1] / 255)
    assert np.allclose(grid.maps[2, ..., :3], kept.components[1, k] / 255)
    assert grid.captions[2] == f"{kept.cosines[1, k].astype(float).mean():.2f}"
    cosines = replaced_maps(found, 1, blocks=[1], show="cosine")
    assert (cosines.rows, cosines.columns) == (("zero", "mean"), 2)
    assert np.allclose(cosines.maps[3], kept.cosines[1, k])
    figure = tokenlens.plot.replaced_patches(found, show="cosine")
    assert len(figure.axes) >= 1 + 2 * 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"image": 4}, "keeps 4 photographs"),
        ({"replace": "reg"}, "no replacement of reg"),
        ({"by": ["noise"]}, r"by \[\('noise', 0\)"),
        ({"blocks": [7]}, r"\('zero', 7\)"),
    ],
)
def test_what_is_not_there_is_named(found, options, words):
    with pytest.raises(LookupError, match=words):
        replaced_maps(found, **options)
