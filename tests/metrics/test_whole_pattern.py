"""Attention rollout and mean attention distance of constructed patterns, and of every kind of model."""

# Shapes: B images, H heads, T tokens, P patches, d channels of one head.

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tokenlens
from tests.metrics._cases import images as images_of
from tests.metrics._cases import model as model_of
from tests.metrics._single_metric import ALL_GROUPS as LAYOUT
from tests.metrics._single_metric import feed_attention, measure_attention, queries
from tests.support.tiny_models import KINDS, MODELS, images
from tokenlens.analysis.finite import NonFiniteActivation
from tokenlens.metrics.attention_rollout import AttentionRollout, attention_rollout
from tokenlens.metrics.mean_attention_distance import mean_attention_distance
from tokenlens.recording.attention import AttentionCall
from tokenlens.tokens import TokenLayout

FEW = settings(max_examples=25, deadline=None)
BOTH = ["attention_rollout", "mean_attention_distance"]


# -- distance


@pytest.mark.parametrize("prefix", [(), ("cls",), ("cls", "reg")])
@pytest.mark.parametrize("patches", [2, 7])
def test_the_distance_of_uniform_attention_on_a_line(patches, prefix):
    layout = TokenLayout(grid=(1, patches), prefix=prefix)
    q, k = queries(layout=layout)
    found = measure_attention("mean_attention_distance", layout, 0 * q, k)
    assert found["distance", "patch-patch"] == pytest.approx((patches**2 - 1) / (3 * patches), rel=1e-6)
    assert found["over_uniform", "patch-patch"] == pytest.approx(1, rel=1e-6)


def test_the_distance_of_uniform_attention_on_a_large_square():
    """The mean distance of two points of the unit square is (2 + √2 + 5·asinh 1)/15 = 0.5214."""
    side = 40
    uniform = torch.ones(1, 1, side**2, side**2)
    distance = mean_attention_distance(uniform, (side, side)).item() / side
    assert distance == pytest.approx((2 + math.sqrt(2) + 5 * math.asinh(1)) / 15, rel=2e-3)


def test_patches_that_attend_to_themselves_have_distance_0():
    k = torch.eye(LAYOUT.tokens, dtype=torch.float64).expand(2, 1, -1, -1)
    assert measure_attention("mean_attention_distance", LAYOUT, 1000 * k, k) == {
        (part, "patch-patch"): pytest.approx(0, abs=1e-12) for part in ("distance", "over_uniform")
    }


def test_patches_that_attend_to_a_corner():
    q, k = queries()
    k = torch.zeros_like(k)
    k[..., LAYOUT.patch_slice.start, :] = 1
    found = measure_attention("mean_attention_distance", LAYOUT, torch.full_like(q, 100), k)
    expected = np.mean([math.hypot(row, column) for row in range(3) for column in range(4)])
    assert found["distance", "patch-patch"] == pytest.approx(expected)


@FEW
@given(seed=st.integers(0, 2**31))
def test_attention_to_special_tokens_does_not_change_the_distance(seed):
    q, k = queries(seed)
    without = measure_attention("mean_attention_distance", LAYOUT, q, k)["distance", "patch-patch"]
    assert 0 < without < math.hypot(2, 3)
    k[..., list(LAYOUT.prefix_positions), :] *= 3
    assert measure_attention("mean_attention_distance", LAYOUT, q, k)["distance", "patch-patch"] == pytest.approx(
        without
    )


def test_a_patch_that_pays_nothing_to_patches_has_no_distance_and_is_left_out():
    pattern = torch.full((1, 2, 3, 3), 1 / 3)
    pattern[0, 0, 2] = 0
    pattern[0, 1] = 0
    distance = mean_attention_distance(pattern, (1, 3))
    assert distance[0, 0].item() == pytest.approx((1 + 2 / 3) / 2)
    assert distance[0, 1].isnan()


def test_prefix_tokens_behind_the_patches():
    one, other = (TokenLayout(grid=(5, 9), prefix=("cls", "reg"), patch_start=start) for start in (2, 0))
    q, k = queries(layout=one)
    moved = [x.roll(-2, dims=-2) for x in (q, k)]
    for metric in BOTH:
        assert measure_attention(metric, other, *moved) == pytest.approx(measure_attention(metric, one, q, k))


# -- rollout


@FEW
@given(seed=st.integers(0, 2**31))
def test_rollout_is_the_product_of_all_blocks_and_its_rows_sum_to_one(seed):
    calls = [queries(seed + block, heads=2) for block in range(3)]
    blocks = [(q @ k.mT).softmax(-1) for q, k in calls]
    rollout = attention_rollout(blocks)
    assert (rollout >= 0).all()
    torch.testing.assert_close(rollout.sum(-1), torch.ones_like(rollout[..., 0]))
    first, second, third = (pattern.mean(1) / 2 + torch.eye(LAYOUT.tokens) / 2 for pattern in blocks)
    torch.testing.assert_close(rollout, third @ second @ first)
    rows = [row for row in feed_attention("attention_rollout", LAYOUT, calls).rows() if row["part"] == "mass"]
    for block in range(3):
        assert sum(row["value"] for row in rows if row["block"] == block) == pytest.approx(1, abs=1e-12)


