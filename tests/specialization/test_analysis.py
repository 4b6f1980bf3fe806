"""Looking at specialized models: how far the sets are apart, whose weights a norm uses, beside a standard model."""

from __future__ import annotations

import copy
import re
from html import unescape

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import tokenlens
from tests.specialization.test_saved import SEVERAL, disturb, preset_for
from tests.support.tiny_models import DEPTH, MODELS, images
from tokenlens import Specialization, specialize
from tokenlens.metrics.weight_distance import specialized_parameters, weight_distance
from tokenlens.report.build import summary_html, write_report

OWN = ("gamma_own", "beta_own", "total_own")
METRICS = ["weight_distance", "norm_differentiation"]


def looked_at(model, name="timm_dinov2_registers", metrics=METRICS):
    return tokenlens.analyze(model, images(name, 4), metrics=metrics, device="cpu")


def split(analysis, part, site="norm1"):
    """A part of the CLS–patch split by image and block."""
    return analysis.per_image["norm_differentiation"][part].xs((site, "cls-patch"), axis=1, level=("site", "group"))


@pytest.fixture(scope="module")
def standard():
    return MODELS["timm_dinov2_registers"]()


@pytest.fixture(scope="module")
def fresh(standard):
    return looked_at(specialize(copy.deepcopy(standard), "paper"))


@pytest.fixture(scope="module")
def apart(standard):
    return looked_at(disturb(specialize(copy.deepcopy(standard), "paper")))


@pytest.mark.parametrize("name", SEVERAL)
def test_every_parameter_is_found_in_its_block(name):
    """Whatever a family calls its blocks: chunks, ``encoder_layer_0``, lists of lists."""
    model = disturb(specialize(MODELS[name](), preset_for(name)))
    found = list(specialized_parameters(model))
    inside = {block: {each.name for each in found if each.block == block} for block in range(DEPTH)}
    assert inside[0] == inside[1]
    assert {each.block for each in found} <= {0, 1, None}
    assert all(each.component == "norm" for each in found if each.block is None)
    assert 2 * len(found) == sum(".cls." in key or ".patch." in key for key, _ in model.named_parameters())
    rows = looked_at(model, name, ["weight_distance"]).select("weight_distance", part="relative_distance")
    places = zip(rows["site"], rows["block"].fillna(-1).astype(int), strict=True)
    assert dict(zip(places, rows["value"], strict=True)) == pytest.approx(
        {
            (f"{each.component}/{each.name}", -1 if each.block is None else each.block): weight_distance(
                each.cls, each.patch
            )[0]
            for each in found
        }
    )


def test_equal_sets_add_exactly_nothing(fresh, standard):
    plain = looked_at(standard, metrics=["norm_differentiation"])
    for site in ("norm1", "norm2", "final_norm"):
        for part in OWN:
            assert (split(fresh, part, site) == 0).all(axis=None)
        for part in ("gamma", "beta"):
            np.testing.assert_allclose(split(fresh, f"{part}_shared", site), split(plain, part, site), atol=1e-6)
    assert not set(plain.select("norm_differentiation")["part"]) & set(OWN)
    assert not [name for name in plain.arrays if "gamma" in name]


@pytest.mark.parametrize("site", ["norm1", "norm2", "final_norm"])
def test_what_own_weights_add_is_what_is_missing_without_them(standard, apart, site):
    """Normed once more with the patches' weights for all tokens, CLS is as much nearer as ``total_own`` says."""
    model = disturb(specialize(copy.deepcopy(standard), "paper"))
    recording = tokenlens.record(model, images("timm_dinov2_registers", 4))
    before = {"norm1": "resid_pre", "norm2": "resid_mid", "final_norm": "resid_post"}[site]
    for block in range(DEPTH) if site != "final_norm" else [DEPTH - 1]:
        norm = model.norm if site == "final_norm" else getattr(model.blocks[block], site)
        x = recording[block, before]
        with torch.no_grad():
            real, shared = norm(x), norm.patch(x)
        torch.testing.assert_close(real[:, 5:], shared[:, 5:])
        with_own, without = (cosine_similarity(y[:, :1], y[:, 5:], dim=-1).mean(1) for y in (real, shared))
        place = -1 if site == "final_norm" else block
        for part, value in (("total_own", without - with_own), ("after", with_own)):
            got = split(apart, part, site).xs(place, axis=1, level="block").to_numpy()[:, 0]
            np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-6)


def test_the_parts_add_up(apart):
    for site in ("norm1", "norm2", "final_norm"):
        for stage in ("gamma", "beta"):
            both = split(apart, f"{stage}_shared", site) + split(apart, f"{stage}_own", site)
            np.testing.assert_allclose(both, split(apart, stage, site), atol=1e-6)
        own = split(apart, "gamma_own", site) + split(apart, "beta_own", site)
        np.testing.assert_allclose(own, split(apart, "total_own", site), atol=1e-6)
        assert (split(apart, "total_own", site) != 0).any(axis=None)


