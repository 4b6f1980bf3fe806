"""Contribution of each channel to the CLS–patch cosine, and to its fall across each norm."""
# Shapes: N stacked summaries, B images, D channels.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tokenlens.metrics._per_image import TokenMetric, Values
from tokenlens.metrics.base import NamedArray, by_block
from tokenlens.reduction.summaries import BatchSummary, NormSummary, TokenSummary, to_float64
from tokenlens.tokens import NORM_SITES, TOKEN_SITES, Key


def channel_contributions(summary: TokenSummary) -> Tensor:
    """Compute c_d = u_cls,d · (Σ_i u_i,d)/P, (N, B, D): the channels' parts of the mean CLS–patch cosine."""
    assert summary.unit_patch_sum is not None
    return summary.unit_group("cls").mean(-2) * summary.unit_patch_sum / summary.layout.patches


def channel_concentration(contributions_D: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the largest share of Σ|c_d|, and the effective number of channels, exp of the entropy of the shares.

    >>> top, effective = channel_concentration(torch.tensor([1.0, -1.0, 0.0, 0.0]))
    >>> float(top), round(float(effective), 3)
    (0.5, 2.0)
    """
    shares = contributions_D.abs() / contributions_D.abs().sum(-1, keepdim=True)
    return shares.amax(-1), torch.special.entr(shares).sum(-1).exp()


class CosineChannels(TokenMetric):
    """Contribution of each channel to the CLS–patch cosine, at every token site.

    Formula: c_d = u_cls,d·(Σ_i u_i,d)/P; Σ_d c_d is the CLS–patch cosine.
    Parts:
        top1_share: the largest |c_d| over Σ|c_d|, in (0, 1]; per image.
        effective_channels: exp of the entropy of |c_d|/Σ|c_d|, from 1 to D; per image.
    Arrays: ``resid_pre``, ``norm1``, … hold the mean of c_d over images (block, channel); ``fall_norm1``,
        ``fall_norm2`` and ``fall_final_norm`` the contribution before the norm minus that after it, which add up to the
        fall of the cosine.
    Reference: The cosine written as a sum over channels; Timkey and van Schijndel 2021 (arXiv 2109.04404).
    Pitfalls: Contributions are signed and can be larger than their sum; the shares are of their absolute values.
    Tested against: every single product in NumPy.
    """

    title = "channels of the CLS–patch cosine"
    unit = {"top1_share": "share", "effective_channels": "channels"}  # noqa: RUF012
    sites = TOKEN_SITES
    needs = frozenset({"cls", "unit_patch_sum", "norm_stages"})
    no_interval = dict.fromkeys(unit, "rare images with very many channels decide the mean")

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[tuple[str, Key], Tensor] = {}
        self._count = 0

    def per_image(self, summary: TokenSummary) -> Values:
        """Compute the concentration of the contributions."""
        top, effective = channel_concentration(to_float64(channel_contributions(summary)))
        return {("top1_share", "cls-patch"): top, ("effective_channels", "cls-patch"): effective}

    def update(self, batch: BatchSummary) -> None:
        """Add one batch."""
        super().update(batch)
        self._count += len(batch.indices)
        for stack in batch.stacks(TokenSummary, self.chosen_sites):
            self._add("", stack.keys, channel_contributions(stack.summary))
        for stack in batch.stacks(NormSummary, NORM_SITES):
            summary: NormSummary = stack.summary
            fall_NBD = channel_contributions(summary.input) - channel_contributions(summary.output)
            self._add("fall_", stack.keys, fall_NBD)

    def _add(self, prefix: str, keys: list[Key], values_NBD: Tensor) -> None:
        total_ND = to_float64(values_NBD).sum(1)
        for row, key in enumerate(keys):
            known = self._sums.get((prefix, key))
            self._sums[prefix, key] = total_ND[row] if known is None else known + total_ND[row]

    def merge(self, other: CosineChannels) -> None:  # type: ignore[override]
        """Add the images of another instance."""
        super().merge(other)
        self._count += other._count
        for key, total in other._sums.items():
            self._sums[key] = self._sums[key] + total.to(self._sums[key].device) if key in self._sums else total

    def arrays(self) -> dict[str, NamedArray]:
        """Return the mean contributions by site, and the mean falls by norm."""
        arrays = {}
        for prefix, sites in (("", self.chosen_sites), ("fall_", NORM_SITES)):
            keys = [key for start, key in self._sums if start == prefix]
            if not keys:
                continue
            values = np.stack([self._sums[prefix, key].cpu().numpy() / self._count for key in keys])
            for site in sites:
                found = by_block(keys, values, str(site))
                if found is not None:
                    dims = ("block", "channel")[-found.ndim :]
                    arrays[f"{prefix}{site}"] = NamedArray(found, dims, "cosine")
        return arrays
