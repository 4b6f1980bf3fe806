"""F5: five contrasts of matched models."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.verification_numbers import SETTING, table
from tokenlens.verification.ablations import judge_f5
from tokenlens.verification.rules import CLAIMS

ABLATIONS = {"norms": 3.0, "paper": 4.5, "qkv_all": 4.4, "mlp": 0.0, "proj": 0.1}


def test_it_takes_the_gain_apart():
    finding = judge_f5(table(np.random.default_rng(16), ABLATIONS, 6, sd=0.2), SETTING)
    assert finding.verdict == "supported", finding.sentence
    assert finding.sentence.count("holds") == 5
    refuted = judge_f5(table(np.random.default_rng(16), ABLATIONS | {"mlp": 4.0}, 6, sd=0.2), SETTING)
    assert refuted.verdict == "not supported"


def test_the_margin_is_half_of_what_paper_gains():
    """0.9 points are nothing beside a gain of 4.5, and most of a gain of 1."""
    small = {name: gain / 4.5 for name, gain in ABLATIONS.items()}
    for gains, verdict in ((ABLATIONS | {"mlp": 0.9}, "supported"), (small | {"mlp": 0.9}, "not supported")):
        finding = judge_f5(table(np.random.default_rng(16), gains, 10, sd=0.05), SETTING)
        assert finding.verdict == verdict, finding.sentence


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.text)
def test_a_claim_is_a_contrast_that_is_positive_where_the_paper_is_right(claim):
    assert sum(claim.weights.values()) == 0
    assert claim.variant in claim.weights
    assert sum(weight * ({"standard": 0.0} | ABLATIONS)[name] for name, weight in claim.weights.items()) > 0


def test_it_needs_a_gain_and_all_ablations():
    rng = np.random.default_rng(17)
    without = judge_f5(table(rng, dict.fromkeys(ABLATIONS, 0.0), 6, sd=0.2), SETTING)
    assert without.verdict == "inconclusive"
    assert "no gain to attribute" in without.sentence
    some = judge_f5(table(rng, {"norms": 3.0, "paper": 4.5}, 6, sd=0.2), SETTING)
    assert some.verdict == "inconclusive"
    assert "not trained: mlp, proj, qkv_all" in some.sentence


def test_noise_leaves_claims_open():
    finding = judge_f5(table(np.random.default_rng(18), dict.fromkeys(ABLATIONS, 0.0), 3, sd=2.0), SETTING)
    assert finding.sentence.count(": open") == 5


def test_a_claim_about_sets_that_have_not_parted_is_open():
    unmet = {(SETTING, "mlp"): ["the two sets have hardly parted"]}
    finding = judge_f5(table(np.random.default_rng(16), ABLATIONS, 6, sd=0.2), SETTING, unmet=unmet)
    assert finding.verdict == "inconclusive"
    assert "open (the two sets have hardly parted)" in finding.sentence
