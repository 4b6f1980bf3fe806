"""The maps of the first images: equal to those of a recording, whatever the batches, and no pixels unless wanted."""

# Shapes: N images, T tokens, P patches, D channels.

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

import tokenlens
from tests.support.tiny_models import build, images
from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.photographs import BINS, MOST_PHOTOGRAPHS
from tokenlens.overlays.selection import attention_by_head
from tokenlens.tokens import Site

MODELS = ("timm_dinov2_registers", "timm_cait", "hf_vit")


def analyzed(model, pixels, **options):
    return tokenlens.analyze(model, pixels, metrics=["norm_differentiation"], device="cpu", **options)


def expected(recording, image, block, site):
    """Return cosine to CLS, norm, and the patches' cosines to each other, from a recording, in float64."""
    layout = recording.layout_of(block)
    x_TD = recording[block, site][image].double().numpy()
    unit_TD = x_TD / np.linalg.norm(x_TD, axis=1, keepdims=True)
    patches = list(layout.positions("patch"))
    cls_D = unit_TD[list(layout.positions("cls"))].mean(0)
    unit_PD = unit_TD[patches]
    return unit_PD @ cls_D, np.linalg.norm(x_TD[patches], axis=1), unit_PD @ unit_PD.T


@pytest.mark.parametrize("name", MODELS)
def test_maps_and_pairs_are_those_of_a_recording(name):
    model, pixels = build(name), images(name, 3)
    kept = analyzed(model, pixels).photographs
    recording = tokenlens.record(model, pixels, sites=[Site.RESID_PRE, Site.NORM1], device="cpu")
    with_cls = [block for block in recording.blocks if recording.layout_of(block).has("cls")]
    assert list(kept.blocks) == with_cls
    for place, block in enumerate(kept.blocks):
        for side, site in enumerate((Site.RESID_PRE, Site.NORM1)):
            if (block, str(site)) not in recording:
                continue
            counts = np.zeros(BINS)
            for image in range(3):
                cosine_P, norm_P, pairs_PP = expected(recording, image, block, site)
                np.testing.assert_allclose(kept.cosines[image, side, place].ravel(), cosine_P, atol=6e-4)
                np.testing.assert_allclose(kept.norms[image, side, place].ravel(), norm_P, rtol=1e-3)
                upper = pairs_PP[np.triu_indices(len(pairs_PP), 1)]
                counts += np.histogram(upper.astype(np.float32), BINS, (-1, 1))[0]
            assert kept.pairs[side, place].sum() == counts.sum()
            assert np.abs(kept.pairs[side, place] - counts).sum() <= 0.02 * counts.sum()


@pytest.mark.parametrize("name", MODELS)
def test_attention_of_cls_is_that_of_the_last_block(name):
    model, pixels = build(name), images(name, 3)
    metrics = ["norm_differentiation", "attention_mass"]
    kept = tokenlens.analyze(model, pixels, metrics=metrics, device="cpu", batch_size=2).photographs
    recording = tokenlens.record(model, pixels, sites=[Site.Q, Site.K], patterns=None, device="cpu")
    last = recording.blocks[-1]
    layout = recording.layout_of(last)
    for image in range(3):
        row_HT = attention_by_head(recording, image, last, "cls")
        found = kept.heads[image].reshape(len(row_HT), -1)
        np.testing.assert_allclose(found, layout.patches_of(row_HT, -1), rtol=2e-3, atol=1e-5)
    assert analyzed(model, pixels).photographs.heads is None


def test_it_keeps_the_first_images_whatever_the_batches(tmp_path):
    model, pixels = build("timm_dinov2_registers"), images("timm_dinov2_registers", 6)
    one, two = (analyzed(model, pixels, batch_size=size).photographs for size in (6, 3))
    assert len(one.names) == MOST_PHOTOGRAPHS == len(one.jpegs)
    assert one.names == two.names
    assert one.jpegs == two.jpegs
    np.testing.assert_allclose(one.cosines, two.cosines, atol=1e-3)
    assert one.cosines.dtype == np.float16


def test_the_photograph_is_the_image_as_the_model_saw_it():
    pixels = torch.zeros_like(images("timm_dinov2_registers", 1))
    pixels[:, 0] = 0.5  # the tests' models take (x − 0.5) / 0.5 or the like: red is the brightest
    kept = analyzed(build("timm_dinov2_registers"), pixels).photographs
    picture = np.asarray(Image.open(io.BytesIO(kept.jpegs[0])).convert("RGB"), dtype=float)
    assert picture.shape[:2] == tuple(pixels.shape[2:])
    assert (picture[..., 0] > picture[..., 1] + 20).all()


def test_without_photographs_no_pixel_is_kept_and_both_come_back(tmp_path):
    for photos in (True, False):
        analysis = analyzed(build("timm_dinov2_registers"), images("timm_dinov2_registers", 2), photos=photos)
        folder = tmp_path / str(photos)
        analysis.save(folder, report=False)
        kept, back = analysis.photographs, Analysis.load(folder).photographs
        assert len(back.jpegs) == (2 if photos else 0)
        assert (back.names, back.hashes, back.blocks, back.jpegs) == (kept.names, kept.hashes, kept.blocks, kept.jpegs)
        for name in ("cosines", "norms", "pairs"):
            np.testing.assert_array_equal(getattr(back, name), getattr(kept, name))
        assert (b"\xff\xd8\xff" in (folder / "arrays.safetensors").read_bytes()) == photos


def test_where_no_norm_is_observed_nothing_is_kept():
    analysis = tokenlens.analyze(
        build("timm_dinov2_registers"), images("timm_dinov2_registers", 2), metrics=["cka"], device="cpu"
    )
    assert analysis.photographs is None
