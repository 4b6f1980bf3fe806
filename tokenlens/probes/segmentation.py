"""Linear segmentation from frozen patch features: a linear map per patch, upsampled to the mask."""

# Shapes: N images, B images of a step, P patches, F channels of a feature, C classes, K heads, L = K·C logits, h and w
# sides of the patch grid, H and W sides of a mask, S pixels of a step, or columns that are summed over images.

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from tokenlens.probes._heads import Heads, Schedule, edge_note, hold_out, train_with_best_rate
from tokenlens.probes._result import make_table
from tokenlens.probes.base import FittedHead, PatchFeatures, Probe, ProbeScore, Progress, import_extra
from tokenlens.statistics.bootstrap import bootstrap_interval
from tokenlens.storage.wording import counted

SCHEDULE = Schedule(
    optimizer="AdamW",
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    batch_size=16,
    epochs=30,
    max_steps=40000,
    weight_decay=1e-4,
)
"""Weight decay and ``max_steps`` are those of DINOv2's linear segmentation."""

PIXELS = 1024
"""Pixels of each mask per step: an unbiased estimate of the loss over all pixels, at a 60th of the cost."""

PIXEL_DRAWS = 8
"""Number of epochs that use different pixels before the draws repeat."""


class Segmentation(Probe):
    """BatchNorm, a 1×1 convolution on the patch grid, bilinear upsampling to the mask, cross-entropy.

    The score is the mean IoU over the classes that occur in the test masks, from the confusion matrix of the whole set.
    """

    kind = "patches"
    unit = "mean IoU"

    def fit(self, train: PatchFeatures, seed: int) -> FittedHead:
        """Choose the learning rate on held-out training images, and train with it on all of them."""
        pixels = draw_pixels(train, seed, self.progress)
        rates, classes, channels = SCHEDULE.learning_rates, len(train.classes), train.features_NPF.shape[2]

        def loss_of(heads: Heads, indices_B: np.ndarray, epoch: int) -> Tensor:
            now = slice(epoch % PIXEL_DRAWS * PIXELS, (epoch % PIXEL_DRAWS + 1) * PIXELS)
            points_BS2 = torch.from_numpy(pixels.points_NS2[indices_B, now]).to(train.device)
            labels_BS = torch.from_numpy(pixels.labels_NS[indices_B, now].astype(np.int64)).to(train.device)
            return head_losses(patch_logits(heads, train, indices_B), points_BS2, labels_BS, heads.count)

        held = hold_out(len(train), seed)

        def scores_of(heads: Heads, images_N: np.ndarray) -> list[float]:
            return classify(heads, train, images_N, self.progress).mean_iou()

        head, best, values = train_with_best_rate(
            loss_of, held, scores_of, channels, classes, SCHEDULE, seed, train.device, self.progress
        )
        n = int(held.sum())
        return FittedHead(
            tensors=head.state_dict(),
            protocol={
                "head": "BatchNorm (without affine weights), 1×1 convolution, bilinear upsampling, cross-entropy",
                "training": f"{SCHEDULE.describe(len(train))}; loss at {PIXELS} random pixels of each full-size mask, "
                f"drawn {PIXEL_DRAWS} times",
                "learning rate": f"{rates[best]:g}{edge_note(best, rates)}, the best of "
                f"{', '.join(f'{rate:g}' for rate in rates)} on the held-out images",
                "held out": f"{n} of {len(train)} training images, to choose the learning rate; then "
                "it is trained on all of them",
            },
            choices=[(f"learning rate {rate:g}", value, n) for rate, value in zip(rates, values, strict=True)],
        )

    def score(self, head: FittedHead, test: PatchFeatures, names: Sequence[str]) -> ProbeScore:
        """Compute IoU and accuracy with their intervals over test images."""
        quantity = "mean IoU on held-out training images"
        choices = [
            {"quantity": quantity, "of": setting, "value": value, "n": n, "unit": "share"}
            for setting, value, n in head.choices
        ]
        result = score(self._classify(head, test), test.classes, names)
        table = pd.concat([result.table, make_table(choices)], ignore_index=True)
        return replace(result, table=table, protocol=head.protocol | result.protocol)

    def count(self, head: FittedHead, test: PatchFeatures) -> np.ndarray:
        """Return the correct, labelled and predicted pixels of each class, for each image."""
        return self._classify(head, test).counts_KN3C[0].reshape(len(test), -1).astype(np.float64)

    def measure(self, sums_XS: np.ndarray) -> np.ndarray:
        """Compute the mean IoU."""
        return iou_and_accuracy(sums_XS)[:, 0]

    def _classify(self, head: FittedHead, test: PatchFeatures) -> PixelCounts:
        return classify(Heads.of(head.tensors, test.device), test, np.arange(len(test)), self.progress)


