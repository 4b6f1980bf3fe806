"""Channels of the residual stream that are far larger than the others, by token group."""
# Shapes: N residual sites, B images, D channels, K top channels.

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.metrics._jackknife import Array, JackknifeMetric
from tokenlens.metrics.base import NamedArray, by_block
from tokenlens.reduction.summaries import TokenSummary
from tokenlens.tokens import RESIDUAL_SITES

TOP = 3
"""Number of channels whose share of the energy is reported."""


def max_over_median(magnitude_D: Array) -> Array:
    """Compute the largest magnitude over the median magnitude, over the last axis, ≥ 1.

    >>> float(max_over_median(np.array([1.0, 2.0, 3.0, 40.0])))
    16.0
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return magnitude_D.max(-1) / np.median(magnitude_D, axis=-1)


def top_channels(magnitude_D: Array, count: int = TOP) -> NDArray[np.intp]:
    """Return the channels with the largest magnitudes, largest first, over the last axis."""
    return np.argsort(-magnitude_D, axis=-1, kind="stable")[..., :count]


class MassiveChannels(JackknifeMetric):
    """Channels that are far larger than the others in the residual stream, by token group.

    Formula: a_d = ⟨|x_d|⟩ and e_d = ⟨x_d²⟩ over the tokens of a group and all images.
    Parts:
        max_over_median: max_d a_d / median_d a_d, ≥ 1; about 1 to 3 where no channel stands out.
        top3_energy: Σ e_d over the three channels with the largest a_d, over Σ_d e_d = ⟨‖x‖²⟩, in [0, 1].
    Arrays: ``channels_cls_resid_pre``, … hold the numbers of these three channels, largest first (block, rank);
        ``magnitude_cls_resid_pre``, … hold a_d (block, channel).
    Reference: Sun et al. 2024 (arXiv 2402.17762), who call single activations massive that exceed 100 and 1000 × the
        median of all activations. Here a channel's mean over tokens counts.
    Pitfalls: A channel that is massive in few patches only is diluted by the mean over all. The largest of many means
        is biased upward with few images, so that no interval covers: compare at equal n.
    Tested against: NumPy on stored activations.
    """

    title = "massive channels"
    unit = {"max_over_median": "ratio", "top3_energy": "share"}  # noqa: RUF012
    no_interval = dict.fromkeys(unit, "the largest of many channels is biased upward with few images")
    expensive_sites = RESIDUAL_SITES
    cost = "a pass over the tokens at each residual site: 2 % of a ViT-S forward pass"
    needs = frozenset({"patch_abs_sum", "patch_square_sum"})

    def terms(self, summary: TokenSummary) -> dict[str, Tensor]:
        """Return the means of |x| and x² over the tokens of each group, per image and channel."""
        assert summary.patch_abs_sum is not None
        assert summary.patch_square_sum is not None
        terms = {
            "a_patch": summary.patch_abs_sum / summary.layout.patches,
            "e_patch": summary.patch_square_sum / summary.layout.patches,
        }
        for group in summary.layout.groups:
            if group != "patch":
                tokens = summary.group(group)
                terms |= {f"a_{group}": tokens.abs().mean(-2), f"e_{group}": tokens.square().mean(-2)}
        return terms

    def value(self, sums: dict[str, Array], n: int, constants: dict[str, Array]) -> dict[tuple[str, str], Array]:
        """Compute both numbers for each group."""
        values = {}
        for group in _groups(sums):
            magnitude, energy = sums[f"a_{group}"], sums[f"e_{group}"]
            top = np.take_along_axis(energy, top_channels(magnitude), axis=-1).sum(-1)
            values["max_over_median", group] = max_over_median(magnitude)
            values["top3_energy", group] = top / energy.sum(-1)
        return values

    def arrays(self) -> dict[str, NamedArray]:
        """Return the top channels and the magnitudes, by group and site."""
        arrays = {}
        for index, keys in enumerate(self._stacks):
            sums = {name: total.sum(axis=0) / self.n for name, total in self._grouped_sums(index).items()}
            for site in self.chosen_sites:
                for group in _groups(sums):
                    magnitude = by_block(keys, sums[f"a_{group}"], site)
                    if magnitude is not None:
                        name = f"{group}_{site}"
                        arrays[f"channels_{name}"] = NamedArray(top_channels(magnitude), ("block", "rank"), "channel")
                        arrays[f"magnitude_{name}"] = NamedArray(magnitude, ("block", "channel"), "mean |activation|")
        return arrays


def _groups(sums: dict[str, Array]) -> list[str]:
    return [name.removeprefix("a_") for name in sums if name.startswith("a_")]
