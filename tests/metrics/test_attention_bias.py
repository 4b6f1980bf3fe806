"""Attention to a learned key is a source of its own: no mass is lost, and none is counted as that of a token."""

import numpy as np
import pytest
import torch

import tokenlens
from tests.models.test_attention_bias import NAME, biased
from tests.support.tiny_models import images
from tokenlens.families import find_family
from tokenlens.figures import figures
from tokenlens.figures.base import group_title

SPECIAL = 5


@pytest.fixture(scope="module", params=["fused", "softmax"])
def model(request):
    model = biased()
    for block in model.blocks:
        block.attn.fused_attn = request.param == "fused"
    with torch.no_grad():  # a head whose queries all go to the learned key
        attention = model.blocks[1].attn
        attention.qkv.weight[:16], attention.qkv.bias[:16] = 0, 1
        attention.bias_k[:16] = 30
        attention.bias_v[:16] = 0
    return model


@pytest.fixture(scope="module")
def analysis(model):
    return tokenlens.analyze(model, images(NAME), metrics="all")


def patterns(model):
    """Return softmax over [keys; k'] of every block, (B, H, T, T + 1), in float64 from hooks alone."""
    seen = []
    keep = lambda _module, _args, out: seen.append(out.double())  # noqa: E731
    hooks = [block.attn.qkv.register_forward_hook(keep) for block in model.blocks]
    with torch.no_grad():
        model(images(NAME))
    for hook in hooks:
        hook.remove()
    found = []
    for block, qkv in zip(model.blocks, seen, strict=True):
        q, k, _ = qkv.unflatten(-1, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        learned = block.attn.bias_k.detach().double().view(1, 2, 1, 16).expand(len(q), -1, -1, -1)
        found.append((q @ torch.cat([k, learned], dim=-2).mT / 4).softmax(-1).numpy())
    return found


def value(analysis, metric, **where):
    rows = analysis.table[analysis.table["metric"] == metric]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    return rows["value"].item()


def test_the_mass_of_the_bias_is_reported_and_the_rest_is_that_of_tokens(model, analysis):
    for block, pattern in enumerate(patterns(model)):
        groups = {"cls": [0], "reg": list(range(1, SPECIAL)), "patch": list(range(SPECIAL, 21)), "bias": [21]}
        for head in range(2):
            for query, key in [("cls", key) for key in groups] + [("patch", key) for key in ("cls", "reg", "bias")]:
                expected = pattern[:, head][:, groups[query]][..., groups[key]].sum(-1).mean()
                got = value(analysis, "attention_mass", block=block, head=head, group=f"{query}-{key}")
                assert got == pytest.approx(expected, rel=1e-5, abs=1e-7)
            shares = [value(analysis, "attention_mass", block=block, head=head, group=f"cls-{key}") for key in groups]
            assert sum(shares) == pytest.approx(1, abs=1e-6)
        masses = analysis.table.query("metric == 'attention_rollout' and part == 'mass' and block == @block")["value"]
        assert masses.sum() == pytest.approx(1, abs=1e-6)


def test_recorded_rows_and_the_bias_sum_to_1(model):
    recording = tokenlens.record(model, images(NAME), sites=["q", "k", "v"], patterns=True)
    for block, pattern in enumerate(patterns(model)):
        assert recording[block, "k"].shape == recording[block, "v"].shape == (2, 2, 21, 16)
        recorded = recording.patterns[block]
        assert recorded.shape == (2, 2, 21, 21)
        np.testing.assert_allclose(recorded, pattern[..., :21], rtol=1e-4, atol=1e-6)
        row = recording.attention_rows(block, 1, [0, 7])
        np.testing.assert_allclose(row, pattern[1][:, [0, 7], :21], rtol=1e-4, atol=1e-6)


def test_the_parts_of_the_cls_update_add_up_with_the_bias_as_a_source(model, analysis):
    recording = tokenlens.record(model, images(NAME), sites=["attn_out"])
    family = find_family(model)
    for block, pattern in enumerate(patterns(model)):
        rows = analysis.table.query("metric == 'cls_update' and block == @block")
        shares = rows[rows["part"].isin(["share", "bias_share"])]
        assert set(shares["group"]) == {"cls", "cls-cls", "cls-reg", "cls-patch", "cls-bias"}
        assert shares["value"].sum() == pytest.approx(1, abs=2e-5)
        learned = torch.from_numpy(pattern[:, :, 0, 21:]) * model.blocks[block].attn.bias_v.detach().view(1, 2, 16)
        part = family.attention_output(model.blocks[block]).split(learned.flatten(1).unsqueeze(1))[:, 0]
        update = recording[block, "attn_out"][:, 0].double()
        expected = ((part * update).sum(-1) / update.square().sum(-1)).mean().item()
        assert value(analysis, "cls_update", block=block, part="share", group="cls-bias") == pytest.approx(
            expected, rel=1e-4, abs=1e-6
        )


def test_a_sink_in_the_bias_is_one_of_its_group(analysis):
    found = {
        (row.part, row.group): row.value
        for row in analysis.table.query("metric == 'attention_sink' and block == 1 and head == 0").itertuples()
    }
    assert found["sink", "bias"] == found["nop", "all"] == 1
    assert found["sink", "cls"] == found["sink", "reg"] == found["sink", "patch"] == 0


def test_figures_show_it(analysis):
    assert {"cls-bias", "patch-bias"} <= set(figures.module("head_matrix").frame(analysis)["quantity"])
    assert {"bias", "output bias"} <= set(figures.module("cls_update").frame(analysis)["source"])
    assert "bias" in set(figures.module("attention_sink").frame(analysis)["group"])
    assert group_title("cls-bias") == "CLS → attention bias"
