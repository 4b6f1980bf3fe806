"""Linear segmentation of frozen patch features: one linear map for each patch, upsampled to the mask."""

# Shapes: N training images, B images of a step, P patches, S pixels of a step, F channels of a feature, C classes,
# K heads, h and w sides of the patch grid, H and W sides of a mask.

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from tokenlens.probes._heads import Heads, Schedule, edge_note, fit, held_out
from tokenlens.probes._result import table_of
from tokenlens.probes.base import Grids, Judgement, Probe, package
from tokenlens.statistics.bootstrap import interval

IGNORED = 255

SCHEDULE = Schedule(
    optimizer="AdamW",
    learning_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    batch_size=16,
    epochs=30,
    most_steps=40000,
    weight_decay=1e-4,
)
"""Weight decay and the most steps are those of DINOv2's linear segmentation."""

PIXELS = 1024
"""Of each mask that a step takes: an estimate of the loss over all of them, without bias, at a 60th of the cost."""

PASSES = 8
"""So many passes take other pixels; then the first ones come again."""


class Segmentation(Probe):
    """BatchNorm, a 1×1 convolution on the patch grid, bilinear upsampling to the mask, cross-entropy.

    The number is the mean IoU over the classes that occur in the test masks, of the whole set's confusion matrix.
    """

    kind = "patches"
    unit = "mean IoU"

    def judge(self, train: Grids, test: Grids, names: Sequence[str], seed: int) -> Judgement:
        """Choose the learning rate on held-out training images, train it on all of them, and test it."""
        pixels = _draw_pixels(train, seed)
        rates, classes, channels = SCHEDULE.learning_rates, len(train.classes), train.features_NPF.shape[2]

        def loss_of(heads: Heads, places_B: np.ndarray, epoch: int) -> Tensor:
            now = slice(epoch % PASSES * PIXELS, (epoch % PASSES + 1) * PIXELS)
            points_BS2 = torch.from_numpy(pixels.points_NS2[places_B, now]).to(train.device)
            labels_BS = torch.from_numpy(pixels.labels_NS[places_B, now].astype(np.int64)).to(train.device)
            return losses(logits_of(heads, train, places_B), points_BS2, labels_BS, heads.count)

        held = held_out(len(train), seed)
        tried = fit(loss_of, np.flatnonzero(~held), channels, classes, SCHEDULE, seed, train.device)
        shares = classified(tried, train, np.flatnonzero(held)).mean_iou()
        best = int(np.nanargmax(shares))
        head = fit(loss_of, np.arange(len(train)), channels, classes, SCHEDULE, seed, train.device, (rates[best],))
        found = classified(head, test, np.arange(len(test)))
        choices = [
            {
                "quantity": "mean IoU on held-out training images",
                "of": f"learning rate {rate:g}",
                "value": share,
                "n": int(held.sum()),
                "unit": "share",
            }
            for rate, share in zip(rates, shares, strict=True)
        ]
        judgement = judged(found, test.classes, names)
        return Judgement(
            judgement.value,
            judgement.ci_low,
            judgement.ci_high,
            judgement.per_image,
            pd.concat([judgement.table, table_of(choices)], ignore_index=True),
            {
                "head": "BatchNorm (no weights of its own), 1×1 convolution, bilinear upsampling, cross-entropy",
                "training": f"{SCHEDULE.text(len(train))}; loss at {PIXELS} pixels of each full-size mask, "
                f"{PASSES} times other ones",
                "learning rate": f"{rates[best]:g}{edge_note(best, rates)}, the best of "
                f"{', '.join(f'{rate:g}' for rate in rates)} on the held-out images",
                "held out": f"{int(held.sum())} of {len(train)} training images, to choose the learning rate; then it "
                "is trained on all of them",
                **judgement.protocol,
            },
        )


# Training


@dataclass(frozen=True)
class _Pixels:
    """Random pixels of each training mask: where, x and y in (−1, 1), (N, S, 2) float32; and what, (N, S) uint8."""

    points_NS2: np.ndarray
    labels_NS: np.ndarray


