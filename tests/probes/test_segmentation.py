"""Linear segmentation: the loss is that of the upsampled logits, the IoU is scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score
from torch.nn import functional

from tests.support.coloured_images import COLOURS, mask_folders
from tokenlens.probes import Heads, PatchFeatures, probe
from tokenlens.probes.segmentation import IGNORED, classify, head_losses, pixel_centres, score

CPU = torch.device("cpu")
NAMES = ("a", "b", "c", "d")


def patch_features(masks: list[np.ndarray], features_NPF: np.ndarray, grid: tuple[int, int]) -> PatchFeatures:
    return PatchFeatures(features_NPF, grid, lambda i: masks[i], tuple(map(str, range(len(masks)))), NAMES, CPU)


def telling(classes: int = 4) -> Heads:
    """A head that reads the class off one-hot features."""
    heads = Heads(classes, classes, 1).eval()
    heads.weights[0].data = torch.eye(classes)
    return heads


def random_masks(count: int, classes: list[int], sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    random = np.random.RandomState(seed)
    return [random.choice(classes, sizes[i % len(sizes)]).astype(np.uint8) for i in range(count)]


@pytest.mark.parametrize("size", [(17, 23), (40, 9), (5, 7)])
def test_the_loss_is_cross_entropy_of_the_upsampled_logits(size):
    generator = torch.Generator().manual_seed(0)
    logits_BLhw = torch.randn(2, 3 * 4, 5, 7, generator=generator, requires_grad=True)
    masks_BHW = torch.randint(0, 4, (2, *size), generator=generator)
    masks_BHW[:, 0] = IGNORED
    every = np.arange(size[0] * size[1])
    points_BS2 = torch.from_numpy(pixel_centres(every, size))[None].expand(2, -1, -1)
    found_K = head_losses(logits_BLhw, points_BS2, masks_BHW.flatten(1), heads=3)
    [gradient] = torch.autograd.grad(found_K.sum(), logits_BLhw)
    large = functional.interpolate(logits_BLhw, size, mode="bilinear", align_corners=False)
    expected = [functional.cross_entropy(part, masks_BHW, ignore_index=IGNORED) for part in large.split(4, dim=1)]
    torch.testing.assert_close(found_K, torch.stack(expected))
    [other] = torch.autograd.grad(sum(expected), logits_BLhw)
    torch.testing.assert_close(gradient, other)


def test_masks_of_nothing_but_no_class_cost_nothing():
    found = head_losses(torch.randn(1, 8, 2, 2), torch.zeros(1, 5, 2), torch.full((1, 5), IGNORED), heads=2)
    assert found.tolist() == [0.0, 0.0]


def test_iou_is_scikit_learns():
    sizes = [(6, 8), (9, 5), (12, 12)]
    masks = random_masks(7, [0, 1, 2, 3, IGNORED], sizes)
    features_NPF = np.random.RandomState(1).normal(size=(7, 20, 4)).astype(np.float16)
    head = telling()
    found = score(classify(head, patch_features(masks, features_NPF, (4, 5)), np.arange(7)), NAMES, list("1234567"))
    truth, said = [], []
    for mask_HW, features_PF in zip(masks, features_NPF, strict=True):
        z_14hw = torch.from_numpy(features_PF).float().T.reshape(1, 4, 4, 5) / (1 + 1e-5) ** 0.5
        large = functional.interpolate(z_14hw, mask_HW.shape, mode="bilinear", align_corners=False)
        predicted_HW = large[0].argmax(0).numpy()
        truth.append(mask_HW[mask_HW != IGNORED])
        said.append(predicted_HW[mask_HW != IGNORED])
    all_truth, all_said = np.concatenate(truth), np.concatenate(said)
    matrix_CC = confusion_matrix(all_truth, all_said)
    assert found.value == pytest.approx(jaccard_score(all_truth, all_said, average="macro"), abs=1e-6)
    rows = found.table.set_index(["quantity", "of"])["value"]
    for name, iou in zip(NAMES, jaccard_score(all_truth, all_said, average=None), strict=True):
        assert rows["IoU", name] == pytest.approx(iou)
    assert rows["pixel accuracy", ""] == pytest.approx(np.trace(matrix_CC) / matrix_CC.sum())
    hits = found.per_image[[f"hit: {name}" for name in NAMES]].sum().to_numpy()
    assert (hits == np.diagonal(matrix_CC)).all()
    assert (found.per_image["labelled: c"].sum(), found.per_image["predicted: c"].sum()) == (
        matrix_CC[2].sum(),
        matrix_CC[:, 2].sum(),
    )
    assert found.per_image["accuracy"][2] == pytest.approx((truth[2] == said[2]).mean())
    assert found.ci_low < found.value < found.ci_high
    assert found.protocol["mean IoU at"] == "each mask's own size (most often 8×6)"


def test_a_perfect_predictor_gets_1():
    masks = random_masks(5, [0, 1, 2, 3], [(4, 5)])
    features_NPF = np.eye(4, dtype=np.float32)[np.stack(masks).reshape(5, 20)]
    found = score(classify(telling(), patch_features(masks, features_NPF, (4, 5)), np.arange(5)), NAMES, list("12345"))
    assert (found.value, found.ci_low, found.ci_high) == (1.0, 1.0, 1.0)
    assert found.protocol["mean IoU at"] == "the masks' own size, 5×4"


def test_a_constant_predictor_gets_its_share_of_one_class():
    masks = random_masks(5, [0, 1, 2, 2, IGNORED], [(8, 8)])
    features_NPF = np.zeros((5, 4, 4), dtype=np.float32)
    features_NPF[..., 2] = 1
    found = score(classify(telling(), patch_features(masks, features_NPF, (2, 2)), np.arange(5)), NAMES, list("12345"))
    counts = np.bincount(np.stack(masks).reshape(-1), minlength=256)[:4]
    share = counts[2] / counts.sum()
    assert found.value == pytest.approx(share / 3)  # of the three classes that occur
    rows = found.table.set_index(["quantity", "of"])["value"]
    assert rows["pixel accuracy", ""] == pytest.approx(share)
    assert rows["IoU", "c"] == pytest.approx(share)
    assert rows["IoU", "a"] == 0
    assert ("IoU", "d") not in rows
    assert found.protocol["mean IoU over"].startswith("3 classes, ")
    assert found.protocol["mean IoU over"].endswith("left out, because no test mask has them: d")


def test_an_image_of_no_class_does_not_count():
    masks = random_masks(3, [0, 1], [(4, 4)])
    masks[1][:] = IGNORED
    features_NPF = np.eye(4, dtype=np.float32)[np.minimum(np.stack(masks).reshape(3, 16), 3)]
    found = score(classify(telling(), patch_features(masks, features_NPF, (4, 4)), np.arange(3)), NAMES, list("123"))
    assert found.value == 1
    assert np.isnan(found.per_image["accuracy"][1])
    assert found.per_image["ignored"].tolist() == [0, 16, 0]
    assert found.protocol["no class"].startswith("33.3 % ")


def test_colours_are_told_apart(tmp_path):
    result = probe("raw_pixels", "segmentation", mask_folders(tmp_path / "data"), img_size=64)
    assert result.value > 0.8
    assert result.unit == "mean IoU"
    assert result.protocol["images"] == "resized to 64×64 pixels without keeping the aspect ratio, bicubic"
    assert result.protocol["patch grid"] == "16×16"
    assert result.protocol["mean IoU at"] == "the masks' own size, 56×40"
    assert result.protocol["no class"].startswith("2.5 % ")
    assert set(result.table.loc[result.table["quantity"] == "IoU", "of"]) == set(COLOURS)
    again = probe("raw_pixels", "segmentation", Path(tmp_path / "data"), img_size=64)
    assert again.table.equals(result.table)


def test_patches_of_a_model(tmp_path):
    data = mask_folders(tmp_path / "data", train=6, test=3)
    result = probe("test_vit", "segmentation", data, pretrained=False, img_size=64, blocks=[1, -1])
    assert result.protocol["patch grid"] == "4×4"
    assert result.protocol["frozen features"] == "resid_post of blocks 1, 5 through the final norm, concatenated"
    assert 0 < result.value < 1
    assert result.ci_low <= result.value <= result.ci_high
