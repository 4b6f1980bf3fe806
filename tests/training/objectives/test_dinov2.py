"""The objective ``dinov2``: masks, Sinkhorn–Knopp, the losses of patches and of neighbours."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.self_distillation import backbone, batch, objective, progress
from tests.training.objectives._tiny import seeded
from tests.training.objectives.test_dino import cross_entropy, softmax
from tokenlens.training.objectives._centring import Centring, sinkhorn
from tokenlens.training.objectives._masking import block_masks, masked_patches
from tokenlens.training.objectives.dinov2 import cls_loss, patch_loss


def reference_sinkhorn(outputs, temperature, iterations=3):
    """As in the paper: rows of the (K, R) matrix to 1/K, columns to 1/R."""
    q = np.exp((outputs - outputs.max()) / temperature).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * q.shape[0]
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def test_sinkhorn_agrees_with_numpy_and_spreads_over_the_prototypes():
    outputs = np.random.default_rng(0).normal(size=(40, 10)) * 0.1 + np.linspace(0, 0.4, 10)
    found = sinkhorn(torch.tensor(outputs), 0.05).numpy()
    np.testing.assert_allclose(found, reference_sinkhorn(outputs, 0.05), rtol=1e-10)
    np.testing.assert_allclose(found.sum(1), 1)
    even = sinkhorn(torch.tensor(outputs), 0.05, iterations=200).numpy().sum(0)
    np.testing.assert_allclose(even, 4, rtol=1e-3)
    # After three iterations nearer to even than the softmax, which prefers the last prototypes.
    assert found.sum(0).std() < 0.2 * softmax(outputs / 0.05).sum(0).std()


def test_sinkhorn_of_large_outputs_is_finite():
    outputs = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)) + 100
    found = sinkhorn(outputs, 0.04)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, sinkhorn(outputs - 100, 0.04), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("method", ["sinkhorn", "centre"])
def test_no_rows_have_no_assignments(method):
    centring = Centring(4, method)
    assert centring(torch.zeros(0, 4), 0.1).shape == (0, 4)
    assert all(torch.isfinite(buffer).all() for buffer in centring.buffers())


def test_a_centre_is_the_moving_mean_of_what_came_before():
    centring = Centring(5, "centre", momentum=0.8).double()
    assert "centre" in centring.state_dict(), "a resumed training continues with it"
    generator, centre = np.random.default_rng(0), np.zeros(5)
    for rows in (3, 7, 4):
        outputs = generator.normal(size=(rows, 5))
        np.testing.assert_allclose(centring(torch.tensor(outputs), 0.5).numpy(), softmax((outputs - centre) / 0.5))
        centre = 0.8 * centre + 0.2 * outputs.mean(0)


@settings(max_examples=30, deadline=None)
@given(
    of=st.integers(1, 40),
    rows=st.integers(3, 20),
    columns=st.integers(3, 20),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    step=st.integers(0, 10**6),
)
def test_masks_keep_to_their_shares(of, rows, columns, share, seed, step):
    masks = block_masks(range(of), of, (rows, columns), share, (0.1, 0.5), (seed, step)).numpy()
    assert masks.shape == (of, rows, columns)
    shares = np.sort(masks.mean((1, 2)))[::-1]
    masked = int(of * share)
    assert (shares[masked:] == 0).all()
    # The k-th heaviest mask is not above the upper edge of the k-th part of the range.
    assert (shares[:masked] <= np.linspace(0.1, 0.5, masked + 1)[1:][::-1] + 1e-9).all()


def test_masks_have_the_shares_of_dinov2():
    """14×14 patches; the numbers are those of ``collate_data_and_cast`` with 0.5 and (0.1, 0.5)."""
    masks = block_masks(range(200), 200, (14, 14), 0.5, (0.1, 0.5), (0, 0)).float()
    shares = masks.mean((1, 2)).sort().values
    assert (shares[:100] == 0).all()
    torch.testing.assert_close(shares[100:], torch.linspace(0.1, 0.5, 100), atol=0.03, rtol=0)
    assert 0.35 < float((masks.mean((1, 2))[:100] > 0).float().mean()) < 0.65  # at random positions of the batch


def runs(line: np.ndarray) -> Iterator[int]:
    """Lengths of the runs of ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    yield from (edges[1::2] - edges[::2]).tolist()


