"""Specialized weights in the report: which modules have them, how far they are apart, and beside a standard model."""

from __future__ import annotations

import copy

import pytest

import tokenlens
from tests.support.figure_subjects import texts
from tests.support.specialized_models import perturb
from tests.support.tiny_models import MODELS, images
from tokenlens import specialize
from tokenlens.report.build import summary_html, write_report
from tokenlens.report.specialized_weights import counterparts, specialized_sentences, specialized_table

NAME = "timm_dinov2_registers"


def analyzed(model):
    return tokenlens.analyze(model, images(NAME, 4), metrics=["weight_distance", "norm_differentiation"], device="cpu")


@pytest.fixture(scope="module")
def standard():
    return analyzed(MODELS[NAME]())


@pytest.fixture(scope="module")
def fresh():
    return analyzed(specialize(MODELS[NAME](), "paper"))


@pytest.fixture(scope="module")
def perturbed():
    return analyzed(perturb(specialize(copy.deepcopy(MODELS[NAME]()), "paper")))


def test_sentences_name_the_modules_and_the_largest_distance(perturbed):
    modules, distance, effect = specialized_sentences(perturbed)
    assert "CLS and registers on the one hand and patches on the other" in modules
    assert "5 norms, 4 LayerScales and 1 q, k, v projection (norm: all, layer_scale: all, qkv: first third)" in modules
    rows = perturbed.select("weight_distance", part="relative_distance")
    largest = rows.loc[rows["value"].idxmax()]
    assert f"differ most in {largest['site'].partition('/')[2]}" in distance
    assert f"the median over {len(rows)} parameters" in distance
    assert "the specialized γ and β of CLS change the fall of the CLS–patch cosine across norm1 by" in effect


def test_equal_weights_are_said_to_be_equal(fresh):
    _, distance = specialized_sentences(fresh)
    assert "are equal in all of" in distance


@pytest.mark.usefixtures("without_figures")
def test_a_standard_model_has_no_section(standard, tmp_path):
    assert specialized_sentences(standard) == []
    assert specialized_table(standard) is None
    page = write_report(standard, tmp_path).read_text(encoding="utf-8")
    assert '<section id="specialized-weights"' not in page
    assert "<code>weight_distance</code>: no module of the model is specialized" in page


@pytest.mark.usefixtures("without_figures")
def test_the_page_of_a_specialized_model_has_the_section(perturbed, tmp_path):
    page = write_report(perturbed, tmp_path).read_text(encoding="utf-8")
    section = page.partition('<section id="specialized-weights"')[2].partition("</section>")[0]
    for site in perturbed.select("weight_distance")["site"].unique():
        assert site.partition("/")[2] in section


@pytest.mark.usefixtures("without_figures")
def test_a_comparison_with_a_standard_model_says_what_has_no_counterpart(standard, perturbed, tmp_path):
    labels = ["standard", "specialized"]
    comparison = tokenlens.compare(standard, perturbed, labels=labels)
    assert not (comparison.differences["metric"] == "weight_distance").any()
    assert not comparison.differences["part"].isin(["gamma_own", "beta_own", "total_own"]).any()
    for sentences in (
        counterparts(comparison, "specialized"),
        counterparts(tokenlens.compare(standard, perturbed, labels=labels, baseline="specialized"), "standard"),
    ):
        specialized, counterpart = sentences
        assert "specialized is specialized. The weights for CLS and patches differ most in" in specialized
        assert "standard is not specialized, so weight_distance" in counterpart
    assert "have no counterpart in it" in summary_html(comparison)
    comparison.save(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "weight_distance</code>: no module of the model is specialized (standard)" in page
    assert "specialized norms: specialized" in texts(comparison.plot("compare_stage_split"))
    assert len(tokenlens.Comparison.load(tmp_path / "run").select("weight_distance", label="specialized"))


def test_before_and_after_training_are_compared(fresh, perturbed):
    comparison = tokenlens.compare(fresh, perturbed, labels=["before", "after"])
    rows = comparison.differences[comparison.differences["metric"] == "weight_distance"]
    distances = rows[rows["part"] == "relative_distance"]
    assert (distances["baseline_value"] == 0).all()
    assert (distances["difference"] == distances["value"]).all()
    assert rows["p"].isna().all(), "exact numbers, no test"
    after, before = counterparts(comparison, "after")
    assert "after is specialized. The weights for CLS and patches differ most in" in after
    assert "before is specialized. The weights for CLS and patches are equal" in before
    comparison.plot("compare_depth_profile", metric="weight_distance", part="relative_distance")
