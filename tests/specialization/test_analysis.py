"""Analyses of specialized models: distance of the weights, and the effect of CLS's weights in each norm."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

import tokenlens
from tests.support.specialized_models import SEVERAL, perturb, preset_for
from tests.support.tiny_models import DEPTH, MODELS, images
from tokenlens import Specialization, specialize
from tokenlens.metrics.weight_distance import specialized_parameters, weight_distance

OWN = ("gamma_own", "beta_own", "total_own")
BEFORE = {"norm1": "resid_pre", "norm2": "resid_mid"}
METRICS = ["weight_distance", "norm_differentiation"]


def analyzed(model, name="timm_dinov2_registers", metrics=METRICS):
    return tokenlens.analyze(model, images(name, 4), metrics=metrics, device="cpu")


def split(analysis, part, site="norm1"):
    """Return a part of the CLS–patch split by image and block."""
    return analysis.per_image["norm_differentiation"][part].xs((site, "cls-patch"), axis=1, level=("site", "group"))


@pytest.fixture(scope="module")
def standard():
    return MODELS["timm_dinov2_registers"]()


@pytest.fixture(scope="module")
def fresh(standard):
    return analyzed(specialize(copy.deepcopy(standard), "paper"))


@pytest.mark.parametrize("name", SEVERAL)
def test_every_parameter_is_found_in_its_block(name):
    """Whatever the blocks of a family are called: chunks, ``encoder_layer_0``, lists of lists."""
    model = perturb(specialize(MODELS[name](), preset_for(name)))
    found = list(specialized_parameters(model))
    inside = {block: {each.name for each in found if each.block == block} for block in range(DEPTH)}
    assert inside[0] == inside[1]
    assert {each.block for each in found} <= {0, 1, None}
    assert all(each.component == "norm" for each in found if each.block is None)
    assert 2 * len(found) == sum(".cls." in key or ".patch." in key for key, _ in model.named_parameters())
    rows = analyzed(model, name, ["weight_distance"]).select("weight_distance", part="relative_distance")
    positions = zip(rows["site"], rows["block"].fillna(-1).astype(int), strict=True)
    assert dict(zip(positions, rows["value"], strict=True)) == pytest.approx(
        {
            (f"{each.component}/{each.name}", -1 if each.block is None else each.block): weight_distance(
                each.cls, each.patch
            )[0]
            for each in found
        }
    )


def test_equal_weights_add_exactly_nothing(fresh, standard):
    plain = analyzed(standard, metrics=["norm_differentiation"])
    for site in ("norm1", "norm2", "final_norm"):
        for part in OWN:
            assert (split(fresh, part, site) == 0).all(axis=None)
        for part in ("gamma", "beta"):
            np.testing.assert_allclose(split(fresh, f"{part}_shared", site), split(plain, part, site), atol=1e-6)
    assert not set(plain.select("norm_differentiation")["part"]) & set(OWN)
    kept = plain.arrays["norm_differentiation/gamma_norm1"].values
    np.testing.assert_array_equal(kept, [block.norm1.weight.detach().numpy() for block in standard.blocks])
    assert not [name for name in plain.arrays if "/cls_gamma" in name]


def test_the_effect_of_the_weights_for_cls_is_what_is_missing_without_them(standard):
    """With the patches' weights for all tokens, CLS is closer to the patches by ``total_own``."""
    model = perturb(specialize(copy.deepcopy(standard), "paper"))
    analysis, recording = analyzed(model), tokenlens.record(model, images("timm_dinov2_registers", 4))
    inputs = {(site, block): before for block in range(DEPTH) for site, before in BEFORE.items()}
    for (site, block), before in (inputs | {("final_norm", DEPTH - 1): "resid_post"}).items():
        norm = model.norm if site == "final_norm" else getattr(model.blocks[block], site)
        x = recording[block, before]
        with torch.no_grad():
            real, shared = norm(x), norm.patch(x)
        torch.testing.assert_close(real[:, 5:], shared[:, 5:])
        with_cls, without = (cosine_similarity(y[:, :1], y[:, 5:], dim=-1).mean(1) for y in (real, shared))
        index = -1 if site == "final_norm" else block
        for part, value in (("total_own", without - with_cls), ("after", with_cls)):
            got = split(analysis, part, site).xs(index, axis=1, level="block").to_numpy()[:, 0]
            np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-6)


def test_both_weights_are_kept(standard):
    model = perturb(specialize(copy.deepcopy(standard), Specialization(norm=[1])))
    analysis = analyzed(model)
    for name, parameter in (("gamma", "weight"), ("beta", "bias")):
        for side in ("cls", "patch"):
            kept = analysis.arrays[f"norm_differentiation/{side}_{name}_norm1"]
            assert kept.dims == ("block", "channel")
            own = getattr(getattr(model.blocks[1].norm1, side), parameter)
            np.testing.assert_array_equal(kept.values[1], own.detach().numpy())
            # Block 0 is not specialized: the same weights for both, and no effect.
            one = getattr(model.blocks[0].norm1, parameter)
            np.testing.assert_array_equal(kept.values[0], one.detach().numpy())
    assert (split(analysis, "total_own")[0] == 0).all(axis=None)
    assert (split(analysis, "total_own")[1] != 0).any(axis=None)


def test_the_provenance_names_the_specialization(fresh, standard):
    chosen = {"norm": "all", "layer_scale": "all", "qkv": "first_third", "registers": "cls"}
    assert fresh.provenance["specialization"] == chosen | {"prefix": ["cls", "reg"]}
    assert "specialization" not in analyzed(standard, metrics=["token_norm"]).provenance


def test_under_autocast_equal_weights_still_add_nothing(standard):
    model = specialize(copy.deepcopy(standard), "norms")
    analysis = tokenlens.analyze(model, images("timm_dinov2_registers", 4), metrics=METRICS, device="cpu", amp=True)
    assert (split(analysis, "total_own") == 0).all(axis=None)
