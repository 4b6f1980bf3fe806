"""Debiased linear CKA between CLS features and mean-patch features of all blocks."""
# Shapes: F feature sets (a block's CLS or mean-patch tokens), n images, D channels.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenlens.metrics.base import Metric, NamedArray, Row, make_row
from tokenlens.reduction.summaries import BatchSummary, TokenSummary
from tokenlens.statistics.jackknife import JACKKNIFE_GROUPS, jackknife_interval
from tokenlens.tokens import Site

Array = NDArray[np.float64]

CKA_IMAGES = 256
"""Only images with an index below this are used. The debiased estimate does not drift with n."""


def debiased_hsic(gram_Fnn: Array) -> Array:
    """Compute the unbiased HSIC between all pairs of F linear kernels, (F, F); needs n ≥ 4.

    Song et al., Feature selection via dependence maximization (JMLR 2012), equation 5.
    """
    gram = _without_diagonal(gram_Fnn.copy())
    return _hsic(_products(gram), gram.sum(-1))


def debiased_cka(gram_Fnn: Array) -> Array:
    """Compute the debiased linear CKA between all pairs of F kernels, (F, F), about [0, 1].

    Kornblith et al. (2019, arXiv 1905.00414) with the unbiased HSIC: 0 in expectation if independent. NaN for fewer
    than four images, or where a feature set does not vary.
    """
    return _cka(debiased_hsic(gram_Fnn))


def _without_diagonal(gram_Fnn: Array) -> Array:
    """Set the diagonals to 0: the unbiased HSIC leaves out each image's product with itself."""
    images = np.arange(gram_Fnn.shape[-1])
    gram_Fnn[:, images, images] = 0
    return gram_Fnn


def _products(gram_Fmn: Array) -> Array:
    """Compute Σ_ij K_ij·L_ij for all pairs of kernels, or of some of their rows, (F, F)."""
    flat = gram_Fmn.reshape(len(gram_Fmn), -1)
    return flat @ flat.T


def _hsic(products_FF: Array, rows_Fn: Array) -> Array:
    """Compute the HSIC from the products and the row sums of kernels without diagonal."""
    n = rows_Fn.shape[-1]
    if n < 4:
        return np.full_like(products_FF, np.nan)
    sums = rows_Fn.sum(-1)
    others = np.outer(sums, sums) / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows_Fn @ rows_Fn.T
    return (products_FF + others) / (n * (n - 3))


def _cka(hsic_FF: Array) -> Array:
    diagonal = np.where(np.diag(hsic_FF) > 0, np.diag(hsic_FF), np.nan)
    return hsic_FF / np.sqrt(np.outer(diagonal, diagonal))


def gram(features_FnD: NDArray[Any]) -> Array:
    """Compute the linear kernels of F feature sets, (F, n, n)."""
    count, n, _ = features_FnD.shape
    kernels_Fnn = np.empty((count, n, n))
    for features_nD, kernel_nn in zip(features_FnD, kernels_Fnn, strict=True):
        # Centring changes nothing in exact arithmetic, but saves digits of the Gram matrices.
        centred_nD = features_nD - features_nD.mean(0, dtype=np.float64)
        np.matmul(centred_nD, centred_nD.T, out=kernel_nn)
    return kernels_Fnn