def test_rollout_of_uniform_attention():
    """½U + ½I multiplies to 2⁻ˡ·I + (1 − 2⁻ˡ)·U."""
    q, k = queries()
    metric = feed_attention("attention_rollout", LAYOUT, [(0 * q, k)] * 4)
    found = {(row["part"], row["block"], row["group"]): row["value"] for row in metric.rows()}
    for block in range(4):
        kept = 0.5 ** (block + 1)
        for group, count in {"cls": 1, "dist": 1, "reg": 2, "patch": 12}.items():
            expected = (1 - kept) * count / LAYOUT.tokens + (kept if group == "cls" else 0)
            assert found["mass", block, f"cls-{group}"] == pytest.approx(expected)
        assert found["normalized_entropy", block, "cls-patch"] == pytest.approx(1)
    expected = np.stack([np.full((3, 4), (1 - 0.5 ** (block + 1)) / LAYOUT.tokens) for block in range(4)])
    maps = metric.arrays()["mean"]
    np.testing.assert_allclose(maps.values, expected)


def test_blocks_out_of_order_and_no_block_are_refused():
    q, k = queries()
    with pytest.raises(ValueError, match=r"order.*expected block 0, got block 1"):
        AttentionRollout().look(LAYOUT, 1, AttentionCall(q, k, k))
    with pytest.raises(ValueError, match="at least one block"):
        attention_rollout([])


# -- how it is computed


@pytest.mark.parametrize("metric", BOTH)
def test_one_single_patch_is_not_applicable(metric):
    model = MODELS["timm_vit_wide"]()
    with pytest.raises(ValueError, match=f"{metric}: the image is one single patch"):
        tokenlens.analyze(model, images("timm_vit_wide")[..., :8, :8], metrics=[metric])


def test_a_model_without_prefix_tokens_stops_at_nan_too():
    model = copy.deepcopy(model_of("no_cls"))
    with torch.no_grad():
        model.blocks[1].norm1.weight[5] = torch.nan
    with pytest.raises(NonFiniteActivation, match="block 1, pattern, first for image 'image 0'"):
        tokenlens.analyze(model, images_of("no_cls"), metrics=["mean_attention_distance"])


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.elements = max(self.elements, out.numel())
        return out


def test_never_the_whole_pattern_of_all_heads():
    layout = TokenLayout(grid=(16, 16))
    q = torch.randn(1, 8, layout.tokens, 4)
    for name in BOTH:
        with Largest() as largest:
            feed_attention(name, layout, [(q, q)] * 3)
        assert largest.elements < 8 * layout.tokens**2


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_users_choice_of_a_faster_product_does_not_matter(precision):
    blocks = [tuple(x.float() for x in queries(block, heads=2)) for block in range(3)]
    exact = {metric: feed_attention(metric, LAYOUT, blocks).rows() for metric in BOTH}
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for metric in BOTH:
            values = [row["value"] for row in feed_attention(metric, LAYOUT, blocks).rows()]
            np.testing.assert_allclose(values, [row["value"] for row in exact[metric]], rtol=1e-6)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_block_with_q_and_k_in_half_precision():
    q, k = (x.bfloat16() for x in queries(heads=2))
    exact = {metric: feed_attention(metric, LAYOUT, [(q.double(), k.double())] * 2).rows() for metric in BOTH}
    for metric, expected in exact.items():
        values = [row["value"] for row in feed_attention(metric, LAYOUT, [(q, k)] * 2).rows()]
        np.testing.assert_allclose(values, [row["value"] for row in expected], rtol=1e-5)


@pytest.mark.parametrize("rows_at_once", [1, 5, 16, 100])
@pytest.mark.parametrize("biased", [False, True])
def test_blocks_of_rows_are_the_pattern(rows_at_once, biased):
    q, k = queries(heads=2)
    bias = torch.randn(1, 2, LAYOUT.tokens, LAYOUT.tokens) if biased else None
    call = AttentionCall(q, k, k, scale=0.3, bias=bias)
    for seen in (call, AttentionCall(q, k, k, pattern_BHTT=call.pattern())):
        blocks = list(seen.row_blocks(rows_at_once))
        assert [row for rows, _ in blocks for row in range(rows.start, rows.stop)] == list(range(LAYOUT.tokens))
        torch.testing.assert_close(torch.cat([block for _, block in blocks], dim=-2), call.pattern())


WHOLE = [name for name in KINDS if name != "timm_cait"]
"""Kinds in whose blocks every token attends to every other."""


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # the model's own
@pytest.mark.parametrize(
    ("name", "amp"), [(name, False) for name in WHOLE] + [(name, True) for name in sorted(WHOLE)[::6]]
)
def test_every_kind_of_model(name, amp):
    model, pixels, layout = MODELS[name](), images(name), TokenLayout(KINDS[name].grid, KINDS[name].prefix)
    size = KINDS[name].image_size
    analysis = tokenlens.analyze(model, pixels, metrics=BOTH, amp=amp, img_size=size)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        whole = tokenlens.record(model, pixels, patterns=True, sites=[], img_size=size).patterns
    precise = [whole[block].double() for block in sorted(whole)]
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    for block, pattern in enumerate(precise):
        expected = mean_attention_distance(layout.patches_of(layout.patches_of(pattern), -1), layout.grid)
        rows = analysis.select("mean_attention_distance", part="distance", block=block)
        np.testing.assert_allclose(rows["value"], expected.mean(0), **tolerance)
        if not layout.has("cls"):
            continue
        row = attention_rollout(precise[: block + 1])[:, layout.positions("cls")[0]]
        for group in layout.groups:
            found = analysis.select("attention_rollout", part="mass", block=block, group=f"cls-{group}")
            expected = row[:, list(layout.positions(group))].sum(-1).mean()
            np.testing.assert_allclose(found["value"], [expected], **tolerance)
    reason = {} if layout.has("cls") else {"attention_rollout": "the model has no [CLS] token"}
    assert analysis.not_applicable == reason
