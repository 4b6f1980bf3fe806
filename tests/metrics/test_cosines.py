"""Cosines, the stages of a norm and its statistics of constructed tokens."""

# Shapes: B images, T tokens, P patches, D channels.

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.metrics._single_metric import measure_norm, measure_tokens
from tokenlens.metrics.cls_cls_cosine import cls_cls_cosine
from tokenlens.metrics.cls_patch_cosine import cls_patch_cosine
from tokenlens.metrics.norm_differentiation import norm_stages, stage_differences
from tokenlens.metrics.norm_statistics import norm_statistics
from tokenlens.metrics.patch_mean_cosine import patch_mean_cosine
from tokenlens.metrics.patch_patch_cosine import patch_patch_cosine
from tokenlens.metrics.reg_cls_cosine import reg_cls_cosine
from tokenlens.metrics.reg_patch_cosine import reg_patch_cosine
from tokenlens.tokens import TokenLayout

LAYOUT = TokenLayout(grid=(2, 3), prefix=("cls", "reg", "reg"))
FEW = settings(max_examples=25, deadline=None)
COSINES = ["cls_patch_cosine", "patch_patch_cosine", "reg_cls_cosine", "reg_patch_cosine"]
ACROSS_IMAGES = ["cls_cls_cosine", "patch_mean_cosine"]
STAGES = ("centring", "gamma", "beta")


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def tokens(images: int = 4, channels: int = 16, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return tokens that share a direction, so that no cosine is near 0 or 1."""
    return (random(images, LAYOUT.tokens, channels, seed=seed) + 0.7).to(dtype)


@pytest.mark.parametrize("metric", COSINES + ACROSS_IMAGES)
def test_a_vector_with_itself_is_1_and_with_its_opposite_is_minus_1(metric):
    same = random(16).expand(3, LAYOUT.tokens, 16)
    (value,) = measure_tokens(metric, LAYOUT, same).values()
    assert value == pytest.approx(1, abs=1e-12)
    if metric in ("cls_patch_cosine", "reg_patch_cosine"):
        opposite = same.clone()
        opposite[:, LAYOUT.patch_slice] *= -2
        (value,) = measure_tokens(metric, LAYOUT, opposite).values()
        assert value == pytest.approx(-1, abs=1e-12)


@FEW
@given(seed=st.integers(0, 2**31), factor=st.floats(1e-3, 1e3))
@pytest.mark.parametrize("metric", COSINES + ACROSS_IMAGES)
def test_a_rotation_and_the_lengths_do_not_matter(metric, seed, factor):
    x = tokens(seed=seed)
    rotation = torch.linalg.qr(random(16, 16, seed=seed + 1)).Q
    lengths = 1 if metric in ACROSS_IMAGES else random(*x.shape[:2], 1, seed=seed + 1).exp()
    expected = pytest.approx(measure_tokens(metric, LAYOUT, x), abs=1e-12)
    assert measure_tokens(metric, LAYOUT, factor * lengths * x @ rotation) == expected


@FEW
@given(patches=st.integers(2, 12), channels=st.integers(1, 20), seed=st.integers(0, 2**31))
def test_patch_patch_from_the_sum_is_the_mean_over_the_matrix(patches, channels, seed):
    x = random(3, patches, channels, seed=seed)
    unit = x / x.norm(dim=-1, keepdim=True)
    matrix = unit @ unit.transpose(-1, -2)
    off = matrix[:, ~torch.eye(patches, dtype=torch.bool)].mean(-1)
    torch.testing.assert_close(patch_patch_cosine(x), off, rtol=0, atol=1e-12)
    assert (patch_patch_cosine(x) >= -1 / (patches - 1) - 1e-12).all()


@FEW
@given(images=st.integers(2, 10), seed=st.integers(0, 2**31))
def test_between_images_is_the_mean_over_pairs(images, seed):
    x = tokens(images, seed=seed)
    cls, mean = x[:, 0], x[:, LAYOUT.patch_slice].mean(1)
    for vectors, function, metric in (
        (cls, cls_cls_cosine(cls), "cls_cls_cosine"),
        (mean, patch_mean_cosine(x[:, LAYOUT.patch_slice]), "patch_mean_cosine"),
    ):
        pairs = [torch.cosine_similarity(vectors[i], vectors[j], dim=0).item() for i in range(images) for j in range(i)]
        assert function.item() == pytest.approx(np.mean(pairs), abs=1e-12)
        (value,) = measure_tokens(metric, LAYOUT, x).values()
        assert value == pytest.approx(np.mean(pairs), abs=1e-12)


def test_the_pure_functions_and_the_streaming_classes_agree():
    x = tokens()
    cls, reg, patch = x[:, 0], x[:, 1:3], x[:, LAYOUT.patch_slice]
    for metric, values in {
        "cls_patch_cosine": cls_patch_cosine(cls, patch),
        "patch_patch_cosine": patch_patch_cosine(patch),
        "reg_cls_cosine": reg_cls_cosine(reg, cls),
        "reg_patch_cosine": reg_patch_cosine(reg, patch),
    }.items():
        (value,) = measure_tokens(metric, LAYOUT, x).values()
        assert value == pytest.approx(values.mean().item(), abs=1e-12)


def test_token_0_is_not_taken_for_cls_nor_the_last_for_a_patch():
    layout = TokenLayout(grid=(2, 2), prefix=("reg", "cls"), patch_start=1)
    x = torch.eye(6, dtype=torch.float64).unsqueeze(0).repeat(2, 1, 1)
    x[:, 5] = x[:, 1]  # CLS comes last, and looks like the first patch
    assert measure_tokens("cls_patch_cosine", layout, x) == {("", "cls-patch"): pytest.approx(0.25)}
    assert measure_tokens("reg_patch_cosine", layout, x) == {("", "reg-patch"): pytest.approx(0)}


# -- norms


def norm(kind: str, seed: int = 0) -> Any:
    module = (nn.LayerNorm if kind == "layer" else nn.RMSNorm)(16, eps=1e-6, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(random(16, seed=seed + 10).exp())
        if kind == "layer":
            module.bias.copy_(0.5 * random(16, seed=seed + 20))
    return module


@FEW
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["layer", "rms"]))
def test_the_stages_end_at_the_norms_output_and_their_parts_add_up(seed, kind):
    module, x, rms = norm(kind, seed), tokens(seed=seed), kind == "rms"
    stages = norm_stages(x, module.weight, None if rms else module.bias, kind, eps=module.eps)
    torch.testing.assert_close(stages["after"], module(x), rtol=1e-12, atol=1e-12)
    for cosine in (lambda y: cls_patch_cosine(y[:, 0], y[:, 3:]), lambda y: patch_patch_cosine(y[:, 3:])):
        parts = stage_differences({name: cosine(y) for name, y in stages.items()}, kind, has_bias=not rms)
        assert set(parts) == {"before", "after", "total", "gamma"} | (set() if rms else {"centring", "beta"})
        total = sum(parts[name] for name in STAGES if name in parts)
        torch.testing.assert_close(total, parts["total"], rtol=0, atol=1e-12)
        torch.testing.assert_close(parts["before"] - parts["after"], parts["total"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_parts_add_up_in_the_pipeline(kind, dtype):
    found = measure_norm("norm_differentiation", LAYOUT, tokens(dtype=dtype), norm(kind).to(dtype))
    for pair in ("cls-patch", "patch-patch"):
        parts = sum(found.get((name, pair), 0.0) for name in STAGES)
        limit = 1e-12 if dtype is torch.float64 else 1e-6
        assert parts == pytest.approx(found["total", pair], abs=limit)
        assert found["before", pair] - found["after", pair] == pytest.approx(found["total", pair], abs=limit)


def test_each_stage_has_its_own_part():
    x = tokens()
    plain = measure_norm("norm_differentiation", LAYOUT, x, nn.LayerNorm(16, dtype=torch.float64))
    rms = measure_norm("norm_differentiation", LAYOUT, x, nn.RMSNorm(16, dtype=torch.float64))
    for pair in ("cls-patch", "patch-patch"):
        assert plain["gamma", pair] == pytest.approx(0, abs=1e-12)
        assert plain["beta", pair] == pytest.approx(0, abs=1e-12)
        assert plain["centring", pair] == pytest.approx(plain["total", pair], abs=1e-12)
        assert rms["total", pair] == pytest.approx(0, abs=1e-12)  # only divided by a positive number
        assert rms.keys().isdisjoint({("centring", pair), ("beta", pair)})


def test_a_positive_part_pulls_apart():
    """CLS and patches share a large constant; centring removes it and leaves opposite vectors."""
    layout = TokenLayout(grid=(1, 2))
    direction = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    x = torch.stack([direction + 10, 10 - direction, 10 - direction]).unsqueeze(0)
    found = measure_norm("norm_differentiation", layout, x, nn.LayerNorm(4, dtype=torch.float64))
    assert found["before", "cls-patch"] == pytest.approx((100 - 1) / (100 + 1))
    assert found["after", "cls-patch"] == pytest.approx(-1)
    assert found["centring", "cls-patch"] == pytest.approx(1 + 99 / 101)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3])
def test_variance_does_not_cancel_where_the_mean_is_large(offset):
    """E[x²] − μ² in float32 would be off by 0.06 at μ = 1000, σ = 1."""
    x = (random(4, LAYOUT.tokens, 64) + offset).float()
    exact = x.double().numpy()
    found = measure_norm("norm_statistics", LAYOUT, x, nn.LayerNorm(64))
    for group in ("cls", "reg", "patch"):
        at = list(LAYOUT.positions(group))
        assert found["variance", group] == pytest.approx(np.var(exact, axis=-1)[:, at].mean(), rel=1e-6)
        assert found["mean", group] == pytest.approx(exact.mean(-1)[:, at].mean(), rel=1e-6, abs=1e-6)
    sigma = np.std(exact, axis=-1)
    ratio = np.log(sigma[:, [0]] / sigma[:, 3:]).mean()
    assert found["log_std_ratio", "cls-patch"] == pytest.approx(ratio, abs=1e-6)


def test_statistics_of_a_constructed_token():
    x = torch.tensor([[3.0, 1.0, 3.0, 1.0]], dtype=torch.float64)
    assert norm_statistics(x) == (2, 1)
    x_BTD = torch.stack([3 * x[0], x[0], x[0]]).unsqueeze(0)
    found = measure_norm("norm_statistics", TokenLayout(grid=(1, 2)), x_BTD, nn.RMSNorm(4).double())
    assert found["mean_square", "cls"] == pytest.approx(45)
    assert found["mean_square", "patch"] == pytest.approx(5)
    assert found["log_std_ratio", "cls-patch"] == pytest.approx(np.log(3))
    assert ("mean", "cls") not in found