def _draw_pixels(grids: Grids, seed: int) -> _Pixels:
    """Whole masks of a large set do not fit into memory: so many of their pixels do."""
    count = PASSES * PIXELS
    points_NS2 = np.empty((len(grids), count, 2), dtype=np.float32)
    labels_NS = np.empty((len(grids), count), dtype=np.uint8)
    random = np.random.RandomState(seed % 2**32)
    for i in range(len(grids)):
        mask_HW = grids.mask_of(i)
        drawn = random.randint(0, mask_HW.size, count)
        labels_NS[i] = mask_HW.reshape(-1)[drawn]
        points_NS2[i] = pixel_centres(drawn, mask_HW.shape)
    if (labels_NS == IGNORED).all():
        raise ValueError(f"the {len(grids)} training masks hold no class, only {IGNORED}")
    return _Pixels(points_NS2, labels_NS)


def pixel_centres(pixels_S: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """x and y (S, 2) of pixels that are counted row by row, as ``grid_sample`` takes them: −1 and 1 are the edges.

    ``grid_sample`` there is what ``interpolate`` to (H, W) gives at these pixels (both ``align_corners=False``).
    """
    height, width = shape
    rows_S, columns_S = np.divmod(pixels_S, width)
    return np.stack([(2 * columns_S + 1) / width - 1, (2 * rows_S + 1) / height - 1], axis=-1).astype(np.float32)


def logits_of(heads: Heads, grids: Grids, places_B: np.ndarray) -> Tensor:
    """(B, K·C, h, w)."""
    # Sorted reads are much faster from a disk, and a memory-mapped array is copied once.
    order = np.argsort(places_B)
    x_BPF = torch.from_numpy(grids.features_NPF[places_B[order]]).to(grids.device).float()
    logits_BPL = heads(x_BPF.flatten(0, 1)).unflatten(0, x_BPF.shape[:2])
    back = torch.from_numpy(np.argsort(order)).to(grids.device)
    return logits_BPL[back].mT.unflatten(2, grids.grid)


def losses(logits_BLhw: Tensor, points_BS2: Tensor, labels_BS: Tensor, heads: int) -> Tensor:
    """Cross-entropy of each head at some pixels of the upsampled logits, (K,); pixels of no class do not count."""
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


# Testing


@dataclass(frozen=True)
class Found:
    """How the pixels of some images were classified by each head.

    Args:
        sums_KN3C: for each image and class, pixels that are hit, labelled and predicted so: all that an IoU is made of.
        iou_KC: torchmetrics' IoU of the whole set.
        ignored_N: pixels of no class.
        sizes: (height, width) of the masks and how many have it.
    """

    sums_KN3C: np.ndarray
    iou_KC: np.ndarray
    ignored_N: np.ndarray
    sizes: Counter[tuple[int, int]]

    def mean_iou(self) -> list[float]:
        """Of each head, over the classes that occur in these masks."""
        occurs_C = self.sums_KN3C[0, :, 1].sum(0) > 0
        return [float(iou_C[occurs_C].mean()) for iou_C in self.iou_KC]


@torch.no_grad()
def classified(heads: Heads, grids: Grids, places_N: np.ndarray) -> Found:
    """Classify some images at the full size of their masks."""
    index = package("torchmetrics.classification", "torchmetrics").MulticlassJaccardIndex
    classes = heads.classes
    metrics = [
        index(classes, average="none", ignore_index=IGNORED, validate_args=False).to(grids.device)
        for _ in range(heads.count)
    ]
    sums_KN3C = np.zeros((heads.count, len(places_N), 3, classes), dtype=np.int64)
    ignored_N, sizes = np.zeros(len(places_N), dtype=np.int64), Counter[tuple[int, int]]()
    for n, place in enumerate(places_N):
        mask_HW = torch.from_numpy(grids.mask_of(int(place)).astype(np.int64)).to(grids.device)
        logits_1Lhw = logits_of(heads, grids, np.array([place]))
        large_LHW = functional.interpolate(logits_1Lhw, mask_HW.shape, mode="bilinear", align_corners=False)[0]
        predicted_KHW = large_LHW.unflatten(0, (heads.count, classes)).argmax(1)
        for k, metric in enumerate(metrics):
            before_CC = metric.confmat.clone()
            metric.update(predicted_KHW[k][None], mask_HW[None])
            counts_CC = (metric.confmat - before_CC).cpu().numpy()
            sums_KN3C[k, n] = np.diagonal(counts_CC), counts_CC.sum(1), counts_CC.sum(0)
        ignored_N[n] = int((mask_HW == IGNORED).sum())
        sizes[mask_HW.shape[0], mask_HW.shape[1]] += 1
    iou_KC = np.stack([metric.compute().double().cpu().numpy() for metric in metrics])
    return Found(sums_KN3C, iou_KC, ignored_N, sizes)


def judged(found: Found, classes: tuple[str, ...], names: Sequence[str]) -> Judgement:
    """mIoU, IoU of each class and pixel accuracy of one head, with intervals over images."""
    hit_NC, labelled_NC, predicted_NC = found.sums_KN3C[0].transpose(1, 0, 2)
    sums_NS = found.sums_KN3C[0].reshape(len(names), -1).astype(float)
    values = numbers(sums_NS.sum(0, keepdims=True))[0]
    low, high = interval(sums_NS, numbers)
    [value] = found.mean_iou()
    assert math.isclose(values[0], value, abs_tol=1e-5), "the sums of the images must give torchmetrics' number"
    occurs = labelled_NC.sum(0) > 0
    n = len(names)
    rows: list[dict[str, Any]] = [
        {
            "quantity": quantity,
            "of": of,
            "value": values[i],
            "ci_low": low[i],
            "ci_high": high[i],
            "n": n,
            "unit": "share",
        }
        for i, (quantity, of) in enumerate(
            [("mean IoU", ""), ("pixel accuracy", "")] + [("IoU", name) for name in classes]
        )
        if i < 2 or occurs[i - 2]
    ]
    pixels_N = labelled_NC.sum(1)
    with np.errstate(invalid="ignore"):
        accuracy_N = hit_NC.sum(1) / pixels_N
    columns = {"image": list(names), "pixels": pixels_N, "ignored": found.ignored_N, "accuracy": accuracy_N}
    for what, of_NC in (("hit", hit_NC), ("labelled", labelled_NC), ("predicted", predicted_NC)):
        columns |= {f"{what}: {name}": of_NC[:, c] for c, name in enumerate(classes)}
    missing = [name for name, there in zip(classes, occurs, strict=True) if not there]
    (height, width), most = found.sizes.most_common(1)[0]
    others = "" if most == n else f" (most often {width}×{height})"
    return Judgement(
        value,
        float(low[0]),
        float(high[0]),
        pd.DataFrame(columns).astype({"image": "str"}),
        table_of(rows),
        {
            "mean IoU at": f"the masks' own size, {width}×{height}" if most == n else f"each mask's own size{others}",
            "mean IoU over": f"{int(occurs.sum())} classes, of the whole set's confusion matrix; "
            + (f"left out, because no test mask has them: {', '.join(missing)}" if missing else "all occur"),
            "no class": f"{100 * found.ignored_N.sum() / (found.ignored_N.sum() + pixels_N.sum()):.1f} % of the test "
            f"masks' pixels ({IGNORED}) do not count",
        },
    )


def numbers(sums_NS: np.ndarray) -> np.ndarray:
    """mIoU, pixel accuracy and the IoU of each class, (…, 2 + C), from sums of hits, labels and predictions (…, 3·C).

    IoU = hits / (labels + predictions − hits). A class without labels has no IoU (NaN) and does not enter the mean.
    """
    hit_NC, labelled_NC, predicted_NC = np.split(sums_NS, 3, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou_NC = np.where(labelled_NC > 0, hit_NC / (labelled_NC + predicted_NC - hit_NC), np.nan)
        accuracy_N = hit_NC.sum(1) / labelled_NC.sum(1)
        there_N = (labelled_NC > 0).sum(1)
        mean_N = np.nansum(iou_NC, axis=1) / np.where(there_N > 0, there_N, np.nan)
    return np.concatenate([mean_N[:, None], accuracy_N[:, None], iou_NC], axis=1)
