"""The parts of CLS's update add up to attn_out in every family, and planted sources are found."""

import numpy as np
import pytest
import torch
from timm.layers import Attention
from torch import nn

import tokenlens
from tests.metrics._cases import train
from tests.support.tiny_models import KIN, KINDS, MODELS, images
from tokenlens.families import find_family
from tokenlens.specialization import specialize

EVERY = {name: kind for name, kind in (KINDS | KIN).items() if "cls" in kind.prefix and not kind.special_blocks}
SEVERAL = [name for name, kind in EVERY.items() if kind.prefix.count("cls") > 1]


def _check(model, x):
    """Return the analysis after checking that shares and parts add up to the recorded update."""
    analysis = tokenlens.analyze(model, x, metrics=["cls_update"])
    rows = analysis.table
    assert set(rows["block"]) == set(range(analysis.blocks))
    for _, block in rows.groupby("block"):
        total = block.loc[block["part"].isin(["share", "bias_share"]), "value"].sum()
        assert total == pytest.approx(1, abs=2e-5)
        for group, shares in block[block["part"] == "head_share"].groupby("group"):
            whole = block.loc[(block["part"] == "share") & (block["group"] == group), "value"].item()
            assert shares["value"].sum() == pytest.approx(whole, abs=1e-9)
    return analysis


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")  # the model's own
@pytest.mark.parametrize("name", EVERY)
def test_the_parts_add_up_in_every_family(name):
    analysis = _check(MODELS[name](), images(name))
    groups = {f"cls-{group}" for group in (*EVERY[name].prefix, "patch")}
    assert set(analysis.table["group"]) == {"cls", *groups}
    assert not analysis.not_applicable


def test_every_family_with_cls_is_covered():
    assert {kind.family for kind in EVERY.values()} >= {"timm_vit", "timm_eva", "timm_beit", "timm_relpos", "hf_vit"}
    assert SEVERAL


@pytest.mark.parametrize("name", ["timm_eva_clip", "timm_eva_post_norm", "timm_parallel_things", "timm_dinov3"])
def test_the_parts_are_vectors_that_add_up_to_attn_out(name):
    """Compare with hooks alone: the update minus the parts is 0 channel by channel, biases of norms included."""
    model, x = MODELS[name](), images(name)
    recording = tokenlens.record(model, x, sites=["attn_out", "v"], patterns=True)
    family = find_family(model)
    for index, block in enumerate(family.blocks(model)):
        row_BHT = recording.patterns[index][:, :, 0].double()
        values_BHTd = row_BHT.unsqueeze(-1) * recording[index, "v"].double()
        parts = family.attention_output(block).split(values_BHTd.sum(2, keepdim=True).transpose(1, 2).flatten(2))
        torch.testing.assert_close(parts.sum(1).float(), recording[index, "attn_out"][:, 0], atol=2e-6, rtol=1e-5)


def test_a_gate_is_held_fixed():
    model = MODELS["timm_vit"]()
    for block in model.blocks:
        block.attn = Attention(32, num_heads=2, qkv_bias=True, gated=True, scale_norm=True, norm_layer=nn.LayerNorm)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            train(block.attn)
    _check(model.eval(), images("timm_vit"))


def test_specialized_models_use_the_weights_of_cls():
    model, x = MODELS["timm_dinov2"](), images("timm_dinov2")
    model = specialize(model, {"norm": "all", "layer_scale": "all", "proj": "all"})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".cls." in name:
                parameter.mul_(1.5).add_(0.1)
    _check(model, x)


def test_a_planted_source_is_found():
    """Values that only the patches have: all of the update comes from them; the bias alone: all from the bias."""
    model, x = MODELS["timm_vit"](), images("timm_vit")
    attention = model.blocks[1].attn
    with torch.no_grad():
        attention.qkv.weight[64:] = 0
        attention.qkv.bias[64:] = 0
    found = _share(model, x)
    assert found["bias_share", "cls"] == pytest.approx(1)
    assert found["share", "cls-patch"] == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        attention.qkv.bias[64:] = 1
        attention.proj.bias.zero_()
    recording = tokenlens.record(model, x, sites=[], patterns=True)
    mass = recording.patterns[1][:, :, 0, 1:].sum(-1)
    found = _share(model, x)
    assert found["bias_share", "cls"] == 0
    assert np.isclose(found["share", "cls-patch"] + found["share", "cls-cls"], 1, atol=1e-6)
    assert float(mass.min()) - 0.05 < found["share", "cls-patch"] < float(mass.max()) + 0.05


def _share(model, x):
    rows = tokenlens.analyze(model, x, metrics=["cls_update"]).select("cls_update", block=1)
    rows = rows[rows["part"].isin(["share", "bias_share"])]
    return dict(zip(zip(rows["part"], rows["group"], strict=True), rows["value"], strict=True))


def test_what_cannot_be_split_says_why():
    x = images("timm_parallel")
    cait = tokenlens.analyze(MODELS["timm_cait"](), images("timm_cait"), metrics=["cls_update", "token_norm"])
    assert "the model has none of the sites attn_out" in cait.not_applicable["cls_update"]
    analysis = tokenlens.analyze(MODELS["timm_parallel"](), x, metrics=["cls_update", "token_norm"])
    assert analysis.not_applicable["cls_update"] == "the model has no [CLS] token"


def test_a_family_that_forgets_a_map_is_told():
    class Forgetful(type(find_family(MODELS["timm_dinov2"]()))):
        def attention_output(self, block):
            found = super().attention_output(block)
            return type(found)((found.branches[0][:-1],))

    with pytest.raises(ValueError, match=r"block 0: the parts of CLS's update do not add up.*attention_output"):
        tokenlens.analyze(MODELS["timm_dinov2"](), images("timm_dinov2"), metrics=["cls_update"], family=Forgetful())
