"""CaiT: patch blocks without CLS, class-attention blocks that update CLS alone."""

import pytest
import torch

import tokenlens
from tests.support.tiny_models import MODELS, images
from tests.support.watching import watch
from tokenlens import plot
from tokenlens.analysis import Analysis
from tokenlens.families import find_family, norm_parameters
from tokenlens.specialization import specialize


@pytest.fixture(scope="module")
def watched():
    model, x = MODELS["timm_cait"](), images("timm_cait", 3)
    witness, _ = watch(model, x)
    return model, x, witness


def test_patch_blocks_are_what_timm_calls_intermediate_features(watched):
    model, x, witness = watched
    with torch.no_grad():
        expected = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    for block, features in enumerate(expected):
        assert torch.equal(witness.sites[block, "resid_post"], features)
        assert torch.equal(witness.norms[block, "norm2"][1], witness.sites[block, "resid_mid"])
    assert torch.equal(witness.sites[1, "resid_pre"], expected[0])
    assert {site for block, site in witness.sites if block == 1} == {
        *("resid_pre", "norm1", "resid_mid", "norm2", "resid_post")
    }


def test_class_blocks_join_cls_and_patches(watched):
    model, x, witness = watched
    assert {site for block, site in witness.sites if block == 3} == {"resid_pre", "norm1"}
    for block in (2, 3):
        assert torch.equal(witness.sites[block, "resid_pre"][:, 1:], witness.sites[1, "resid_post"])
    with torch.no_grad():
        assert torch.equal(witness.sites[None, "final_norm"], model.forward_features(x))
        first = model.blocks_token_only[0](witness.sites[1, "resid_post"], model.cls_token.expand(3, -1, -1))
    assert torch.equal(witness.sites[3, "resid_pre"][:, :1], first)
    for module, x_BTD, y_BTD in witness.norms.values():
        norm, x_BTD = norm_parameters(module), x_BTD.double()
        variance, mean = torch.var_mean(x_BTD, dim=-1, keepdim=True, correction=0)
        expected = (x_BTD - mean) / (variance + norm.eps).sqrt() * norm.weight_patch + norm.bias_patch
        torch.testing.assert_close(y_BTD.double(), expected, atol=1e-5, rtol=1e-5)


def test_the_row_of_cls_equals_float64_softmax(watched):
    model, _, witness = watched
    assert sorted(witness.calls) == [2, 3]
    for block, call in witness.calls.items():
        attention = model.blocks_token_only[block - 2].attn
        tokens = witness.sites[block, "norm1"].double()
        q = torch.nn.functional.linear(tokens[:, 0], attention.q.weight.double(), attention.q.bias.double())
        k = torch.nn.functional.linear(tokens, attention.k.weight.double(), attention.k.bias.double())
        q, k = (x.unflatten(-1, (2, -1)) for x in (q, k))
        expected = (torch.einsum("bhd,bthd->bht", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        torch.testing.assert_close(call.rows([0])[:, :, 0].double(), expected, atol=1e-6, rtol=1e-5)


def test_its_analysis_has_each_number_in_the_blocks_where_it_applies(watched, tmp_path):
    model, x, _ = watched
    found = tokenlens.analyze(model, x, metrics="all", pretrained=False)
    blocks = {name: sorted(set(rows["block"].dropna())) for name, rows in found.table.groupby("metric")}
    assert blocks["cls_patch_cosine"] == blocks["attention_mass"] == [2, 3]
    assert blocks["patch_patch_cosine"] == [0, 1, 2, 3]
    assert blocks["effective_rank"] == [0, 1]
    assert found.not_applicable["attention_rollout"].startswith("blocks 0 to 1: the model has no [CLS] token; blocks 2")
    notes = " ".join(found.provenance["notes"])
    assert "rows need not sum to 1" in notes
    assert "Left out in blocks 2 to 3 and the final norm: the model has none of the sites resid_post" in notes
    maps = found.arrays["cls_attention_map/mean"].values
    assert maps.shape == (4, 2, 4, 4)
    assert torch.tensor(maps).isnan().flatten(1).any(1).tolist() == [True, True, False, False]
    found.save(tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "update CLS alone" in page
    assert Analysis.load(tmp_path / "run").table.equals(found.table)


def test_maps_know_which_tokens_a_block_has(watched):
    model, x, _ = watched
    recording = tokenlens.record(model, x)
    assert recording.layout_of(0).prefix == ()
    assert recording.layout_of(2).prefix == ("cls",)
    plot.attention_overlay(recording, block=3)
    plot.cosine_to_patch(recording, block=1, token=(1, 2))
    plot.norm_map(recording, block=0)
    with pytest.raises(LookupError, match="no token 'cls'"):
        plot.cosine_to_patch(recording, block=0, token="cls")
    with pytest.raises(LookupError, match="only the first 1 of the tokens attend in block 2"):
        plot.attention_overlay(recording, block=2, query=(1, 1))
    for view in tokenlens.explore(recording).exploration.views(tokenlens.explore(recording).exploration.start()):
        assert view.cosine_hw is not None


def test_it_is_not_specialized(watched):
    model, _, _ = watched
    with pytest.raises(LookupError, match="CaiT cannot be specialized"):
        specialize(model, "paper")
    assert find_family(model).name == "timm_cait"
