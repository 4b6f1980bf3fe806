"""Distance of the energy profiles of CLS and patches over channels, and the fall of their cosine in those channels."""
# Shapes: L blocks, n images, K patches of an image, D channels; (2, 2) are group (cls, patch) and half of the images.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tokenlens.metrics.base import UNBOUNDED, Metric, NamedArray, Row, make_row
from tokenlens.metrics.cosine_channels import channel_contributions
from tokenlens.reduction.summaries import BatchSummary, NormSummary
from tokenlens.statistics.energy_profiles import (
    ROTATIONS,
    most_different_channels,
    profile_distance,
    random_shares,
    rotated_distances,
    share_in_channels,
)
from tokenlens.statistics.jackknife import JACKKNIFE_GROUPS, jackknife_interval
from tokenlens.tokens import Site

Array = NDArray[np.float64]

MAX_IMAGES = 64
MAX_PATCHES = 64
"""Images that are used (those with the smallest indices), and patches of all of them together."""

MIN_IMAGES = 8
"""Fewer images are not compared with rotations."""

FEW_ROTATIONS = 20
"""Rotations that are repeated without each group of images."""

LEVEL = 95
"""Percentile of the rotations, and of the random sets of channels."""

HALF_OF_IMAGE = np.stack(
    [(coins := np.random.RandomState(0).randint(0, 2, MAX_IMAGES // 2)), 1 - coins], axis=1
).ravel()
"""The half (0 or 1) of each image by index: one of each successive pair, by chance, in case images of two kinds take
turns."""


def chosen_count(channels: int) -> int:
    """Return how many channels count as specific: 1 % of them, at least five.

    >>> chosen_count(384), chosen_count(1024)
    (5, 10)
    """
    return max(5, round(channels / 100))


class _Image(NamedTuple):
    """CLS and some patches at norm1's input (L, 1 + K, D), and the fall of the cosine by channel (L, D)."""

    number: int
    tokens: NDArray[np.float32]
    fall: NDArray[np.float32]


class EnergyProfile(Metric):
    """Distance of the energy profiles of CLS and patches over channels at norm1's input, against random rotations.

    Formula: p_g,d = E x_d² / Σ_d E x_d² over the tokens of group g. The distance is total variation, Σ (p_cls −
        p_patch) over the channels with p_cls > p_patch, which are chosen on one half of the images and measured on the
        other, and the other way round (mean of both).
    Parts:
        distance: the cross-fitted distance; 1 if the groups share no channel, about 0 if alike.
        above_rotated: distance − rotated_mean; images move both together, so its interval is narrower.
        rotated_mean: mean distance after 200 random rotations of all channels.
        rotated_95: their 95 % quantile.
        fall_share: share of the fall of the CLS–patch cosine across norm1 in 1 % of the channels, at least five, whose
            p differs most, chosen and measured on different halves.
        random_95: 95 % quantile of that share for 1000 random sets of as many channels.
    Reference: Marouani et al. 2026 (arXiv 2602.08626) on dimensions specific to CLS or patches.
    Pitfalls: Uses 64 images and 64 patches at most, and needs 8 images. Tokens with a common mean have a distance in
        any basis (0.48 if one group is one direction and the other spread evenly): compare with the rotations.
    Tested against: full rotations in NumPy, float64.
    """

    title = "distance of energy profiles"
    unit = {  # noqa: RUF012
        "distance": "total variation",
        "above_rotated": "total variation",
        "rotated_mean": "total variation",
        "rotated_95": "total variation",
        "fall_share": "share",
        "random_95": "share",
    }
    sites = (str(Site.NORM1),)
    needs = frozenset({"cls", "norm_stages", "unit_patch_sum", "patch_sample"})

    def bounds_of(self, part: str) -> tuple[float, float]:
        """Return no bounds: other channels may raise the cosine, so a share of its fall may be negative or above 1."""
        return UNBOUNDED

    def __init__(self) -> None:
        self._images: list[_Image] = []
        self.blocks: list[int] = []

    def update(self, batch: BatchSummary) -> None:
        """Keep some tokens of the first images."""
        rows = [row for row, index in enumerate(batch.indices) if index < MAX_IMAGES]
        stacks = batch.stacks(NormSummary, self.chosen_sites) if rows else []
        if not stacks:
            return
        tokens, falls, blocks = [], [], []
        for stack in stacks:
            summary: NormSummary = stack.summary
            assert summary.patch_sample is not None
            tokens_NBTD = torch.cat([summary.input.group("cls").mean(2, keepdim=True), summary.patch_sample], dim=2)
            fall_NBD = channel_contributions(summary.input) - channel_contributions(summary.output)
            tokens.append(tokens_NBTD[:, rows].float().cpu().numpy())
            falls.append(fall_NBD[:, rows].float().cpu().numpy())
            blocks += [block for block, _ in stack.keys if block is not None]
        order = np.argsort(blocks)
        self.blocks = sorted(blocks)
        tokens_LnTD, fall_LnD = np.concatenate(tokens)[order], np.concatenate(falls)[order]
        for position, row in enumerate(rows):
            self.keep(batch.indices[row], tokens_LnTD[:, position], fall_LnD[:, position])

    def keep(self, index: int, tokens_LTD: NDArray[np.float32], fall_LD: NDArray[np.float32]) -> None:
        """Keep CLS and some patches of one image, which take turns in coming first.

        Of later images fewer patches can be of use.
        """
        positions = np.roll(np.arange(1, tokens_LTD.shape[1]), -index)[: MAX_PATCHES // (index + 1)]
        self._images.append(_Image(index, tokens_LTD[:, [0, *positions]], fall_LD.copy()))

    def merge(self, other: EnergyProfile) -> None:
        """Add the images of another instance."""
        self.blocks = self.blocks or other.blocks
        self._images += other._images

    @property
    def n(self) -> int:
        """Number of images used."""
        return len(self._images)

    def _tokens(self) -> tuple[NDArray[np.int64], NDArray[np.float32], Array]:
        """Return the images' indices, their tokens (L, n, 1 + K, D) and falls (L, n, D), in order of index."""
        images = sorted(self._images, key=lambda image: image.number)
        count = min(1 + MAX_PATCHES // len(images), *(image.tokens.shape[1] for image in images))
        tokens_LnTD = np.stack([image.tokens[:, :count] for image in images], axis=1)
        falls_LnD = np.stack([image.fall for image in images], axis=1)
        return np.array([image.number for image in images]), tokens_LnTD, falls_LnD.astype(np.float64)

    def rows(self) -> list[Row]:
        """Return one row per part and block."""
        if not self._images:
            return []
        indices, tokens_LnTD, falls_LnD = self._tokens()
        halves = np.stack([HALF_OF_IMAGE[indices] == half for half in (0, 1)]).astype(np.float64)
        squares = tokens_LnTD.astype(np.float64) ** 2
        # Energy by group and image, (L, 2, n, D).
        energies = np.stack([squares[:, :, 0], squares[:, :, 1:].mean(2)], axis=1)
        channels = chosen_count(energies.shape[-1])

        def compute(present: NDArray[np.bool_]) -> tuple[Array, Array]:
            # Undefined where one half has no image.
            with np.errstate(invalid="ignore", divide="ignore"):
                weights = halves[:, present] / halves[:, present].sum(-1, keepdims=True)
                energy_L22D = weights @ energies[:, :, present]
                chosen = most_different_channels(energy_L22D, channels)
                share = share_in_channels(weights @ falls_LnD[:, present], chosen)
                return profile_distance(energy_L22D), share

        everyone = np.ones(self.n, dtype=bool)
        groups, counts = np.unique(indices % JACKKNIFE_GROUPS, return_counts=True)
        without = [indices % JACKKNIFE_GROUPS != group for group in groups]
        values, left_out = compute(everyone), [compute(present) for present in without]
        rows = []
        for part, value, others in zip(("distance", "fall_share"), values, zip(*left_out, strict=True), strict=True):
            rows += self._rows_of(part, value, *jackknife_interval(value, np.array(others), counts))
        undefined = np.full(len(self.blocks), np.nan)
        mean, limit, random, low, high = (undefined,) * 5
        if self.n >= MIN_IMAGES:
            # Images move the distance and its rotations together, so some are repeated without each group of images.
            every = self._rotated(tokens_LnTD, halves, [everyone, *without])
            rotated, few = every[:, :, 0], every[:FEW_ROTATIONS, :, 1:].mean(0)
            mean, limit = rotated.mean(0), np.percentile(rotated, LEVEL, axis=0)
            others = np.stack([distance for distance, _ in left_out]) - few.T
            shift = rotated[:FEW_ROTATIONS].mean(0) - mean
            low, high = (end + shift for end in jackknife_interval(values[0] - mean - shift, others, counts))
            random = np.percentile(random_shares(falls_LnD.mean(1), channels), LEVEL, axis=-1)
        rows += self._rows_of("above_rotated", values[0] - mean, low, high)
        for part, value in (("rotated_mean", mean), ("rotated_95", limit), ("random_95", random)):
            rows += self._rows_of(part, value, undefined, undefined)
        return rows

    def _rotated(self, tokens_LnTD: NDArray[np.float32], halves: Array, present: list[NDArray[np.bool_]]) -> Array:
        """Return the distances of subsets of the images after random rotations, (rotations, L, subsets).

        All but the first subset have ``FEW_ROTATIONS``.
        """
        blocks, images, tokens, channels = tokens_LnTD.shape
        weights = np.zeros((len(present), 2, 2, images, tokens))
        for subset, chosen in enumerate(present):
            weights[subset, 0, :, :, 0] = halves * chosen
            weights[subset, 1, :, :, 1:] = (halves * chosen)[:, :, None]
        vectors_LND = tokens_LnTD.reshape(blocks, images * tokens, channels)
        weights_W4N = weights.reshape(len(present), 4, images * tokens)
        return rotated_distances(vectors_LND, weights_W4N, ROTATIONS, rotations_of_others=FEW_ROTATIONS)

    def _rows_of(self, part: str, value: Array, low: Array, high: Array) -> list[Row]:
        keys = ((part, block, str(Site.NORM1), "cls-patch", None) for block in self.blocks)
        return [
            make_row(key, number, self.n, self.unit_of(part), interval=(first, last))
            for key, number, first, last in zip(keys, value, low, high, strict=True)
        ]

    def arrays(self) -> dict[str, NamedArray]:
        """Return the profiles of both groups over all images used, (block, channel)."""
        if not self._images:
            return {}
        _, tokens_LnTD, _ = self._tokens()
        squares = tokens_LnTD.astype(np.float64) ** 2
        dims = ("block", "channel")
        groups = {"cls": squares[:, :, 0].mean(1), "patch": squares[:, :, 1:].mean((1, 2))}
        with np.errstate(invalid="ignore"):  # tokens that are zero have no profile
            shares = {group: energy / energy.sum(-1, keepdims=True) for group, energy in groups.items()}
        return {f"{group}_norm1": NamedArray(share, dims, "share of energy") for group, share in shares.items()}
