"""Planted sinks are found, by kind and by token group, and absent ones are not; families without W_O say so."""

import numpy as np
import pytest
import torch

import tokenlens
from tests.metrics.attention_sink import _one_head
from tests.support.tiny_models import HEADS, KINDS, MODELS, images
from tokenlens.families import find_family
from tokenlens.metrics.attention_sink import find_sinks, stable_rank
from tokenlens.recording.attention import AttentionCall

CHANNEL, KEY, D = 3, 5.0, 32


def planted(name, group, value_of_sink):
    """Return a model whose first head attends to the last token of a group: its channel 3 is large, and keys read it.

    The head's values read channel 3 with the weight ``value_of_sink``, and the other channels.
    """
    model = MODELS[name]()
    tokens = {"cls": model.cls_token, "reg": getattr(model, "reg_token", None)}
    block = model.blocks[0]
    with torch.no_grad():
        model.pos_embed[..., CHANNEL] = 0
        model.patch_embed.proj.weight[CHANNEL] = model.patch_embed.proj.bias[CHANNEL] = 0
        for token in tokens.values():
            if token is not None:
                token[..., CHANNEL] = 0
        if group == "patch":
            model.pos_embed[0, -1, CHANNEL] = 100
        else:
            tokens[group][0, -1] = 0
            tokens[group][0, -1, CHANNEL] = 100
        block.norm1.weight.fill_(1)
        block.norm1.bias.zero_()
        qkv, head = block.attn.qkv, D // HEADS
        qkv.weight[:head] = qkv.bias[:head] = qkv.weight[D : D + head] = 0
        qkv.bias[0], qkv.weight[D, CHANNEL] = 20, KEY
        values = qkv.weight[2 * D : 2 * D + head]
        values -= values.mean(1, keepdim=True)  # the norm centres: the sink's other channels are all alike
        values[:, CHANNEL] = value_of_sink
        qkv.bias[2 * D : 2 * D + head] = 0
    return model


def numbers(model, x, head=0, block=0):
    rows = tokenlens.analyze(model, x, metrics=["attention_sink"]).select("attention_sink", block=block)
    rows = rows[rows["head"] == head]
    return dict(zip(zip(rows["part"], rows["group"], strict=True), rows["value"], strict=True)), rows


@pytest.mark.parametrize(
    ("name", "group"), [("timm_vit", "cls"), ("timm_dinov2_registers", "reg"), ("timm_vit", "patch")]
)
@pytest.mark.parametrize(("value", "kind"), [(0.0, "nop"), (1.0, "broadcast")])
def test_a_planted_sink_is_found(name, group, value, kind):
    found, rows = numbers(planted(name, group, value), images(name))
    assert found[kind, "all"] == found["sink", group] == 1
    assert sum(found[part, "all"] for part in ("none", "nop", "broadcast", "other")) == 1
    assert sum(share for (part, _), share in found.items() if part == "sink") == 1
    assert found["queries", "all"] == 1
    assert found["mass", "all"] > 0.9
    # Two images of two: Wilson's interval, not one of no width.
    low = rows.loc[rows["part"] == kind, "ci_low"].item()
    assert low == pytest.approx(1 / (1 + 1.959964**2 / 2), rel=1e-6)


def test_a_sink_between_the_kinds_is_neither():
    """A value of strength 0.2 to 0.5 is no NOP and no broadcast."""
    found, _ = numbers(planted("timm_vit", "cls", 0.05), images("timm_vit"))
    assert 0.2 < found["strength", "all"] < 0.5
    assert found["other", "all"] == found["sink", "cls"] == 1


@pytest.mark.parametrize("name", ["timm_vit", "timm_dinov2_registers"])
def test_an_absent_sink_is_not_found(name):
    model = planted(name, "cls", 1.0)
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias[0] = 0  # queries do not read the keys: attention is uniform
    found, _ = numbers(model, images(name))
    tokens = len(KINDS[name].prefix) + 16
    assert found["none", "all"] == 1
    assert found["mass", "all"] == pytest.approx(1 / tokens, rel=1e-5)
    assert all(found[part, "all"] == 0 for part in ("queries", "nop", "broadcast", "other"))
    assert all(share == 0 for (part, _), share in found.items() if part == "sink")