def test_masks_are_made_of_blocks():
    masks = block_masks(range(100), 100, (16, 16), 1.0, (0.3, 0.3), (0, 0)).numpy()
    lengths = [length for mask in masks for line in (*mask, *mask.T) for length in runs(line)]
    scattered = np.random.default_rng(0).random(masks.shape) < masks.mean()
    by_chance = [length for mask in scattered for line in (*mask, *mask.T) for length in runs(line)]
    assert np.mean(lengths) > 2.5 * np.mean(by_chance)


def test_one_block_is_a_rectangle_of_moderate_shape():
    # A mask of just one block: as many patches as the smallest block has.
    for mask in block_masks(range(50), 50, (20, 20), 1.0, (0.012, 0.012), (1, 2)).numpy():
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            assert mask.sum() <= 4
            assert max(len(rows), len(columns)) <= 4


def test_a_rows_mask_does_not_depend_on_the_requested_rows():
    whole = block_masks(range(16), 16, (8, 8), 0.5, (0.1, 0.5), (3, 4))
    rows = [5, 0, 11]
    assert torch.equal(block_masks(rows, 16, (8, 8), 0.5, (0.1, 0.5), (3, 4)), whole[rows])
    assert not torch.equal(block_masks(range(16), 16, (8, 8), 0.5, (0.1, 0.5), (3, 5)), whole)


def test_drawing_masks_touches_no_other_draw():
    seeded(0)
    expected = random.random(), np.random.random(), float(torch.rand(()))
    seeded(0)
    block_masks(range(8), 8, (8, 8), 0.5, (0.1, 0.5), (3, 4))
    assert (random.random(), np.random.random(), float(torch.rand(()))) == expected


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_masked_patch_is_not_seen(dynamic):
    model, images = backbone(dynamic_img_size=dynamic), batch().views[0]
    masks = torch.zeros(len(images), 4, 4, dtype=torch.bool)
    masks[:, 1, 2] = True
    token, hooks = torch.randn(32, dtype=torch.float64), len(model.patch_embed._forward_hooks)
    inside, outside = images.clone(), images.clone()
    inside[:, :, 8:16, 16:24] += 1
    outside[:, :, 8:16, 8:16] += 1
    with masked_patches(model.patch_embed, masks.flatten(1), token):
        expected = model.forward_features(images)
        assert torch.equal(model.forward_features(inside), expected)
        assert not torch.equal(model.forward_features(outside), expected)
        embedded = model.patch_embed(images).reshape(len(images), 16, 32)
        assert torch.equal(embedded[:, 6], token.expand(len(images), -1))
    assert not torch.equal(model.forward_features(images), expected)
    with pytest.raises(RuntimeError), masked_patches(model.patch_embed, masks.flatten(1), token):
        raise RuntimeError
    assert len(model.patch_embed._forward_hooks) == hooks


def test_the_loss_of_cls_agrees_with_numpy_and_with_lightly():
    from lightly.loss.dino_loss import DINOLoss

    generator = np.random.default_rng(0)
    outputs, said = generator.normal(size=(2, 6, 9)), generator.normal(size=(5, 6, 9))
    taught = softmax(outputs / 0.07)
    found = cls_loss(torch.tensor(taught), (torch.tensor(said) / 0.1).log_softmax(-1))
    assert float(found) == pytest.approx(cross_entropy(taught, said, 0.1), rel=1e-10)
    peer = DINOLoss(9, teacher_temp=0.07)(list(torch.tensor(outputs)), list(torch.tensor(said)))
    assert float(found) == pytest.approx(float(peer), rel=1e-6)


def test_the_loss_of_patches_agrees_with_numpy_and_with_lightly():
    from lightly.loss.ibot_loss import IBOTPatchLoss

    generator = np.random.default_rng(0)
    masks = generator.random((5, 4, 4)) < 0.4
    masks[2] = False
    count = masks.sum((1, 2))
    outputs, said = generator.normal(size=(masks.sum(), 7)), generator.normal(size=(masks.sum(), 7))
    taught = softmax(outputs / 0.07)
    terms = iter(-(taught * np.log(softmax(said / 0.1))).sum(-1))
    expected = sum(np.mean([next(terms) for _ in range(n)]) for n in count if n) / 5
    weight = torch.tensor(np.repeat(1 / np.maximum(count, 1), count))
    found = patch_loss(torch.tensor(taught), (torch.tensor(said) / 0.1).log_softmax(-1), weight, 5)
    assert float(found) == pytest.approx(expected, rel=1e-10)
    peer = IBOTPatchLoss(7, teacher_temp=0.07)(torch.tensor(outputs), torch.tensor(said), torch.tensor(masks))
    assert float(found) == pytest.approx(float(peer), rel=1e-6)


