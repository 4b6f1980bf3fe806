"""Weighted k-nearest neighbours on frozen features, as in DINO, without training."""

# Shapes: N training images, M test images, B of them at a time, F channels of a feature.

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tokenlens.probes._heads import hold_out
from tokenlens.probes.base import RANKS, FittedHead, ImageFeatures, ImageProbe, import_extra

TEMPERATURE = 0.07
KS = (10, 20, 100, 200)

_MAX_NUMBERS = 2**26
"""Similarities and votes that are in memory at a time."""


def weighted_knn(
    query_MF: Tensor,
    bank_NF: Tensor,
    labels_N: Tensor,
    classes: int,
    k: int,
    temperature: float = TEMPERATURE,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Rank classes by the votes of the k training images with the highest cosine, weighted by exp(cosine / T).

    Args:
        query_MF: features to classify.
        bank_NF: features of the training images.
        labels_N: their class numbers.
        classes: the number of classes.
        k: the number of neighbours that vote; at most N.
        temperature: T.
        progress: called with the number of features that were classified since the last call.

    Returns:
        (M, up to 5) int64: classes, most votes first.

    Wu et al. 2018; Caron et al. 2021 with T = 0.07.
    """
    knn_predict = import_extra("lightly.utils.benchmarking.knn", "lightly").knn_predict
    bank_FN = functional.normalize(bank_NF, dim=1).T.contiguous()
    # lightly keeps the similarities to the whole bank and a vote per neighbour and class.
    size = max(1, _MAX_NUMBERS // (len(bank_NF) + k * classes))
    found = []
    for part_BF in query_MF.split(size):
        unit_BF = functional.normalize(part_BF, dim=1)
        found.append(knn_predict(unit_BF, bank_FN, labels_N, classes, knn_k=k, knn_t=temperature)[:, :RANKS])
        if progress is not None:
            progress(len(part_BF))
    return torch.cat(found)


class Knn(ImageProbe):
    """DINO's k-NN classifier; k is chosen on a fifth of the training images."""

    def fit(self, train: ImageFeatures, seed: int) -> FittedHead:
        """Choose k, and keep the directions of all training images' features, in float16."""
        held = hold_out(len(train), seed, train.labels_N)
        ks = [k for k in KS if k <= (~held).sum()] or [int((~held).sum())]
        bank_NF, labels_N = train.features_NF, torch.from_numpy(train.labels_N).to(train.device)
        classes = len(train.classes)
        kept, out = (torch.from_numpy(np.flatnonzero(part)).to(train.device) for part in (~held, held))
        accuracies = []
        show = self._counter("choosing k on the held-out images", len(ks) * int(held.sum()))
        for k in ks:
            ranked = weighted_knn(bank_NF[out], bank_NF[kept], labels_N[kept], classes, k, progress=show)
            accuracies.append(float((ranked[:, 0] == labels_N[out]).double().mean()))
        k = ks[int(np.argmax(accuracies))]
        return FittedHead(
            tensors={
                "features": functional.normalize(bank_NF, dim=1).half(),
                "labels": labels_N,
                "k": torch.tensor(k),
            },
            protocol={
                "classifier": f"k nearest neighbours by cosine, votes weighted by exp(cosine / {TEMPERATURE:g})",
                "k": f"{k}, the best of {', '.join(map(str, ks))} on the held-out images",
                "held out": f"{int(held.sum())} of {len(train)} training images, the same share of each class, "
                "to choose k; then all of them vote",
            },
            choices=[(f"k = {k}", accuracy, int(held.sum())) for k, accuracy in zip(ks, accuracies, strict=True)],
        )

    def rank(self, head: FittedHead, features_MF: Tensor, classes: int) -> np.ndarray:
        """Let the nearest training images vote."""
        bank_NF, labels_N = (head.tensors[name].to(features_MF.device) for name in ("features", "labels"))
        k = int(head.tensors["k"])
        show = self._counter("classifying images", len(features_MF))
        ranked = weighted_knn(features_MF, bank_NF.float(), labels_N, classes, k, progress=show)
        found: np.ndarray = ranked.cpu().numpy()
        return found

    def _counter(self, what: str, total: int) -> Callable[[int], None]:
        """Return a function that adds to the number of images that a stage has done, and reports it."""
        done = 0

        def add(count: int) -> None:
            nonlocal done
            done += count
            if self.progress is not None:
                self.progress(what, done, total, "images")

        add(0)
        return add
