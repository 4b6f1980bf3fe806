"""Verdicts of F3 to F6, on tables of numbers drawn from known truths."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.support.verification_numbers import SETTING, table
from tokenlens.analysis.findings import Finding
from tokenlens.statistics.seed_effects import MIN_SEEDS
from tokenlens.verification.findings import (
    f3_verdict,
    judge_f3,
    judge_f4,
    judge_f6,
    judge_over_seeds,
    judge_trained_models,
)
from tokenlens.verification.numbers import compare_scores, tabulate_differences, tabulate_effects
from tokenlens.verification.power import Spread, detectable_gain, seeds_for
from tokenlens.verification.rules import CLAIMED_GAIN, COSTS, MIN_GAIN


def verdict(numbers):
    """F3's, without the sentence: many times faster."""
    return f3_verdict(*(compare_scores(numbers, SETTING, "paper", "standard", what) for what in ("mIoU", "accuracy")))


def test_two_standard_models_are_told_apart_in_at_most_one_case_of_twenty():
    rng = np.random.default_rng(0)
    kinds = [(seeds, sd) for seeds in (3, 5) for sd in (0.3, 3.0)]
    found = [verdict(table(rng, {"paper": 0.0}, seeds, sd=sd)) for seeds, sd in kinds for _ in range(50)]
    assert found.count("supported") / len(found) <= 0.05
    assert set(found) <= {"supported", "not supported", "inconclusive"}


def test_a_gain_of_four_points_with_little_noise_is_found():
    rng = np.random.default_rng(1)
    found = [verdict(table(rng, {"paper": 4.0})) for _ in range(40)]
    assert found.count("supported") >= 38


@pytest.mark.parametrize("gain", [-4.0, 0.0, 0.4])
def test_a_gain_below_half_of_the_claim_is_refuted_where_the_noise_allows_it(gain):
    rng = np.random.default_rng(2)
    found = [verdict(table(rng, {"paper": gain}, 5, sd=0.1)) for _ in range(20)]
    assert found.count("not supported") >= 19


def test_a_small_gain_that_is_there_for_certain_is_said_and_not_supported():
    finding = judge_f3(table(np.random.default_rng(3), {"paper": 0.5}, 8, sd=0.05), SETTING)
    assert finding.verdict == "not supported"
    assert finding.interval[0] > 0
    assert f"smaller than {MIN_GAIN:g} point" in finding.sentence


def test_classification_must_be_kept():
    rng = np.random.default_rng(4)
    assert verdict(table(rng, {"paper": 4.0}, 5, lost=3.0)) == "not supported"
    assert verdict(table(rng, {"paper": 4.0}, 5, lost=None)) == "inconclusive"
    lost = table(rng, {"paper": 4.0}, 5)
    noisy = (lost["measure"] == "accuracy") & (lost["source"] == "cls") & (lost["variant"] == "paper")
    lost.loc[noisy, "value"] += [6.0, -6.0, 5.0, -5.0, 0.0]
    finding = judge_f3(lost, SETTING)
    assert finding.verdict == "inconclusive"
    assert "whether it is kept is open" in finding.sentence


@pytest.mark.parametrize("seeds", [1, 2])
@pytest.mark.parametrize("gain", [0.0, 4.0, 40.0])
def test_fewer_than_three_seeds_never_give_a_verdict(seeds, gain):
    numbers = table(np.random.default_rng(5), {"paper": gain, "norms": gain, "twin": 0.0}, seeds, sd=0.01)
    for finding in judge_trained_models(numbers):
        assert finding.verdict == "inconclusive", finding
        assert finding.seeds == seeds
    assert f"needs {MIN_SEEDS} seeds" in judge_f3(numbers, SETTING).sentence


