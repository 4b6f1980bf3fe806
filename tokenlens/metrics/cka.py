"""How alike the geometry of CLS features and of mean-patch features is, block by block."""
# Shapes: F feature sets (a block's CLS or mean-patch tokens), n images, D channels.

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from tokenlens.metrics import Metric, NamedArray, Row, row
from tokenlens.moments import JACKKNIFE_GROUPS, jackknife_interval
from tokenlens.summaries import BatchSummary, TokenSummary

Array = NDArray[np.float64]

CKA_IMAGES = 256
"""Images whose features are kept: those with an index below it. The debiased estimate does not drift with n."""


def debiased_hsic(gram_Fnn: Array) -> Array:
    """Unbiased HSIC between all pairs of F linear kernels, (F, F); needs n ≥ 4.

    Song et al., Feature selection via dependence maximization (JMLR 2012), equation 5.
    """
    n = gram_Fnn.shape[-1]
    if n < 4:
        return np.full((len(gram_Fnn),) * 2, np.nan)
    gram = gram_Fnn.copy()
    gram[:, np.arange(n), np.arange(n)] = 0
    flat, rows = gram.reshape(len(gram), -1), gram.sum(-1)
    sums = rows.sum(-1)
    trace = flat @ flat.T
    return (trace + np.outer(sums, sums) / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows @ rows.T) / (n * (n - 3))


def debiased_cka(gram_Fnn: Array) -> Array:
    """Debiased linear CKA between all pairs of F kernels, (F, F), about [0, 1]; 0 in expectation if independent.

    Kornblith et al. (2019, arXiv 1905.00414) with the unbiased HSIC. NaN for fewer than four images, or where a
    feature set does not vary.
    """
    hsic = debiased_hsic(gram_Fnn)
    own = np.where(np.diag(hsic) > 0, np.diag(hsic), np.nan)
    return hsic / np.sqrt(np.outer(own, own))


class CKA(Metric):
    """Between CLS features and mean-patch features at resid_post; matrices as arrays, their diagonals in the table."""

    title = "debiased linear CKA"
    unit = "CKA"
    sites = ("resid_post",)
    requires = ("cls",)
    wanted = frozenset({"patch_sum"})

    def __init__(self) -> None:
        self._indices: list[int] = []
        self._features: list[NDArray[np.float32]] = []
        self._blocks: list[int] = []
        self._result: dict[str, Array] | None = None

    def update(self, batch: BatchSummary) -> None:
        """Keep CLS and mean patch of the first images, (B, 2, blocks, D)."""
        kept = [i for i, index in enumerate(batch.indices) if index < CKA_IMAGES]
        if not kept:
            return
        for cells in batch.stacks(TokenSummary, self.sites):
            blocks = [block for block, _ in cells.keys if block is not None]
            order = np.argsort(blocks)
            self._blocks = sorted(blocks)
            cls, patch = cells.summary.group("cls").squeeze(-2), cells.summary.patch_sum / cells.summary.patches
            both_2LBD = torch.stack([cls, patch])[:, order.tolist()].float()
            self._features.append(both_2LBD[:, :, kept].permute(2, 0, 1, 3).cpu().numpy())
        self._indices += [batch.indices[i] for i in kept]

    def merge(self, other: CKA) -> None:
        """Take in what another instance has kept."""
        self._blocks = self._blocks or other._blocks
        self._indices += other._indices
        self._features += other._features
        self._result = None

    def _cka(self) -> dict[str, Array]:
        if self._result is None:
            order = np.argsort(self._indices, kind="stable")
            features = np.concatenate(self._features)[order].astype(np.float64)
            n = len(features)
            flat_FnD = features.reshape(n, -1, features.shape[-1]).transpose(1, 0, 2)
            # Centring changes nothing in exact arithmetic; it spares the Gram matrices digits.
            flat_FnD = flat_FnD - flat_FnD.mean(1, keepdims=True)
            gram = flat_FnD @ flat_FnD.transpose(0, 2, 1)
            value = debiased_cka(gram)
            groups = np.array(self._indices)[order] % JACKKNIFE_GROUPS
            present = [g for g in range(JACKKNIFE_GROUPS) if (groups == g).any()]
            left_out = [debiased_cka(gram[:, groups != g][:, :, groups != g]) for g in present] if n > 4 else []
            counts = np.array([(groups == g).sum() for g in present]) if left_out else np.zeros(0, dtype=np.int64)
            low, high = jackknife_interval(value, np.array(left_out), counts)
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
                "", block, "resid_post", "cls-patch", value=result["value"][i], n=len(self._indices),
                ci_low=result["low"][i], ci_high=result["high"][i], unit=self.unit,
            )
            for i, block in enumerate(self._blocks)
        ]

    def arrays(self) -> dict[str, NamedArray]:
        """Block × block matrices for cls-cls, cls-patch and patch-patch, with the bounds of their intervals."""
        arrays = {}
        for pair in ("cls-cls", "cls-patch", "patch-patch") if self._features else ():
            dims = tuple(f"block_{group}" for group in pair.split("-"))
            dims = dims if dims[0] != dims[1] else (dims[0], f"{dims[1]}_2")
            for name, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
                arrays[pair + suffix] = NamedArray(self._block(self._cka()[name], pair), dims, self.unit)
        return arrays
