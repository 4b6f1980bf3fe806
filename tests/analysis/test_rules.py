"""The verdicts of the constructed cases of docs/findings.md."""

from __future__ import annotations

import pytest
import torch

from tests.metrics._cases import photographs
from tests.support.constructed_models import (
    RANDOM_FAMILIES,
    common_offset,
    judge_model,
    massive_channel,
    planted_channels,
    random_cls,
    random_vit,
)
from tokenlens.analysis.rules import TITLES
from tokenlens.images import ImageWarning

NOTHING = {"F1(b)": "not applicable", "F1(c)": "not applicable", "F2(a)": "not supported", "F2(b)": "not applicable"}


@pytest.mark.parametrize(
    ("make", "fall"),
    [
        (random_vit, "not supported"),
        (common_offset, "not supported"),
        (random_cls, "not applicable"),
        (massive_channel, "not supported"),
    ],
    ids=lambda made: getattr(made, "__name__", ""),
)
def test_what_is_not_learned_is_not_found(make, fall):
    _, found = judge_model(make())
    assert {name: finding.verdict for name, finding in found.items()} == {"F1(a)": fall} | NOTHING


def test_centring_alone_is_named():
    _, found = judge_model(common_offset())
    assert "By stage: centring 0.8" in found["F1(a)"].sentence
    assert found["F1(a)"].effect > 0.8


def test_planted_channels_are_found():
    analysis, found = judge_model(planted_channels())
    assert {name: finding.verdict for name, finding in found.items()} == dict.fromkeys(TITLES, "supported")
    profiles = analysis.arrays["energy_profile/cls_norm1"].values
    assert (profiles[:, 10:15].sum(-1) > 0.8).all()


@pytest.mark.parametrize("name", RANDOM_FAMILIES)
def test_random_weights_of_any_family_show_nothing(name):
    _, found = judge_model(RANDOM_FAMILIES[name]())
    assert found["F1(a)"].verdict in ("not supported", "not applicable")
    assert {name: found[name].verdict for name in NOTHING} == NOTHING


def test_one_image_gives_no_verdict():
    """Copies of an image count once, so there is one image."""
    _, found = judge_model(planted_channels(), photographs(1, 48, 48))
    assert {finding.verdict for finding in found.values()} == {"inconclusive"}
    assert "1 distinct image only" in found["F1(a)"].sentence


def test_copies_of_one_image_are_one_image():
    with pytest.warns(ImageWarning, match="1 distinct image"):
        _, found = judge_model(random_vit(), torch.cat([photographs(1, 48, 48)] * 8))
    assert found["F1(a)"].n == 1
    assert found["F1(a)"].verdict != "supported"
    assert found["F2(a)"].verdict != "supported"
