"""Metrics with one number for the whole set of images, computed from sums over images, with a jackknife interval."""

# Shapes: N keys (block, site), B images, G groups of images.

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.metrics.base import RANGES, Metric, Row, make_row
from tokenlens.reduction.summaries import BatchSummary, SummaryType, TokenSummary, to_float64
from tokenlens.statistics.jackknife import JACKKNIFE_GROUPS, jackknife_interval
from tokenlens.statistics.moments import UNSEEN
from tokenlens.tokens import TOKEN_SITES, Key

Array = NDArray[np.float64]


class AccumulatingMetric(Metric):
    """A metric that sums the tokens of several images in the hook, where one number per image would be too large."""

    @abstractmethod
    def add_tokens(self, key: Key, indices: list[int], x_BTD: Tensor) -> None:
        """Add the tokens of the images with these indices, at one block and site."""

    def update(self, batch: BatchSummary) -> None:
        """Do nothing: the hooks have added the tokens."""


class JackknifeMetric(Metric):
    """A metric of the whole set of images, computed from sums over images.

    Sums are kept for groups of images (by index), so memory does not grow and neither batches nor processes matter.

    Attributes:
        summary_kind: the kind of summary that ``terms`` gets.
        counts_G: images seen, by group.
    """

    summary_kind: ClassVar[SummaryType] = TokenSummary

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], Tensor] = {}
        self._stacks: list[list[Key]] = []
        self._constants: list[dict[str, Array]] = []
        self.counts_G: NDArray[np.int64] = np.zeros(JACKKNIFE_GROUPS, dtype=np.int64)

    @abstractmethod
    def terms(self, summary: Any) -> dict[str, Tensor]:
        """Compute the terms of the sums, one per image: tensors (N, B, …)."""

    @abstractmethod
    def value(self, sums: dict[str, Array], n: int, constants: dict[str, Array]) -> dict[tuple[str, str], Array]:
        """Compute the numbers (N,) for each (part, group) from sums (N, …) over n images."""

    def constants(self, summary: Any) -> dict[str, Tensor]:
        """Return what does not depend on the images (weights): tensors (N, …)."""
        return {}

    def update(self, batch: BatchSummary) -> None:
        """Add one batch."""
        groups = np.array(batch.indices) % JACKKNIFE_GROUPS
        np.add.at(self.counts_G, groups, 1)
        # Successive images belong to successive groups, and each group adds its images one by one, so that batches do
        # not matter.
        ends = [*(np.flatnonzero(np.diff(groups) != 1) + 1).tolist(), len(groups)]
        runs = list(zip([0, *ends[:-1]], ends, strict=True))
        for index, stack in enumerate(batch.stacks(self.summary_kind, self.chosen_sites)):
            if index == len(self._stacks):
                self._stacks.append(stack.keys)
                self._constants.append({k: _to_numpy(v) for k, v in self.constants(stack.summary).items()})
            assert self._stacks[index] == stack.keys
            for name, term in self.terms(stack.summary).items():
                if (index, name) not in self._sums:
                    shape = (JACKKNIFE_GROUPS, term.shape[0], *term.shape[2:])
                    self._sums[index, name] = torch.zeros(shape, dtype=to_float64(term[:0]).dtype, device=term.device)
                for first, last in runs:
                    group = int(groups[first])
                    self._sums[index, name][group : group + last - first] += term[:, first:last].transpose(0, 1)

    def merge(self, other: JackknifeMetric) -> None:
        """Add the images of another instance."""
        self._stacks = self._stacks or other._stacks
        self._constants = self._constants or other._constants
        self.counts_G = self.counts_G + other.counts_G
        for key, total in other._sums.items():
            self._sums[key] = self._sums[key] + total.to(self._sums[key].device) if key in self._sums else total

    @property
    def n(self) -> int:
        """Number of images seen."""
        return int(self.counts_G.sum())

    def _grouped_sums(self, index: int) -> dict[str, Array]:
        """Return the sums of one stack, (G, N, …)."""
        return {name: _to_numpy(total) for (stack, name), total in self._sums.items() if stack == index}

    def rows(self) -> list[Row]:
        """Return one row per key, part and group."""
        rows = []
        present = np.flatnonzero(self.counts_G)
        for index, keys in enumerate(self._stacks):
            by_group, constants = self._grouped_sums(index), self._constants[index]
            whole = {name: total.sum(axis=0) for name, total in by_group.items()}
            with np.errstate(invalid="ignore", divide="ignore"):
                value = self.value(whole, self.n, constants)
                without = []
                has_interval = any(part not in self.no_interval for part, _ in value)
                for g in present if len(present) > 2 and has_interval else ():
                    others = {name: whole[name] - by_group[name][g] for name in whole}
                    without.append(self.value(others, self.n - int(self.counts_G[g]), constants))
                for (part, group), numbers in value.items():
                    left_out = np.array([other[part, group] for other in without])
                    low, high = jackknife_interval(numbers, left_out, self.counts_G[present][: len(without)])
                    unseen = UNSEEN * RANGES.get(self.unit_of(part), 0.0) / self.n
                    low, high = low - unseen, high + unseen
                    if part in self.no_interval:
                        low = high = np.full_like(numbers, np.nan)
                    for i, (block, site) in enumerate(keys):
                        key, interval = (part, block, str(site), group, None), (low[i], high[i])
                        rows.append(make_row(key, numbers[i], self.n, self.unit_of(part), interval=interval))
        return rows


class PairCosineMetric(JackknifeMetric):
    """A mean cosine over pairs of images, from the vector ``unit`` of each image that ``terms`` returns."""

    unit = "cosine"
    sites = TOKEN_SITES
    pair: ClassVar[str]

    def value(self, sums: dict[str, Array], n: int, constants: dict[str, Array]) -> dict[tuple[str, str], Array]:
        """Compute the mean pair cosine of n unit vectors from their sums (N, D); NaN for fewer than two."""
        if n < 2:
            return {("", self.pair): np.full(len(sums["unit"]), np.nan)}
        return {("", self.pair): ((sums["unit"] ** 2).sum(-1) - n) / (n * (n - 1))}


def _to_numpy(x: Tensor) -> Array:
    return x.detach().cpu().numpy().astype(np.float64)
