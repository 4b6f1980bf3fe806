"""Maps over the patch grid agree with NumPy on the same recording."""

# Shapes: N images, T tokens, P patches, D channels, H heads, d channels of one head.

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import tokenlens
from tests.support.tiny_models import KINDS, build, images
from tokenlens.metrics.token_norm import high_norm_share
from tokenlens.overlays.maps import (
    as_rgb,
    attention_map,
    attention_shares,
    cosine_map,
    norm_map,
    photograph,
    principal_components,
)
from tokenlens.overlays.selection import Token, attention_of, image_title, position_of, prefix_tokens, tokens_at
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


def tokens_of(layout: TokenLayout) -> list[Token]:
    """Return all prefix tokens and one patch."""
    return [*prefix_tokens(layout), (layout.grid[0] - 1, 1)]


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_cosines_agree_with_numpy(kind):
    recording = recorded(kind)
    layout = recording.layout
    for site in sorted(site for block, site in recording if block == 1):
        x_XTD = recording[1, site][1].double().numpy()
        x_XTD = x_XTD[None] if x_XTD.ndim == 2 else x_XTD
        for token in tokens_of(layout):
            at = position_of(layout, token)
            dots_XT = np.einsum("xtd,xd->xt", x_XTD, x_XTD[:, at])
            lengths_XT = np.linalg.norm(x_XTD, axis=-1)
            cosines_T = (dots_XT / (lengths_XT * lengths_XT[:, at : at + 1])).mean(0)
            found = cosine_map(tokens_at(recording, 1, 1, site), layout, token)
            np.testing.assert_allclose(found, cosines_T[layout.patch_slice].reshape(layout.grid), atol=2e-6)
            if not isinstance(token, str):
                assert found[token] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_attention_is_that_of_the_model(kind):
    """Rows from q, k, scale and bias, or from the softmax of the model, are rows of the whole pattern."""
    lazy, whole = recorded(kind), recorded(kind, patterns=True)
    assert set(lazy.patterns) == (set() if KINDS[kind].scores is None else {0, 1})
    layout = lazy.layout
    for block in (0, 1):
        for token in tokens_of(layout):
            at = position_of(layout, token)
            rows_HT = whole.patterns[block][1, :, at].numpy()
            mean_T = attention_of(lazy, 1, block, token)
            np.testing.assert_allclose(mean_T.numpy(), rows_HT.mean(0), atol=1e-6)
            np.testing.assert_allclose(attention_of(lazy, 1, block, token, head=1).numpy(), rows_HT[1], atol=1e-6)
            shares = attention_shares(mean_T, layout)
            assert set(shares) == set(layout.groups)
            assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
            map_hw = attention_map(mean_T, layout)
            assert map_hw.mean() == pytest.approx(1, abs=1e-5)
            patches = mean_T[layout.patch_slice].numpy()
            np.testing.assert_allclose(map_hw.ravel(), patches / patches.mean(), rtol=1e-4)


def test_attention_counts_in_the_budget():
    recording = recorded("timm_beit")
    biases = [bias for _, bias in recording.scores.values()]
    assert all(bias is not None for bias in biases)
    assert recording.nbytes == sum(x.nbytes for x in [*recording.values(), *biases])


def test_high_norm_tokens_are_those_of_the_metric():
    layout = TokenLayout(grid=(3, 4), prefix=("reg", "cls"), patch_start=1)
    x_TD = torch.randn(14, 8, generator=torch.Generator().manual_seed(0))
    x_TD = x_TD / x_TD.norm(dim=-1, keepdim=True)
    x_TD[0] *= 50  # a register, not a patch
    x_TD[1 + 5] *= 3.01
    x_TD[1 + 11] *= 2.99
    found = norm_map(x_TD[None], layout)
    assert np.argwhere(found.high_hw).tolist() == [[1, 1]]
    assert found.threshold == pytest.approx(3, abs=1e-4)
    assert found.prefix == pytest.approx({"cls": 1, "reg0": 50}, abs=1e-4)
    share = high_norm_share(torch.from_numpy(found.norms_hw).reshape(1, -1))
    assert found.high_hw.mean() == pytest.approx(float(share))


def test_principal_components_are_scikit_learns():
    x_NPD = torch.randn(3, 20, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([5.0, 3, 2, 1, 1, 1])
    found = principal_components(x_NPD)
    expected = PCA(3).fit(x_NPD.reshape(-1, 6).double().numpy())
    np.testing.assert_allclose(found.explained_C, expected.explained_variance_ratio_, rtol=1e-8)
    scores = expected.transform(x_NPD.reshape(-1, 6).double().numpy()).reshape(3, 20, 3)
    signs = np.sign((scores * found.scores_NPC).sum((0, 1)))
    np.testing.assert_allclose(found.scores_NPC, scores * signs, atol=1e-8)


def test_the_signs_of_components_are_deterministic():
    x_NPD = torch.randn(2, 15, 5, generator=torch.Generator().manual_seed(2))
    expected = principal_components(x_NPD).scores_NPC
    order = torch.randperm(15, generator=torch.Generator().manual_seed(3))
    np.testing.assert_allclose(
        principal_components(x_NPD[:, order] * 7 + 3).scores_NPC, 7 * expected[:, order], atol=1e-5
    )
    np.testing.assert_allclose(principal_components(x_NPD.flip(0)).scores_NPC, expected[::-1], atol=1e-8)


def test_components_beyond_the_rank_are_zero():
    found = principal_components(torch.tensor([[[1.0, 2.0], [1.0, 2.0]]]))
    assert np.all(found.scores_NPC == 0)
    assert np.all(found.explained_C == 0)
    assert np.isfinite(as_rgb(found.scores_NPC)).all()


def test_colours_use_their_range():
    rgb = as_rgb(np.random.default_rng(0).normal(size=(2, 300, 3)))
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
    np.testing.assert_allclose(photograph(recording, 0) * 255, np.asarray(picture), atol=0.01)
    assert image_title(recording, 0) == recording.names[0] == "item 0"
