"""The commands that compare a model that comes with tokenlens with its untrained twin and with DINOv2."""

import pytest
import timm

from tests.support.synthetic_analysis import synthetic_analysis
from tokenlens.report.analysis_page import content
from tokenlens.report.counterparts import TEACHER, counterparts


@pytest.mark.parametrize(("untrained", "twin"), [(False, "tokenlens_tiny --no-pretrained"), (True, "tokenlens_tiny")])
def test_the_models_that_ship_are_compared_with_their_twin_and_their_teacher(untrained, twin):
    analysis = synthetic_analysis(model="tokenlens_tiny", untrained=untrained)
    assert [arguments for arguments, _ in counterparts(analysis)] == [twin, TEACHER]
    assert timm.is_model(TEACHER)


def test_the_report_has_them():
    analysis = synthetic_analysis(model="tokenlens_tiny", blocks=1)
    assert content(analysis)["counterparts"] == counterparts(analysis)


def test_other_models_have_none():
    assert counterparts(synthetic_analysis(model="vit_tiny")) == []