def test_most_queries_means_nine_of_ten():
    """An event needs 90 % of all queries, the special ones among them, with at least half of their attention."""
    for queries, expected in ((17, 0.85), (18, 0.9)):
        pattern = torch.full((1, 1, 20, 20), 0.01)
        pattern[..., :queries, 7] = 0.5
        x = torch.zeros(1, 1, 20, 4)
        sink, _, share, _ = find_sinks(AttentionCall(x, x, x, pattern_BHTT=pattern))
        assert sink.item() == 7
        assert share.item() == pytest.approx(expected)


def test_the_stable_rank_does_not_change_with_scale():
    x = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    singular = torch.linalg.svdvals(x)
    torch.testing.assert_close(stable_rank(49 * x.mT @ x), singular.square().sum(-1) / singular[:, 0] ** 2)


def _projection(name, model, block):
    """Return W_O (D, C) of a block by the names of its modules."""
    module = find_family(model).blocks(model)[block]
    if name == "timm_parallel_things":
        return torch.cat([attention.attn.proj.weight for attention in module.attns], dim=1)
    return module.attn.proj.weight


@pytest.mark.parametrize("name", ["timm_beit", "timm_dinov3", "timm_parallel_things", "dino_hub"])
def test_agrees_with_float64_in_other_families(name):
    """With rotary embedding, relative positions, parallel attentions and unfused kernels."""
    model, x = MODELS[name](), images(name)
    table = tokenlens.analyze(model, x, metrics=["attention_sink"]).select("attention_sink")
    recording = tokenlens.record(model, x, sites=["v"], patterns=True)
    for block, patterns in recording.patterns.items():
        weight = _projection(name, model, block).detach().double().numpy()
        size = weight.shape[1] // patterns.shape[1]
        for head in range(patterns.shape[1]):
            mine = weight[:, head * size : (head + 1) * size]
            pairs = zip(
                patterns[:, head].double().numpy(), recording[block, "v"][:, head].double().numpy(), strict=True
            )
            each = [_one_head(pattern, v, mine) for pattern, v in pairs]
            rows = table[(table["block"] == block) & (table["head"] == head)].set_index("part")["value"]
            for part in ("mass", "queries", "strength", "none", "nop", "broadcast", "other"):
                assert rows[part] == pytest.approx(np.mean([one[part] for one in each]), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("timm_parallel", "adds attention and MLP before its residual stream"),
        ("timm_eva_clip", "norm or gate between the heads and the output projection"),
        ("timm_cait", "only CLS attends to the other tokens"),
    ],
)
def test_models_without_it_say_why(name, reason):
    analysis = tokenlens.analyze(MODELS[name](), images(name), metrics=["attention_sink", "token_norm"])
    assert reason in analysis.not_applicable["attention_sink"]


@pytest.mark.parametrize("name", ["timm_parallel_things", "timm_post_norm", "hf_siglip2_vision", "clip_openai"])
def test_the_kinds_of_an_image_sum_to_1(name):
    rows = tokenlens.analyze(MODELS[name](), images(name), metrics=["attention_sink"]).table
    kinds = rows[rows["part"].isin(["none", "nop", "broadcast", "other"])].groupby(["block", "head"])["value"].sum()
    assert np.allclose(kinds, 1)
    assert set(rows.loc[rows["part"] == "sink", "group"]) == {*KINDS[name].prefix, "patch"}


def test_a_specialized_projection_has_two_strengths():
    model = tokenlens.specialize(MODELS["timm_vit"](), {"proj": "all"})
    analysis = tokenlens.analyze(model, images("timm_vit"), metrics=["attention_sink", "token_norm"])
    assert "separate weights" in analysis.not_applicable["attention_sink"]
