"""Every scale is complete, and the tiny one fits into 90 minutes."""

from __future__ import annotations

import pytest

from tokenlens.verification.scales import scale_of, scales
from tokenlens.verification.variants import specialization_of


@pytest.mark.parametrize("name", scales.names())
def test_scales_are_complete(name):
    scale = scale_of(name)
    assert {probe.task for probe in scale.probes} >= {"segmentation"}
    assert len({probe.name for probe in scale.probes}) == len(scale.probes)
    assert {"standard", "paper"} <= {*scale.variants}
    assert scale.seeds >= 3
    for variant in scale.variants:
        specialization_of(variant)
    assert scales.describe(name)


def test_the_tiny_scale_takes_less_than_90_minutes():
    scale = scale_of("tiny")
    pace, images = scale.pace, scale.train_images * (scale.recipe.epochs or 0)
    each = images / pace.train / 60 + pace.analyze + sum(pace.probes[probe.task] for probe in scale.probes)
    assert pace.first + scale.seeds * len(scale.variants) * each < 90


def test_the_truncated_scales_start_from_blocks_of_their_teacher():
    small, large = scale_of("truncated"), scale_of("truncated_gpu")
    for scale in (small, large):
        assert scale.start == "teacher"
        assert scale.start_blocks == scale.recipe.model_options["depth"]
        assert scale.recipe.model == scale.recipe.objective_options["teacher"]
        assert scale.recipe.objective_options["fit_heads"] > 384, (
            "more images than channels, or CLS's head is arbitrary"
        )
    assert (small.seeds, small.ablation_seeds) == (8, 5)
    assert {probe.draw for probe in small.probes if probe.task == "segmentation"} == {0, 1}
    assert large.recipe.preload