def reference(made, images, temperature=0.04):
    """All losses in NumPy from tokens that are computed crop by crop, with prototypes by Sinkhorn–Knopp."""
    masks = made.masks(images, progress()).view(2, len(images.indices), 16)
    with torch.no_grad():
        taught = [made.teacher.forward_features(view) for view in images.views[:2]]
        said = []
        for view, mask in zip(images.views[:2], masks, strict=True):
            with masked_patches(made.backbone.patch_embed, mask, made.mask_token_D):
                said.append(made.backbone.forward_features(view))
        local = [made.backbone.forward_features(view) for view in images.views[2:]]
        cls_t = np.concatenate([made.teacher_heads["cls"](tokens[:, 0]).numpy() for tokens in taught])
        cls_s = np.stack([made.heads["cls"](tokens[:, 0]).numpy() for tokens in said + local])
        patch_t, patch_s = (
            heads["patch"](torch.cat([tokens[:, 1:] for tokens in crops])[masks.flatten(0, 1)]).numpy()
            for heads, crops in ((made.teacher_heads, taught), (made.heads, said))
        )
    dino = cross_entropy(np.split(reference_sinkhorn(cls_t, temperature), 2), cls_s, 0.1)
    terms = -(reference_sinkhorn(patch_t, temperature) * np.log(softmax(patch_s / 0.1))).sum(-1)
    count = masks.flatten(0, 1).sum(1).numpy()
    ibot = (terms * np.repeat(1 / np.maximum(count, 1), count)).sum() / len(count)
    koleo = 0.0
    for tokens in said:
        unit = tokens[:, 0].numpy() / np.linalg.norm(tokens[:, 0].numpy(), axis=1, keepdims=True)
        distance = np.linalg.norm(unit[:, None] - unit, axis=-1) + 9 * np.eye(len(unit))
        koleo -= np.log(distance.min(1)).mean()
    return {"dino": dino, "ibot": ibot, "koleo": koleo, "loss": dino + 2 * ibot + 0.3 * koleo}


def test_the_losses_agree_with_numpy():
    made, images = objective("dinov2", ibot=2.0, koleo=0.3), batch()
    with torch.no_grad():
        made.mask_token_D.normal_()
        for parameter in made.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        found = made(images, progress())
    expected = reference(made, images)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        assert float(found[name]) == pytest.approx(loss, rel=1e-6), name


def test_koleo_is_the_distance_to_the_nearest_neighbour():
    made = objective("dinov2")
    angles = torch.tensor([0.0, 0.1, 1.0, 1.3, 3.0], dtype=torch.float64)
    points = 4 * torch.stack([angles.cos(), angles.sin()], 1)
    nearest = torch.tensor([0.1, 0.1, 0.3, 0.3, 1.7], dtype=torch.float64)
    assert float(made._koleo(points)) == pytest.approx(float(-(2 * (nearest / 2).sin()).log().mean()), rel=1e-6)


def test_unmasked_patches_of_the_teacher_do_not_count():
    """Only masked positions enter the loss of patches: other outputs of the teacher's patches may be anything."""
    made, images = objective("dinov2"), batch()
    masks = made.masks(images, progress())
    tokens = made.tokens

    def disturbed(model, *arguments):
        cls, patches = tokens(model, *arguments)
        if model is made.teacher:
            patches = torch.where(masks[..., None], patches, torch.full_like(patches, 1e3))
        return cls, patches

    with torch.no_grad():
        expected = made(images, progress())["ibot"]
        made.tokens = disturbed
        assert torch.equal(made(images, progress())["ibot"], expected)


def test_tied_heads_are_one():
    made = objective("dinov2", tie_heads=True)
    assert list(made.heads) == ["cls"]
    assert list(objective("dinov2").heads) == ["cls", "patch"]


def test_masks_depend_on_step_and_position():
    made = objective("dinov2")
    whole = made.masks(batch(), progress()).view(2, 8, 16)
    part = made.masks(batch([6, 1]), progress()).view(2, 2, 16)
    assert torch.equal(part, whole[:, [6, 1]])
    assert not torch.equal(made.masks(batch(), progress(1)).view(2, 8, 16), whole)
    assert int(whole.any(-1).sum()) <= 8