def test_the_interval_is_students_t_over_seeds():
    numbers = table(np.random.default_rng(6), {"paper": 1.0}, 4, sd=1.0)
    finding = judge_f3(numbers, SETTING)
    dense = numbers[numbers["measure"] == "mIoU"].groupby(["variant", "seed"])["value"].mean().unstack(0)
    each = dense["paper"] - dense["standard"]
    expected = stats.ttest_1samp(each, 0).confidence_interval()
    assert finding.effect == pytest.approx(each.mean())
    assert finding.interval == pytest.approx((expected.low, expected.high))
    assert finding.n == 235
    assert finding.verdict == verdict(numbers)


def test_the_power_is_said_with_its_uncertainty():
    numbers = table(np.random.default_rng(8), {"paper": 1.0}, 6, sd=2.0)
    finding = judge_f3(numbers, SETTING)
    assert f"detect a gain of {finding.detectable:.1f} points or more with 80 % power, accuracy included" in (
        finding.sentence
    )
    low, high = map(float, re.search(r"included \((\S+) to ([\d.]+),", finding.sentence).groups())
    assert low < finding.detectable < high
    changes = tabulate_differences(numbers)
    dense, accuracy = (
        changes[changes["source"] == source].groupby("seed")["difference"].mean() for source in ("patches", "cls")
    )
    spread = Spread(6, (dense.std(), accuracy.std()), dense.corr(accuracy), (0.0, 0.0))
    assert finding.detectable == pytest.approx(detectable_gain(spread))
    assert f"would need {seeds_for(spread, CLAIMED_GAIN)} seeds" in finding.sentence


def test_a_comparison_whose_premises_fail_is_not_applicable():
    numbers = table(np.random.default_rng(20), {"paper": 4.0, "norms": 4.0}, 5)
    unmet = {(SETTING, "paper"): ["the norms separate nothing"]}
    f3, f5, f6 = (one for one in judge_trained_models(numbers, unmet=unmet) if one.name != "F4")
    assert {f3.verdict, f5.verdict, f6.verdict} == {"not applicable"}
    assert f3.sentence.startswith("F3 does not apply: the norms separate nothing.")
    assert f3.effect == pytest.approx(4.0, abs=0.5), "the numbers are shown all the same"


def test_matching_seeds_removes_what_models_of_one_seed_share():
    numbers = table(np.random.default_rng(9), {"paper": 1.0}, 6, sd=0.1, common=20.0)
    assert judge_f3(numbers, SETTING).effect == pytest.approx(1.0, abs=0.2)


def test_seeds_without_a_partner_are_left_out_and_named():
    rng = np.random.default_rng(10)
    finding = judge_f3(table(rng, {"paper": 4.0}, (0, 1, 2, 5), baseline_seeds=(0, 1, 2, 7)), SETTING)
    assert finding.seeds == 3
    assert "seeds 5 and 7 left out" in finding.sentence


def test_a_model_without_all_resolutions_is_left_out_and_named():
    numbers = table(np.random.default_rng(11), {"paper": 4.0}, 4)
    missing = (numbers["seed"] == 2) & (numbers["variant"] == "paper") & (numbers["resolution"] == 128)
    finding = judge_f3(numbers[~missing], SETTING)
    assert finding.seeds == 3
    assert "seed 2 left out" in finding.sentence


def test_models_of_other_seeds_are_compared_without_matching():
    rng = np.random.default_rng(12)
    numbers = table(rng, {"paper": 4.0}, (3, 4, 5, 6), baseline_seeds=(0, 1, 2), sd=0.3, common=0.1)
    finding = judge_f3(numbers, SETTING)
    dense = numbers[numbers["measure"] == "mIoU"].groupby(["variant", "seed"])["value"].mean()
    expected = stats.ttest_ind(dense["paper"], dense["standard"], equal_var=False).confidence_interval()
    assert finding.interval == pytest.approx((expected.low, expected.high))
    assert "not matched" in finding.sentence
    assert finding.verdict == "supported"
    assert finding.seeds == 3


