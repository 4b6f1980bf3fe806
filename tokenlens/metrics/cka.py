"""How alike the geometry of CLS features and of mean-patch features is, block by block."""
# Shapes: F feature sets (a block's CLS or mean-patch tokens), n images, D channels.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenlens.metrics.base import Metric, NamedArray, Row, row
from tokenlens.reduction.batch import BatchSummary
from tokenlens.reduction.summaries import TokenSummary
from tokenlens.statistics.moments import JACKKNIFE_GROUPS, jackknife_interval
from tokenlens.tokens import Site

Array = NDArray[np.float64]

CKA_IMAGES = 256
"""Images whose features are kept: those with an index below it. The debiased estimate does not drift with n."""


def debiased_hsic(gram_Fnn: Array) -> Array:
    """Unbiased HSIC between all pairs of F linear kernels, (F, F); needs n ≥ 4.

    Song et al., Feature selection via dependence maximization (JMLR 2012), equation 5.
    """
    gram = _without_diagonal(gram_Fnn.copy())
    return _hsic(_products(gram), gram.sum(-1))


def debiased_cka(gram_Fnn: Array) -> Array:
    """Debiased linear CKA between all pairs of F kernels, (F, F), about [0, 1]; 0 in expectation if independent.

    Kornblith et al. (2019, arXiv 1905.00414) with the unbiased HSIC. NaN for fewer than four images, or where a
    feature set does not vary.
    """
    return _cka(debiased_hsic(gram_Fnn))


def _without_diagonal(gram_Fnn: Array) -> Array:
    """The same array, its diagonals now 0: the unbiased HSIC leaves out each image's product with itself."""
    images = np.arange(gram_Fnn.shape[-1])
    gram_Fnn[:, images, images] = 0
    return gram_Fnn


def _products(gram_Fmn: Array) -> Array:
    """Σ_ij K_ij·L_ij for all pairs of kernels, or of some of their rows, (F, F)."""
    flat = gram_Fmn.reshape(len(gram_Fmn), -1)
    return flat @ flat.T


def _hsic(products_FF: Array, rows_Fn: Array) -> Array:
    """From kernels without diagonal: their products and the sums of their rows."""
    n = rows_Fn.shape[-1]
    if n < 4:
        return np.full_like(products_FF, np.nan)
    sums = rows_Fn.sum(-1)
    others = np.outer(sums, sums) / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows_Fn @ rows_Fn.T
    return (products_FF + others) / (n * (n - 3))


def _cka(hsic_FF: Array) -> Array:
    own = np.where(np.diag(hsic_FF) > 0, np.diag(hsic_FF), np.nan)
    return hsic_FF / np.sqrt(np.outer(own, own))


def gram(features_FnD: NDArray[Any]) -> Array:
    """Linear kernels of F feature sets, (F, n, n)."""
    count, n, _ = features_FnD.shape
    kernels_Fnn = np.empty((count, n, n))
    for features_nD, kernel_nn in zip(features_FnD, kernels_Fnn, strict=True):
        # Centring changes nothing in exact arithmetic; it spares the Gram matrices digits.
        centred_nD = features_nD - features_nD.mean(0, dtype=np.float64)
        np.matmul(centred_nD, centred_nD.T, out=kernel_nn)
    return kernels_Fnn


def cka_with_interval(gram_Fnn: Array, indices: NDArray[np.int64]) -> tuple[Array, Array, Array]:
    """``debiased_cka`` and the bounds of its 95 % jackknife interval, all (F, F); images are grouped by their index.

    ``gram_Fnn`` is overwritten. What a group of images adds is taken away, so that nothing of its size is made.
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
    """Between CLS features and mean-patch features at resid_post; matrices as arrays, their diagonals in the table.

    The arrays also hold the features that the model ends with, for comparisons with other models.
    """

    title = "debiased linear CKA"
    unit = "CKA"
    sites = ("resid_post",)
    requires = ("cls",)
    wanted = frozenset({"patch_sum"})

    def __init__(self) -> None:
        self._indices: list[int] = []
        self._features: list[NDArray[np.float32]] = []
        self._final: list[NDArray[np.float32]] = []
        self._blocks: list[int] = []
        self._result: dict[str, Array] | None = None

    @property
    def observes(self) -> tuple[str, ...]:
        """The final norm, too: what leaves it are the model's features."""
        return (*self.sites, str(Site.FINAL_NORM))

    def update(self, batch: BatchSummary) -> None:
        """Keep CLS and mean patch of the first images, (B, 2, blocks, D), and those of the final norm, (B, 2, D)."""
        kept = [i for i, index in enumerate(batch.indices) if index < CKA_IMAGES]
        if not kept:
            return
        for cells in batch.stacks(TokenSummary, self.sites):
            blocks = [block for block, _ in cells.keys if block is not None]
            order = np.argsort(blocks)
            self._blocks = sorted(blocks)
            self._features.append(_cls_and_patch(cells.summary)[kept][:, :, order])
        for cells in batch.stacks(TokenSummary, (str(Site.FINAL_NORM),)):
            self._final.append(_cls_and_patch(cells.summary)[kept][:, :, 0])
        self._indices += [batch.indices[i] for i in kept]

    def merge(self, other: CKA) -> None:
        """Take in what another instance has kept."""
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
        """CKA within each block of CLS with mean patch."""
        if not self._features:
            return []
        result = {name: np.diag(self._block(matrix, "cls-patch")) for name, matrix in self._cka().items()}
        return [
            row(
                "",
                block,
                "resid_post",
                "cls-patch",
                value=result["value"][i],
                n=len(self._indices),
                ci_low=result["low"][i],
                ci_high=result["high"][i],
                unit=self.unit,
            )
            for i, block in enumerate(self._blocks)
        ]

    def arrays(self) -> dict[str, NamedArray]:
        """Block × block matrices for cls-cls, cls-patch and patch-patch, with the bounds of their intervals.

        And the features (image, channel) that the model ends with: the final norm's output, or the last resid_post.
        """
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
    """CLS and mean patch of stacked cells, (B, 2, cells, D)."""
    assert summary.patch_sum is not None
    cls_NBD, patch_NBD = summary.group("cls").squeeze(-2), summary.patch_sum / summary.patches
    return torch.stack([cls_NBD, patch_NBD]).float().permute(2, 0, 1, 3).cpu().numpy()
