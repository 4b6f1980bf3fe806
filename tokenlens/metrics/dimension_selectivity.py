"""Which channels belong to CLS and which to patches, before and after each norm."""
# Shapes: N norms, B images, D channels.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from tokenlens.metrics.base import NORM_SITE_NAMES as NORMS
from tokenlens.metrics.base import JackknifeMetric, NamedArray, by_block
from tokenlens.reduction.summaries import NormSummary

Array = NDArray[np.float64]

SELECTIVE = 0.5
"""|s| above which a channel counts as specific to one token group: three times the other's magnitude."""

TOP_SHARE = 0.05


def dimension_selectivity(cls_magnitude: Array, patch_magnitude: Array) -> Array:
    """s_d = (a_cls − a_patch)/(a_cls + a_patch) in [−1, 1], with a = E|x_d|; 1 belongs to CLS alone.

    >>> dimension_selectivity(np.array([3.0, 1.0]), np.array([1.0, 1.0])).tolist()
    [0.5, 0.0]
    """
    return (cls_magnitude - patch_magnitude) / (cls_magnitude + patch_magnitude)


def top_overlap(first: Array, second: Array, share: float = TOP_SHARE) -> Array:
    """Share of each one's largest ``share`` of channels that both have in common, in [0, 1], over the last axis."""
    count = max(1, round(share * first.shape[-1]))
    one = np.argsort(-first, axis=-1, kind="stable")[..., :count]
    two = np.argsort(-second, axis=-1, kind="stable")[..., :count]
    return (one[..., :, None] == two[..., None, :]).any(-1).mean(-1)


def rank_correlation(first: Array, second: Array) -> Array:
    """Spearman's ρ over the last axis; NaN where one side is constant."""
    ranks = [stats.rankdata(x, axis=-1) for x in (first, second)]
    one, two = (r - r.mean(-1, keepdims=True) for r in ranks)
    return (one * two).sum(-1) / np.sqrt((one**2).sum(-1) * (two**2).sum(-1))


class DimensionSelectivity(JackknifeMetric):
    """Per channel of the input and output of each norm; arrays hold s and both groups' magnitudes."""

    title = "channel selectivity"
    unit = {  # noqa: RUF012
        f"{side}_{part}": unit
        for side in ("input", "output")
        for part, unit in {
            "mean": "mean |s|",
            "share": "share of channels",
            "top_overlap": "share",
            "gamma_correlation": "Spearman's ρ",
        }.items()
    }
    of = NormSummary
    sites = NORMS
    requires = ("cls",)
    wanted = frozenset({"patch_abs_sum"})
    needs_norm_stages = True

    def terms(self, summary: NormSummary) -> dict[str, Tensor]:
        """Each image's |CLS| and mean |patch| per channel."""
        terms = {}
        for side, tokens in (("input", summary.input), ("output", summary.output)):
            assert tokens.patch_abs_sum is not None
            terms[f"cls_{side}"] = tokens.group("cls").squeeze(-2).abs()
            terms[f"patch_{side}"] = tokens.patch_abs_sum / tokens.patches
        return terms

    def constants(self, summary: NormSummary) -> dict[str, Tensor]:
        """|γ| for the patches' side."""
        return {} if summary.weight_patch is None else {"gamma": summary.weight_patch.squeeze(1).abs()}

    def value(self, sums: dict[str, Array], n: int, constants: dict[str, Array]) -> dict[tuple[str, str], Array]:
        """Summaries of s over channels."""
        values = {}
        for side in ("input", "output"):
            cls, patch = sums[f"cls_{side}"] / n, sums[f"patch_{side}"] / n
            size = np.abs(dimension_selectivity(cls, patch))
            values[f"{side}_mean", "cls-patch"] = size.mean(-1)
            values[f"{side}_share", "cls-patch"] = (size > SELECTIVE).mean(-1)
            values[f"{side}_top_overlap", "cls-patch"] = top_overlap(cls, patch)
            if "gamma" in constants:
                values[f"{side}_gamma_correlation", "cls-patch"] = rank_correlation(constants["gamma"], size)
        return values

    def arrays(self) -> dict[str, NamedArray]:
        """s and magnitudes, (block, channel) for norm1 and norm2, (channel,) for the final norm."""
        arrays = {}
        for index, (keys, _) in enumerate(self._cells):
            sums = {name: total.sum(axis=0) / self.n for name, total in self._stack_sums(index).items()}
            for site in self.sites:
                for side in ("input", "output"):
                    cls, patch = (by_block(keys, sums[f"{group}_{side}"], site) for group in ("cls", "patch"))
                    if cls is None or patch is None:
                        continue
                    dims = ("channel",) if cls.ndim == 1 else ("block", "channel")
                    s = dimension_selectivity(cls, patch)
                    arrays[f"{side}_{site}"] = NamedArray(s, dims, "selectivity")
                    arrays[f"cls_{side}_{site}"] = NamedArray(cls, dims, "mean |activation|")
                    arrays[f"patch_{side}_{site}"] = NamedArray(patch, dims, "mean |activation|")
        return arrays