@dataclass(frozen=True)
class SampledPixels:
    """Random pixels of each training mask: x and y in (−1, 1), (N, S, 2) float32, and class, (N, S) uint8."""

    points_NS2: np.ndarray
    labels_NS: np.ndarray


def draw_pixels(grids: PatchFeatures, seed: int, progress: Progress | None = None) -> SampledPixels:
    """Draw pixels, because the whole masks of a large set do not fit into memory."""
    count = PIXEL_DRAWS * PIXELS
    points_NS2 = np.empty((len(grids), count, 2), dtype=np.float32)
    labels_NS = np.empty((len(grids), count), dtype=np.uint8)
    random = np.random.RandomState(seed % 2**32)
    for i in range(len(grids)):
        mask_HW = grids.mask_of(i)
        drawn = random.randint(0, mask_HW.size, count)
        labels_NS[i] = mask_HW.reshape(-1)[drawn]
        points_NS2[i] = pixel_centres(drawn, mask_HW.shape)
        if progress is not None:
            progress("drawing pixels of the training masks", i + 1, len(grids), "images")
    if (labels_NS == IGNORED).all():
        raise ValueError(f"the {len(grids)} training masks contain no class, only {IGNORED}")
    return SampledPixels(points_NS2, labels_NS)


def pixel_centres(pixels_S: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return x and y of pixel numbers in row-major order, (S, 2), where −1 and 1 are the edges of the image.

    ``grid_sample`` at these points equals ``interpolate`` to (H, W) at these pixels (both ``align_corners=False``).
    """
    height, width = shape
    rows_S, columns_S = np.divmod(pixels_S, width)
    return np.stack([(2 * columns_S + 1) / width - 1, (2 * rows_S + 1) / height - 1], axis=-1).astype(np.float32)


def head_losses(logits_BLhw: Tensor, points_BS2: Tensor, labels_BS: Tensor, heads: int) -> Tensor:
    """Compute the cross-entropy of each head at points of the upsampled logits, (K,), without pixels of no class."""
    at_BLS = functional.grid_sample(
        logits_BLhw.contiguous(), points_BS2[:, None], mode="bilinear", padding_mode="border", align_corners=False
    )[:, :, 0]
    at_BKCS = at_BLS.unflatten(1, (heads, -1))
    labels_BKS = labels_BS[:, None].expand(-1, heads, -1)
    loss_BKS = functional.cross_entropy(
        at_BKCS.flatten(0, 1), labels_BKS.flatten(0, 1), ignore_index=IGNORED, reduction="none"
    ).view(labels_BKS.shape)
    counted = (labels_BS != IGNORED).sum().clamp(min=1)
    return loss_BKS.sum((0, 2)) / counted


IGNORED = 255
"""Value of pixels of no class."""


@dataclass(frozen=True)
class PixelCounts:
    """Classified pixels of some images, for each head.

    Args:
        counts_KN3C: correct, labelled and predicted pixels per image and class, from which any IoU follows.
        iou_KC: torchmetrics' IoU of the whole set.
        ignored_N: pixels of no class.
        sizes: (height, width) of the masks and their frequency.
    """

    counts_KN3C: np.ndarray
    iou_KC: np.ndarray
    ignored_N: np.ndarray
    sizes: Counter[tuple[int, int]]

    def mean_iou(self) -> list[float]:
        """Return the mean IoU of each head, over the classes that occur in these masks."""
        occurs_C = self.counts_KN3C[0, :, 1].sum(0) > 0
        return [float(iou_C[occurs_C].mean()) for iou_C in self.iou_KC]


@torch.no_grad()
def classify(
    heads: Heads, grids: PatchFeatures, indices_N: np.ndarray, progress: Progress | None = None
) -> PixelCounts:
    """Classify some images at the full size of their masks."""
    index = import_extra("torchmetrics.classification", "torchmetrics").MulticlassJaccardIndex
    classes = heads.classes
    metrics = [
        index(classes, average="none", ignore_index=IGNORED, validate_args=False).to(grids.device)
        for _ in range(heads.count)
    ]
    counts_KN3C = np.zeros((heads.count, len(indices_N), 3, classes), dtype=np.int64)
    ignored_N, sizes = np.zeros(len(indices_N), dtype=np.int64), Counter[tuple[int, int]]()
    what = f"testing {counted(heads.count, 'head')}"
    for n, image in enumerate(indices_N):
        mask_HW = torch.from_numpy(grids.mask_of(int(image)).astype(np.int64)).to(grids.device)
        logits_1Lhw = patch_logits(heads, grids, np.array([image]))
        large_LHW = functional.interpolate(logits_1Lhw, mask_HW.shape, mode="bilinear", align_corners=False)[0]
        predicted_KHW = large_LHW.unflatten(0, (heads.count, classes)).argmax(1)
        for k, metric in enumerate(metrics):
            before_CC = metric.confmat.clone()
            metric.update(predicted_KHW[k][None], mask_HW[None])
            counts_CC = (metric.confmat - before_CC).cpu().numpy()
            counts_KN3C[k, n] = np.diagonal(counts_CC), counts_CC.sum(1), counts_CC.sum(0)
        ignored_N[n] = int((mask_HW == IGNORED).sum())
        sizes[mask_HW.shape[0], mask_HW.shape[1]] += 1
        if progress is not None:
            progress(what, n + 1, len(indices_N), "images")
    iou_KC = np.stack([metric.compute().double().cpu().numpy() for metric in metrics])
    return PixelCounts(counts_KN3C, iou_KC, ignored_N, sizes)


def score(counts: PixelCounts, classes: tuple[str, ...], names: Sequence[str]) -> ProbeScore:
    """Compute mean IoU, IoU of each class and pixel accuracy of one head, with intervals over images."""
    hit_NC, labelled_NC, predicted_NC = counts.counts_KN3C[0].transpose(1, 0, 2)
    counts_NS = counts.counts_KN3C[0].reshape(len(names), -1).astype(float)
    values = iou_and_accuracy(counts_NS.sum(0, keepdims=True))[0]
    low, high = bootstrap_interval(counts_NS, iou_and_accuracy)
    [value] = counts.mean_iou()
    assert math.isclose(values[0], value, abs_tol=1e-5), "the counts of the images must give torchmetrics' value"
    occurs = labelled_NC.sum(0) > 0
    n = len(names)
    quantities = [("mean IoU", ""), ("pixel accuracy", ""), *(("IoU", name) for name in classes)]
    rows = [
        {"quantity": name, "of": of, "value": value, "ci_low": low[i], "ci_high": high[i], "n": n, "unit": "share"}
        for i, ((name, of), value) in enumerate(zip(quantities, values, strict=True))
        if i < 2 or occurs[i - 2]
    ]
    pixels_N = labelled_NC.sum(1)
    with np.errstate(invalid="ignore"):
        accuracy_N = hit_NC.sum(1) / pixels_N
    columns = {"image": list(names), "pixels": pixels_N, "ignored": counts.ignored_N, "accuracy": accuracy_N}
    for kind, counts_NC in (("hit", hit_NC), ("labelled", labelled_NC), ("predicted", predicted_NC)):
        columns |= {f"{kind}: {name}": counts_NC[:, c] for c, name in enumerate(classes)}
    missing = [name for name, there in zip(classes, occurs, strict=True) if not there]
    (height, width), most = counts.sizes.most_common(1)[0]
    size = f"the masks' own size, {width}×{height}"
    if most < n:
        size = f"each mask's own size (most often {width}×{height})"
    ignored = 100 * counts.ignored_N.sum() / (counts.ignored_N.sum() + pixels_N.sum())
    return ProbeScore(
        float(values[0]),
        float(low[0]),
        float(high[0]),
        pd.DataFrame(columns).astype({"image": "str"}),
        make_table(rows),
        {
            "mean IoU at": size,
            "mean IoU over": f"{int(occurs.sum())} classes, of the whole set's confusion matrix; "
            + (f"left out, because no test mask has them: {', '.join(missing)}" if missing else "all occur"),
            "no class": f"{ignored:.1f} % of the test masks' pixels ({IGNORED}) do not count",
        },
    )


def iou_and_accuracy(counts_NS: np.ndarray) -> np.ndarray:
    """Compute mean IoU, pixel accuracy and each class's IoU, (…, 2 + C), from counts of pixels, (…, 3·C).

    IoU = correct / (labelled + predicted − correct). A class without labelled pixels has no IoU (NaN) and is not in the
    mean.
    """
    hit_NC, labelled_NC, predicted_NC = np.split(counts_NS, 3, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou_NC = np.where(labelled_NC > 0, hit_NC / (labelled_NC + predicted_NC - hit_NC), np.nan)
        accuracy_N = hit_NC.sum(1) / labelled_NC.sum(1)
        there_N = (labelled_NC > 0).sum(1)
        mean_N = np.nansum(iou_NC, axis=1) / np.where(there_N > 0, there_N, np.nan)
    return np.concatenate([mean_N[:, None], accuracy_N[:, None], iou_NC], axis=1)


def patch_logits(heads: Heads, grids: PatchFeatures, indices_B: np.ndarray) -> Tensor:
    """Return the logits of every patch, (B, K·C, h, w)."""
    # Sorted reads are much faster from disk, and a memory-mapped array is copied once.
    order = np.argsort(indices_B)
    x_BPF = torch.from_numpy(grids.features_NPF[indices_B[order]]).to(grids.device).float()
    logits_BPL = heads(x_BPF.flatten(0, 1)).unflatten(0, x_BPF.shape[:2])
    back = torch.from_numpy(np.argsort(order)).to(grids.device)
    return logits_BPL[back].mT.unflatten(2, grids.grid)
