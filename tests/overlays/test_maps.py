"""Maps of one token over the patch grid agree with what NumPy makes of the same recording."""

# Shapes: N images, T tokens, P patches, D channels, H heads, d channels of one head.

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import tokenlens
from tests.support.tiny_models import KINDS, build, images
from tokenlens.metrics.token_norm import high_norm_share
from tokenlens.overlays import maps as token_maps
from tokenlens.recording.recording import Recording
from tokenlens.tokens import TokenLayout

KIND_NAMES = (
    "timm_vit_wide",
    "timm_dinov2_registers",
    "timm_siglip",
    "timm_beit",
    "timm_beit_unfused",
    "hf_vit_eager",
    "timm_naflexvit",
    "timm_eva02",
)


@cache
def recorded(kind: str, patterns: bool | None = None) -> Recording:
    return tokenlens.record(build(kind), images(kind), img_size=KINDS[kind].image_size, patterns=patterns)


def any_patch(layout: TokenLayout) -> tuple[int, int]:
    return layout.grid[0] - 1, 1


def tokens_of(layout: TokenLayout) -> list[token_maps.Token]:
    return [*token_maps.prefix_tokens(layout), any_patch(layout)]


def test_tokens_are_where_the_layout_says():
    layout = TokenLayout(grid=(2, 3), prefix=("cls", "reg", "dist", "reg"), patch_start=1)
    assert token_maps.prefix_tokens(layout) == ["cls", "dist", "reg0", "reg1"]
    found = {token: token_maps.position_of(layout, token) for token in ("cls", "dist", "reg0", "reg1", (0, 0), (1, 2))}
    assert found == {"cls": 0, (0, 0): 1, (1, 2): 6, "reg0": 7, "dist": 8, "reg1": 9}
    assert token_maps.position_of(TokenLayout(grid=(2, 3), prefix=("cls",), patch_start=0), "cls") == 6


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("cls", "no token 'cls'; it has reg0, reg1 and patches"),
        ("reg2", "no token 'reg2'"),
        ("reg", "no token 'reg'"),
        ((2, 0), r"row 0 to 1 and column 0 to 2, got \(2, 0\)"),
        ((0, -1), r"got \(0, -1\)"),
        ((1,), r"got \(1,\)"),
    ],
)
def test_what_is_not_there_is_named(token, text):
    with pytest.raises(LookupError, match=text):
        token_maps.position_of(TokenLayout(grid=(2, 3), prefix=("reg", "reg")), token)


def test_titles():
    assert [token_maps.token_title(token) for token in ("cls", "dist", "reg12", (3, 5))] == [
        "[CLS]",
        "distillation",
        "register 12",
        "patch (3, 5)",
    ]


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_cosines_agree_with_numpy(kind):
    recording = recorded(kind)
    layout = recording.layout
    sites = {site for block, site in recording if block == 1}
    for site in sorted(sites):
        x_XTD = recording[1, site][1].double().numpy()
        x_XTD = x_XTD[None] if x_XTD.ndim == 2 else x_XTD
        for token in tokens_of(layout):
            at = token_maps.position_of(layout, token)
            dots_XT = np.einsum("xtd,xd->xt", x_XTD, x_XTD[:, at])
            lengths_XT = np.linalg.norm(x_XTD, axis=-1)
            cosines_T = (dots_XT / (lengths_XT * lengths_XT[:, at : at + 1])).mean(0)
            found = token_maps.cosine_map(token_maps.tokens_at(recording, 1, 1, site), layout, at)
            np.testing.assert_allclose(found, cosines_T[layout.patch_slice].reshape(layout.grid), atol=2e-6)
            if not isinstance(token, str):
                assert found[token] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_attention_is_the_models_own(kind):
    """Rows from q, k, scale and bias (or the model's own softmax) are rows of the whole pattern."""
    lazy, whole = recorded(kind), recorded(kind, patterns=True)
    assert set(lazy.patterns) == (set() if KINDS[kind].scores is None else {0, 1})
    layout = lazy.layout
    for block in (0, 1):
        for token in tokens_of(layout):
            at = token_maps.position_of(layout, token)
            rows_HT = whole.patterns[block][1, :, at].numpy()
            mean_T = token_maps.attention_of(lazy, 1, block, token)
            np.testing.assert_allclose(mean_T.numpy(), rows_HT.mean(0), atol=1e-6)
            np.testing.assert_allclose(
                token_maps.attention_of(lazy, 1, block, token, head=1).numpy(), rows_HT[1], atol=1e-6
            )
            shares = token_maps.attention_shares(mean_T, layout)
            assert set(shares) == set(layout.groups)
            assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
            map_hw = token_maps.attention_map(mean_T, layout)
            assert map_hw.mean() == pytest.approx(1, abs=1e-5)
            patches = mean_T[layout.patch_slice].numpy()
            np.testing.assert_allclose(map_hw.ravel(), patches / patches.mean(), rtol=1e-4)


def test_uniform_attention_is_one_everywhere():
    layout = TokenLayout(grid=(3, 4))
    np.testing.assert_allclose(token_maps.attention_map(torch.full((13,), 1 / 13), layout), 1, rtol=1e-6)


def test_attention_counts_in_the_budget():
    recording = recorded("timm_beit")
    biases = [bias for _, bias in recording.scores.values()]
    assert all(bias is not None for bias in biases)
    assert recording.nbytes == sum(x.nbytes for x in [*recording.values(), *biases])