def test_the_weights_of_both_sides_are_kept(standard):
    model = disturb(specialize(copy.deepcopy(standard), Specialization(norm=[1])))
    analysis = looked_at(model)
    for name, parameter in (("gamma", "weight"), ("beta", "bias")):
        for side in ("cls", "patch"):
            kept = analysis.arrays[f"norm_differentiation/{side}_{name}_norm1"]
            assert kept.dims == ("block", "channel")
            own = getattr(getattr(model.blocks[1].norm1, side), parameter)
            np.testing.assert_array_equal(kept.values[1], own.detach().numpy())
            # Block 0 has one set: the same on both sides, and nothing of CLS's own.
            one = getattr(model.blocks[0].norm1, parameter)
            np.testing.assert_array_equal(kept.values[0], one.detach().numpy())
    assert (split(analysis, "total_own")[0] == 0).all(axis=None)
    assert (split(analysis, "total_own")[1] != 0).any(axis=None)


def test_the_provenance_names_the_specialization(fresh, standard):
    assert fresh.provenance["specialization"] == {
        "norm": "all",
        "layer_scale": "all",
        "qkv": "first_third",
        "registers": "cls",
        "prefix": ["cls", "reg"],
    }
    assert "specialization" not in looked_at(standard, metrics=["weight_distance"]).provenance


def section(page, name):
    """The words of a section of a page."""
    [found] = re.findall(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", found))).replace("\xa0", " ")


def page_of(subject, folder):
    return write_report(subject, folder).read_text(encoding="utf-8")


def test_the_report_says_what_has_two_sets_and_how_far_they_are_apart(apart, tmp_path):
    page = page_of(apart, tmp_path)
    said = section(page, "two-sets")
    assert "CLS and registers on one side and patches on the other" in said
    assert "5 norms, 4 LayerScales and 1 q, k, v projection (norm: all, layer_scale: all, qkv: first third)" in said
    rows = apart.select("weight_distance", part="relative_distance")
    furthest = rows.loc[rows["value"].idxmax()]
    assert f"furthest apart in {furthest['site'].partition('/')[2]}" in said
    assert f"the median over {len(rows)} parameters" in said
    assert "Across norm1 CLS's own γ and β change the fall of CLS–patch cosine by" in said
    for parameter in {site.partition("/")[2] for site in rows["site"]}:
        assert parameter in said
    for figure in ("weight_distance", "norm_weights", "stage_split"):
        assert f'<figure id="{figure}"' in page


def test_the_report_of_a_fresh_one_says_that_both_sets_are_equal(fresh, tmp_path):
    said = section(page_of(fresh, tmp_path), "two-sets")
    assert "Both sets are equal in all of" in said
    assert "furthest" not in said
    assert "CLS's own" not in said


def test_the_report_of_a_standard_model_has_no_such_section(standard, tmp_path):
    page = page_of(looked_at(standard), tmp_path)
    assert "two-sets" not in page
    assert "<code>weight_distance</code>: no module of the model is specialized" in page


@pytest.mark.parametrize("baseline", ["standard", "specialized"])
def test_a_standard_model_beside_its_specialized_twin(standard, apart, baseline, tmp_path):
    comparison = tokenlens.compare(looked_at(standard), apart, labels=["standard", "specialized"], baseline=baseline)
    assert not (comparison.differences["metric"] == "weight_distance").any()
    assert not comparison.differences["part"].isin(OWN).any()
    comparison.save(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    said = section(page, "leads")
    assert "specialized is specialized. Its two sets are furthest apart in" in said
    assert "standard has one set of weights, so weight_distance has no counterpart in it" in said
    assert "weight_distance</code>: no module of the model is specialized (standard)" in page
    assert "weight_distance has no counterpart" in summary_html(comparison)
    stage_split = (tmp_path / "run" / "figures" / "compare_stage_split.svg").read_text(encoding="utf-8")
    assert "specialized norms: specialized" in stage_split
    loaded = tokenlens.Comparison.load(tmp_path / "run")
    assert len(loaded.select("weight_distance", label="specialized"))


def test_before_and_after_training_are_compared(fresh, apart, tmp_path):
    comparison = tokenlens.compare(fresh, apart, labels=["before", "after"])
    rows = comparison.differences[comparison.differences["metric"] == "weight_distance"]
    distances = rows[rows["part"] == "relative_distance"]
    assert (distances["baseline_value"] == 0).all()
    assert (distances["difference"] == distances["value"]).all()
    assert rows["p"].isna().all(), "exact numbers, no test"
    said = section(page_of(comparison, tmp_path), "leads")
    assert "after is specialized. Its two sets are furthest apart" in said
    assert "before is specialized. Both sets are equal" in said
    assert "no counterpart" not in said
    comparison.plot("compare_depth_profile", metric="weight_distance", part="relative_distance")


def test_under_autocast_equal_sets_still_add_nothing(standard):
    model = specialize(copy.deepcopy(standard), "norms")
    analysis = tokenlens.analyze(model, images("timm_dinov2_registers", 4), metrics=METRICS, device="cpu", amp=True)
    assert (split(analysis, "total_own") == 0).all(axis=None)