def test_losses_are_told_beside_it():
    sentence = judge_f3(table(np.random.default_rng(13), {"paper": 4.0}, losses=0.01), SETTING).sentence
    assert "Loss at the end of training: −0.0100" in sentence
    assert "lower in 3 of 3 seeds" in sentence


def test_numbers_of_other_data_are_never_subtracted():
    numbers = table(np.random.default_rng(14), {"paper": 4.0})
    numbers.loc[(numbers["variant"] == "paper") & (numbers["measure"] == "mIoU"), "data"] = "d2"
    finding = judge_f3(numbers, SETTING)
    assert finding.verdict == "inconclusive"
    assert finding.seeds == 0
    assert tabulate_differences(numbers).query("measure == 'mIoU'").empty


def test_a_twin_is_a_control():
    findings = judge_trained_models(table(np.random.default_rng(15), {"paper": 4.0, "twin": 0.0}))
    control = next(finding for finding in findings if finding.subject == "twin against standard")
    assert control.name == "F3"
    assert control.title.startswith("Control")
    assert control.verdict != "supported"


def costs(paper=0.0823, norms=0.0004, flops=0.0003):
    rows = [
        ("ViT-B/16", name, 86_000_000, round(86_000_000 * share), 10**10, round(10**10 * flops))
        for name, share in (("paper", paper), ("norms", norms))
    ]
    return pd.DataFrame(rows, columns=list(COSTS))


def test_f4_counts():
    assert judge_f4(costs()).verdict == "supported"
    assert judge_f4(costs()).effect == pytest.approx(8.23, abs=0.01)
    for wrong in (costs(paper=0.12), costs(norms=0.002), costs(flops=0.01)):
        assert judge_f4(wrong).verdict == "not supported"


def test_f6_needs_f3_everywhere():
    rng = np.random.default_rng(18)
    small, large, none = (
        table(rng, {"paper": gain}, 5, sd=0.2, setting=name)
        for name, gain in (("small", 4.0), ("large", 3.0), ("other", -1.0))
    )
    assert judge_f6(small).verdict == "inconclusive"
    assert judge_f6(pd.concat([small, large])).verdict == "supported"
    assert judge_f6(pd.concat([small, large, none])).verdict == "not supported"
    unmet = {("other", "paper"): ["their norms separate nothing"]}
    assert judge_f6(pd.concat([small, large, none]), unmet=unmet).verdict == "supported"
    assert judge_f6(none, unmet=unmet).verdict == "not applicable"


VARIANTS = ("norms", "paper", "qkv_all", "mlp", "proj")


def test_q_corrects_over_all_variants():
    rng = np.random.default_rng(19)
    whole = tabulate_effects(table(rng, dict.fromkeys(VARIANTS, 0.0), 3, sd=1.0)).query(
        "cell == 'mean' and measure == 'mIoU'"
    )
    assert set(zip(whole["variant"], whole["against"], strict=True)) == {
        *((name, "standard") for name in VARIANTS),
        *((name, "paper") for name in VARIANTS if name != "paper"),
    }
    assert whole["q"].to_numpy() == pytest.approx(stats.false_discovery_control(whole["p"]))


def finding_of(verdict, effect=0.3):
    return Finding("F1", "title", verdict, "seen.", 64, effect, (0.2, 0.4), "rule.")


def test_f1_over_seeds_is_what_all_models_say():
    alike = {seed: finding_of("supported", 0.3 + 0.01 * seed) for seed in range(3)}
    finding = judge_over_seeds("F1", alike, "standard", SETTING)
    assert (finding.verdict, finding.seeds, finding.subject) == ("supported", 3, "standard")
    assert finding.effect == pytest.approx(0.31)
    for judged in (alike | {1: finding_of("not supported")}, {0: alike[0], 1: alike[1]}):
        assert judge_over_seeds("F1", judged, "standard", SETTING).verdict == "inconclusive"
