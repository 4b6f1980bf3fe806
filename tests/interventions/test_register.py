"""A test-time register takes over what planted register neurons write."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from tests.support.tiny_models import KINDS, MODELS, images
from tests.support.watching import hooks
from tokenlens.figures import NothingToDraw
from tokenlens.interventions import intervene

NEURON, BLOCK, PATCHES = 7, 1, (3, 9)
HEIGHT = 40.0


@pytest.fixture(scope="module")
def planted():
    """A model in which neuron 7 of block 1 fires at bright patches alone, and writes a vector of large norm."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **options).eval()
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(1)), dim=0)
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc2.weight.mul_(0.1)
            block.attn.proj.weight.mul_(0.1)
        model.patch_embed.proj.weight[:, :, :, :] = 0.7 * direction[:, None, None, None] / 192
        model.pos_embed.copy_(2 * torch.nn.functional.normalize(torch.randn_like(model.pos_embed), dim=-1))
        model.blocks[BLOCK].mlp.fc1.weight[NEURON] = 2 * direction
        model.blocks[BLOCK].mlp.fc1.bias[NEURON] = -6
        model.blocks[BLOCK].mlp.fc2.weight[:, NEURON] = HEIGHT * torch.randn(32).sign() / 32**0.5
    pixels = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for patch in PATCHES:  # the last image has none
        row, column = divmod(patch, 4)
        pixels[:5, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 5
    return model, pixels


def norms(model, pixels):
    seen = []
    with model.blocks[-1].register_forward_hook(lambda _m, _a, x: seen.append(x[:, 1:].norm(dim=-1))), torch.no_grad():
        model(pixels)
    return seen[0]


def test_high_norms_move_to_the_added_token(planted):
    model, pixels = planted
    before_BP = norms(model, pixels)
    ratio = before_BP / before_BP.median(dim=1, keepdim=True).values
    assert (ratio[:5, list(PATCHES)] > 3).all(), "the plant is there"
    found = intervene(model, pixels, replace="high_norm", by="register", blocks=[-1], batch_size=4)
    of = {name: found.select(name, replace="high_norm") for name in ("max_patch_norm", "high_norm_share")}
    after = {name: rows.set_index("part")["value"] for name, rows in of.items()}
    assert after["high_norm_share"]["after"] == 0
    assert after["high_norm_share"]["change"] == pytest.approx(-5 / 6 * 2 / 16)
    assert after["max_patch_norm"]["change"] < -0.5 * before_BP[:5].amax(1).mean()
    [register] = found.select("register_norm", replace="high_norm")["value"]
    assert register > 0.5 * before_BP[:5].amax(1).mean() * 5 / 6
    assert set(found.select("final_cosine", replace="high_norm")["n"]) == {6}, "every image has the added token"
    control = found.select("high_norm_share", replace="high_norm_control", part="change")
    assert control["value"].abs().max() < 0.5 * 5 / 6 * 2 / 16, "other neurons do not take the norms away"
    assert "0.00 % of the patches have high norms behind the last block (-10.42 points" in found.sentences[0]
    assert hooks(model) == 0
    assert torch.equal(norms(model, pixels), before_BP)


def test_the_effect_is_that_of_hooks_by_hand(planted):
    model, pixels = planted
    found = intervene(model, pixels, replace="high_norm", by="register", blocks=[-1])

    def append(_module, args):
        return (torch.cat([args[0], torch.zeros(len(args[0]), 1, 32)], dim=1),)

    def move(_module, args):
        hidden = args[0].clone()
        hidden[:, -1, NEURON] = hidden[:, 1:-1, NEURON].max(dim=1).values
        hidden[:, 1:-1, NEURON] = 0
        return (hidden,)

    with torch.no_grad():
        before = model.forward_features(pixels)
        with (
            model.blocks[0].register_forward_pre_hook(append),
            model.blocks[BLOCK].mlp.fc2.register_forward_pre_hook(move),
        ):
            after = model.forward_features(pixels)[:, :-1]
    expected = torch.cosine_similarity(before, after, dim=-1)
    rows = found.select("final_cosine", replace="high_norm").set_index("group")
    assert rows.loc["cls", "value"] == pytest.approx(expected[:, 0].mean().item(), abs=1e-6)
    assert rows.loc["patch", "value"] == pytest.approx(expected[:, 1:].mean().item(), abs=1e-6)


def test_without_high_norm_patches_nothing_is_added():
    found = intervene(MODELS["timm_vit"](), images("timm_vit", 3), replace="high_norm", by=["register"], blocks=[1])
    assert set(found.table["metric"]) <= {"replaced_tokens"}
    assert "no image has such a token" in found.not_applicable["high_norm"]
    with pytest.raises(NothingToDraw, match="has no effects: high_norm: no image has such a token"):
        found.plot("intervention_effect")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("timm_vit", {"replace": "cls"}, "use it with replace='high_norm'"),
        ("timm_vit", {"replace": "high_norm", "site": "norm1"}, "site='resid_post'"),
        ("timm_dinov2_registers", {"replace": "high_norm"}, "this model has registers"),
        ("hf_dinov2", {"replace": "high_norm"}, "VisionTransformers of timm"),
        ("timm_eva_clip", {"replace": "high_norm"}, "VisionTransformers of timm"),
    ],
)
def test_where_it_is_not_possible_it_says_why(name, options, words):
    """`intervene --by register` where no token can be added"""
    assert name in KINDS
    model = MODELS[name]()
    with pytest.raises(LookupError, match=words):
        intervene(model, images(name, 2), by="register", **options)
    assert hooks(model) == 0


def test_it_finds_the_planted_neuron(planted):
    from tokenlens.interventions._neurons import NeuronSums

    hidden = {0: torch.zeros(2, 4, 300), 2: torch.zeros(2, 4, 300)}
    hidden[2][:, 3, 11] = 5.0
    hidden[0][:, 1, 4] = 50.0  # at a patch that is not marked
    marked = torch.zeros(2, 4, dtype=torch.bool)
    marked[:, 3] = True
    sums = NeuronSums()
    assert sums.largest() == {}
    sums.update(hidden, marked)
    [(block, neurons)] = sums.largest().items()
    assert (block, neurons.tolist()) == (2, [11])
    assert np.sum([len(found) for found in sums.largest(0.005).values()]) == 3