def cka_with_interval(gram_Fnn: Array, indices: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """Compute ``debiased_cka`` and the bounds of its 95 % jackknife interval, all (F, F), grouping images by index.

    Overwrites ``gram_Fnn``. The contribution of each group is subtracted, so that no second array of that size is made.
    """
    gram_Fnn = _without_diagonal(gram_Fnn)
    products_FF, rows_Fn = _products(gram_Fnn), gram_Fnn.sum(-1)
    value = _cka(_hsic(products_FF, rows_Fn))
    groups = indices % JACKKNIFE_GROUPS
    left_out, counts = [], []
    for group in np.unique(groups) if len(indices) > 4 else ():
        inside = groups == group
        of_group_Fmn = gram_Fnn[:, inside]
        among_Fmm = of_group_Fmn[:, :, inside]
        products = products_FF - 2 * _products(of_group_Fmn) + _products(among_Fmm)
        left_out.append(_cka(_hsic(products, (rows_Fn - of_group_Fmn.sum(1))[:, ~inside])))
        counts.append(inside.sum())
    low, high = jackknife_interval(value, np.array(left_out), np.array(counts, dtype=np.int64))
    return value, low, high


class CKA(Metric):
    """Similarity of the geometry of CLS features and of mean-patch features of the same images.

    Formula: HSIC(K, L) / √(HSIC(K, K)·HSIC(L, L)) of the linear kernels K = XXᵀ of the features (images, D), with the
        unbiased HSIC; about 0 to 1, 0 expected of unrelated features. The table has CLS with mean patch of each block.
    Arrays: ``cls-cls``, ``cls-patch`` and ``patch-patch`` between all blocks, with bounds ``…_low`` and ``…_high``;
        ``cls_features`` and ``patch_features`` (image, channel) at the final norm, or else the last ``resid_post``.
    Reference: Kornblith et al. 2019 (arXiv 1905.00414); Song et al. 2012 (JMLR), equation 5.
    Pitfalls: Uses at most 256 images and needs 4. Blind to rotation and scale; debiased values can be below 0.
    Tested against: U-centring (Székely and Rizzo 2014) in NumPy.
    """

    title = "debiased linear CKA"
    unit = "CKA"
    sites = ("resid_post",)
    needs = frozenset({"cls", "patch_sum"})

    def __init__(self) -> None:
        self._indices: list[int] = []
        self._features: list[NDArray[np.float32]] = []
        self._final: list[NDArray[np.float32]] = []
        self._blocks: list[int] = []
        self._result: dict[str, Array] | None = None

    @property
    def observes(self) -> tuple[str, ...]:
        """``resid_post``, and the final norm, whose output is the model's features."""
        return (*self.chosen_sites, Site.FINAL_NORM)

    def update(self, batch: BatchSummary) -> None:
        """Keep CLS and mean patch of the first images, (B, 2, blocks, D), and of the final norm, (B, 2, D)."""
        kept = [i for i, index in enumerate(batch.indices) if index < CKA_IMAGES]
        if not kept:
            return
        for stack in batch.stacks(TokenSummary, self.chosen_sites):
            blocks = [block for block, _ in stack.keys if block is not None]
            order = np.argsort(blocks)
            self._blocks = sorted(blocks)
            self._features.append(_cls_and_patch(stack.summary)[kept][:, :, order])
        for stack in batch.stacks(TokenSummary, (Site.FINAL_NORM,)):
            self._final.append(_cls_and_patch(stack.summary)[kept][:, :, 0])
        self._indices += [batch.indices[i] for i in kept]

    def merge(self, other: CKA) -> None:
        """Add the features of another instance."""
        self._blocks = self._blocks or other._blocks
        self._indices += other._indices
        self._features += other._features
        self._final += other._final
        self._result = None

    def _cka(self) -> dict[str, Array]:
        if self._result is None:
            indices = np.array(self._indices)
            ends = np.cumsum([len(part) for part in self._features])
            _, two, blocks, channels = self._features[0].shape
            flat_FnD = np.empty((two * blocks, len(indices), channels), dtype=np.float32)
            for end, part_B2LD in zip(ends, self._features, strict=True):
                part_BFD = part_B2LD.reshape(len(part_B2LD), two * blocks, channels)
                flat_FnD[:, end - len(part_B2LD) : end] = part_BFD.swapaxes(0, 1)
            value, low, high = cka_with_interval(gram(flat_FnD), indices)
            self._result = {"value": value, "low": low, "high": high}
        return self._result

    def _block(self, matrix: Array, pair: str) -> Array:
        count = len(self._blocks)
        side = {"cls": slice(0, count), "patch": slice(count, 2 * count)}
        first, second = pair.split("-")
        return matrix[side[first], side[second]]

    def rows(self) -> list[Row]:
        """Return one row per block."""
        if not self._features:
            return []
        numbers = zip(*(np.diag(self._block(matrix, "cls-patch")) for matrix in self._cka().values()), strict=True)
        keys = (("", block, "resid_post", "cls-patch", None) for block in self._blocks)
        return [
            make_row(key, value, len(self._indices), self.unit, interval=(low, high))
            for key, (value, low, high) in zip(keys, numbers, strict=True)
        ]

    def arrays(self) -> dict[str, NamedArray]:
        """Return the block × block matrices, their bounds, and the model's final features."""
        arrays: dict[str, NamedArray] = {}
        if not self._features:
            return arrays
        order = np.argsort(self._indices, kind="stable")
        last_B2D = np.concatenate(self._final or [part[:, :, -1] for part in self._features])[order]
        for group, features_BD in (("cls", last_B2D[:, 0]), ("patch", last_B2D[:, 1])):
            values = np.ascontiguousarray(features_BD)
            arrays[f"{group}_features"] = NamedArray(values, ("image", "channel"), "activation")
        for pair in ("cls-cls", "cls-patch", "patch-patch"):
            dims = tuple(f"block_{group}" for group in pair.split("-"))
            dims = dims if dims[0] != dims[1] else (dims[0], f"{dims[1]}_2")
            for name, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                arrays[pair + suffix] = NamedArray(self._block(self._cka()[name], pair), dims, self.unit)
        return arrays


def _cls_and_patch(summary: TokenSummary) -> NDArray[np.float32]:
    """Return CLS and mean patch of N stacked summaries, (B, 2, N, D)."""
    assert summary.patch_sum is not None
    cls_NBD, patch_NBD = summary.group("cls").mean(-2), summary.patch_sum / summary.layout.patches
    return torch.stack([cls_NBD, patch_NBD]).float().permute(2, 0, 1, 3).cpu().numpy()