def test_attention_that_was_not_recorded():
    without = tokenlens.record(build("timm_vit"), images("timm_vit"), sites=["norm1", "q"])
    with pytest.raises(LookupError, match=r"attention of block 0 was not recorded.*sites q and k"):
        token_maps.attention_of(without, 0, 0, "cls")
    explicit = tokenlens.record(build("hf_vit_eager"), images("hf_vit_eager"))
    with pytest.raises(LookupError, match="patterns=True where the model computes softmax"):
        token_maps.attention_of(explicit, 0, 0, "cls")


def test_choices_that_do_not_exist():
    recording = tokenlens.record(build("timm_vit"), images("timm_vit"), sites=["q", "norm1"], blocks=[1])
    at = token_maps.tokens_at
    for arguments, text in (
        ((2, 1, "norm1"), "images 0 to 1, got 2"),
        ((-1, 1, "norm1"), "images 0 to 1, got -1"),
        ((0, 0, "norm1"), r"block 0 was not recorded; recorded blocks: \[1\]"),
        ((0, -2, "norm1"), "block -2"),
        ((0, 1, "norm2"), "norm2 of block 1 was not recorded; recorded sites there: norm1, q"),
        ((0, 1, "final_norm"), "final_norm of the model was not recorded"),
        ((0, 1, "layer"), "unknown site 'layer'; sites are resid_pre, norm1"),
        ((0, 1, "q", 2), "heads 0 to 1, got 2"),
        ((0, 1, "norm1", 0), "heads at q, k and v only; at norm1 leave out head"),
    ):
        with pytest.raises(LookupError, match=text):
            at(recording, *arguments)
    assert torch.equal(at(recording, 0, -1, "q", 1)[0], recording[1, "q"][0, 1])


def test_high_norm_tokens_are_those_of_the_metric():
    layout = TokenLayout(grid=(3, 4), prefix=("reg", "cls"), patch_start=1)
    x_TD = torch.randn(14, 8, generator=torch.Generator().manual_seed(0))
    x_TD = x_TD / x_TD.norm(dim=-1, keepdim=True)
    x_TD[0] *= 50  # a register is no patch
    x_TD[1 + 5] *= 3.01
    x_TD[1 + 11] *= 2.99
    found = token_maps.norm_map(x_TD[None], layout)
    assert np.argwhere(found.high_hw).tolist() == [[1, 1]]
    assert found.threshold == pytest.approx(3, abs=1e-4)
    assert found.prefix == pytest.approx({"cls": 1, "reg0": 50}, abs=1e-4)
    share = high_norm_share(torch.from_numpy(found.norms_hw).reshape(1, -1))
    assert found.high_hw.mean() == pytest.approx(float(share))


def test_principal_components_are_scikit_learns():
    x_NPD = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([5.0, 3, 2, 1, 1, 1])
    found = token_maps.principal_components(x_NPD)
    expected = PCA(3).fit(x_NPD.reshape(-1, 6).double().numpy())
    np.testing.assert_allclose(found.explained_C, expected.explained_variance_ratio_, rtol=1e-8)
    scores = expected.transform(x_NPD.reshape(-1, 6).double().numpy()).reshape(3, 20, 3)
    signs = np.sign((scores * found.scores_NPC).sum((0, 1)))
    np.testing.assert_allclose(found.scores_NPC, scores * signs, atol=1e-8)


def test_the_signs_of_components_hang_on_nothing():
    x_NPD = torch.randn(2, 15, 5, generator=torch.Generator().manual_seed(2))
    expected = token_maps.principal_components(x_NPD).scores_NPC
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(
        token_maps.principal_components(x_NPD[:, order] * 7 + 3).scores_NPC, 7 * expected[:, order], atol=1e-5
    )
    np.testing.assert_allclose(token_maps.principal_components(x_NPD.flip(0)).scores_NPC, expected[::-1], atol=1e-8)


def test_components_beyond_the_rank_are_zero():
    found = token_maps.principal_components(torch.tensor([[[1.0, 2.0], [1.0, 2.0]]]))
    assert np.all(found.scores_NPC == 0)
    assert np.all(found.explained_C == 0)
    assert np.isfinite(token_maps.as_rgb(found.scores_NPC)).all()


def test_colours_use_their_range():
    rgb = token_maps.as_rgb(np.random.default_rng(0).normal(size=(2, 300, 3)))
    assert rgb.min() == 0
    assert rgb.max() == 1
    np.testing.assert_allclose(rgb.mean((0, 1)), 0.5, atol=0.05)


def test_photographs_are_what_the_model_saw():
    from PIL import Image

    model = build("timm_vit")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    model.pretrained_cfg = dict(model.pretrained_cfg, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_pct=1.0)
    recording = tokenlens.record(model, [(picture, 0)])
    assert (recording.mean, recording.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    np.testing.assert_allclose(token_maps.photograph(recording, 0) * 255, np.asarray(picture), atol=0.01)
    assert token_maps.image_title(recording, 0) == recording.names[0] == "item 0"


def test_untrained_models_say_so():
    recording = tokenlens.record(build("timm_vit"), images("timm_vit"), pretrained=False)
    assert token_maps.model_title(recording) == "VisionTransformer (untrained)"
    assert token_maps.model_title(recorded("timm_siglip")) == "VisionTransformer"
