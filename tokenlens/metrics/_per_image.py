"""Metrics with one number per image, by the kind of summary that they read."""

# Shapes: N keys (block, site), B images, S numbers per image, H heads, D channels.

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenlens.metrics.base import PATTERN, RANGES, Metric, NumberKey, Row, Subject, make_row
from tokenlens.recording.recorder import PooledTokens
from tokenlens.reduction.memory import HostCopy
from tokenlens.reduction.summaries import (
    AttentionSummary,
    BatchSummary,
    NormSummary,
    SummaryType,
    TokenSummary,
    UpdateSummary,
    to_float64,
)
from tokenlens.statistics.moments import Moments, wilson_interval
from tokenlens.tokens import GROUP_TITLES, HEAD_SITES, NORM_SITES, TOKEN_SITES, Key, Site, TokenLayout

Values = Mapping[tuple[str, str], Tensor]
"""Tensors by part and group, as ``per_image`` returns them."""

OF_IMAGES = "share of images"
"""Unit of numbers that are 0 or 1 for each image; their interval is Wilson's."""

CHUNK = 256
"""Images for which ``KeptRows`` allocates memory at a time."""


class KeptRows:
    """Float32 rows (images, S), appended a few at a time and stored in chunks of 256.

    Small arrays that stay allocated among large temporary ones would fragment memory: 90 KB an image on ViT-S.
    """

    def __init__(self) -> None:
        self.count = 0
        self._chunks: list[NDArray[np.float32]] = []
        self._free = 0

    def append(self, rows_BS: NDArray[Any]) -> None:
        """Append some rows."""
        start = 0
        while start < len(rows_BS):
            if not self._free:
                self._chunks.append(np.empty((CHUNK, rows_BS.shape[1]), dtype=np.float32))
                self._free = CHUNK
            taken = min(self._free, len(rows_BS) - start)
            first = CHUNK - self._free
            self._chunks[-1][first : first + taken] = rows_BS[start : start + taken]
            start, self._free = start + taken, self._free - taken
        self.count += len(rows_BS)

    def rows(self) -> NDArray[np.float32]:
        """Return all rows, (images, S), in the order in which they were appended."""
        if not self._chunks:
            return np.zeros((0, 0), dtype=np.float32)
        last = len(self._chunks[-1]) - self._free
        return np.concatenate([*self._chunks[:-1], self._chunks[-1][:last]])


class PerImageMetric(Metric):
    """A metric whose numbers exist image by image; the table has their mean, spread and interval over images.

    Attributes:
        summary_kind: the kind of summary that ``per_image`` gets.
        keys: part, block, site, group and head of each of the S numbers.
        layout: tokens of the model, known from ``prepare`` on.
    """

    summary_kind: ClassVar[SummaryType] = TokenSummary
    layout: TokenLayout

    def __init__(self) -> None:
        self.keep_images = 0
        self.keys: list[NumberKey] = []
        self.moments = Moments()
        self._indices: list[int] = []
        self._values = KeptRows()
        self._arriving: tuple[list[int], HostCopy] | None = None

    @abstractmethod
    def per_image(self, summary: Any) -> Values:
        """Compute the numbers of N stacked summaries: (N, B), or (N, B, H) per head, for each (part, group)."""

    def prepare(self, subject: Subject) -> str | None:
        """Remember the layout and how many images to keep."""
        self.layout, self.keep_images = subject.layout, subject.keep_images
        return super().prepare(subject)

    def results(self, batch: BatchSummary) -> Iterable[tuple[list[Key], Values]]:
        """Yield the keys and numbers of each stack of a batch."""
        for stack in batch.stacks(self.summary_kind, self.chosen_sites):
            yield stack.keys, self.per_image(stack.summary)

    def update(self, batch: BatchSummary) -> None:
        """Add one batch."""
        keys, columns = [], []
        for stack_keys, values in self.results(batch):
            for (part, group), tensor in values.items():
                heads = range(tensor.shape[2]) if tensor.dim() == 3 else (None,)
                columns.append(tensor.reshape(len(stack_keys), tensor.shape[1], -1).transpose(1, 2).flatten(0, 1))
                keys += [(part, block, str(site), group, head) for block, site in stack_keys for head in heads]
        if not columns:
            return
        if not self.keys:
            self.keys = keys
        assert keys == self.keys, "a metric has the same numbers in every batch"
        self.receive()
        values_BS = torch.cat(columns).T
        self._arriving = (batch.indices, HostCopy(values_BS))
        if not values_BS.is_cuda:
            self.receive()

    def receive(self) -> None:
        """Add the numbers of the last batch, which are copied to the host while a GPU computes the next one."""
        if self._arriving is None:
            return
        indices, values_BS = self._arriving[0], self._arriving[1].read().numpy()
        self._arriving = None
        self.moments.update(values_BS)
        room = self.keep_images - len(self._indices)
        if room > 0:
            self._indices += indices[:room]
            self._values.append(values_BS[:room])

    def merge(self, other: PerImageMetric) -> None:
        """Add the images of another instance."""
        self.keys = self.keys or other.keys
        self.moments.merge(other.moments)
        self._indices += other._indices
        if other._values.count:
            self._values.append(other._values.rows())

    def per_image_values(self) -> NDArray[np.float32]:
        """Return the kept values (images, S), images ordered by index, numbers ordered as ``keys``."""
        if not self._values.count:
            return np.zeros((0, len(self.keys)), dtype=np.float32)
        values = self._values.rows()
        if (np.diff(self._indices) > 0).all():
            return values[: self.keep_images]
        return values[np.argsort(self._indices, kind="stable")[: self.keep_images]]

    def rows(self) -> list[Row]:
        """Return one row per number."""
        if not self.keys:
            return []
        units = [self.unit_of(part) for part, *_ in self.keys]
        low, high = self.moments.interval(ranges=np.array([RANGES.get(unit, 0.0) for unit in units]))
        yes_or_no = np.array([unit == OF_IMAGES for unit in units])
        if yes_or_no.any():
            wilson = wilson_interval(np.clip(self.moments.mean, 0, 1), self.moments.n)
            low, high = (np.where(yes_or_no, ours, end) for ours, end in zip(wilson, (low, high), strict=True))
        without = np.array([part in self.no_interval for part, *_ in self.keys]) | (self.moments.n < self.fewest_images)
        low, high = (np.where(without, np.nan, end) for end in (low, high))
        numbers = zip(self.moments.mean, self.moments.n, self.moments.sd, low, high, strict=True)
        return [
            make_row(key, mean if n else np.nan, int(n), unit, sd, (first, last))
            for key, unit, (mean, n, sd, first, last) in zip(self.keys, units, numbers, strict=True)
        ]


class HookMetric(PerImageMetric):
    """A metric that is computed in the hook, from the activation itself, which is not kept."""

    @property
    def looks_at(self) -> tuple[str, ...]:
        """Sites whose activations ``look`` gets: by default those of the numbers."""
        return self.chosen_sites

    def receive_activation(self, key: Key, indices: list[int], activation: Any) -> Values:
        """Receive the activation at a block and site for the images with these indices."""
        return self.look(self.layout, key[0], activation)

    @abstractmethod
    def look(self, layout: TokenLayout, block: Any, activation: Any) -> Values:
        """Compute the numbers of one block in the hook: (B,), or (B, H) per head, for each (part, group).

        The activation is tokens (B, T, D), at the site ``pattern`` an ``AttentionCall``, at ``pool`` ``PooledTokens``.
        """

    def results(self, batch: BatchSummary) -> Iterable[tuple[list[Key], Values]]:
        """Yield the numbers computed in the hooks."""
        for key, values in batch.raw.get(self.name, {}).items():
            yield [key], {name: tensor.unsqueeze(0) for name, tensor in values.items()}


class TokenMetric(PerImageMetric):
    """A metric of a ``TokenSummary``: special tokens, norms of all tokens, and the sums over patches in ``needs``."""


class CosineMetric(TokenMetric):
    """A cosine between groups of tokens of one image, at every token site and per head at q, k and v."""

    unit = "cosine"
    sites = TOKEN_SITES
    expensive_sites = HEAD_SITES
    cost = "per head at q, k and v: 4 % of a ViT-S forward pass, 2 % of a ViT-B"


class NormMetric(PerImageMetric):
    """A metric of a ``NormSummary``: input, stages and output of a norm."""

    summary_kind = NormSummary
    sites = NORM_SITES
    needs = frozenset({"norm_stages"})


class AttentionMetric(PerImageMetric):
    """A metric of an ``AttentionSummary``: the CLS row, and the mean attention of patches to the special tokens."""

    summary_kind: ClassVar[SummaryType] = AttentionSummary
    sites: ClassVar[tuple[str, ...]] = (PATTERN,)
    needs = frozenset({"pattern"})

    @property
    def observes(self) -> tuple[str, ...]:
        """Observe q, which makes the recorder capture the attention call."""
        return ("q",)


class AttentionCallMetric(HookMetric, AttentionMetric):
    """An opt-in metric of the calls of attention kernels, computed in the hook: ``look`` may read every row."""

    sites = ()
    expensive_sites = (PATTERN,)

    def prepare(self, subject: Subject) -> str | None:
        """Say so if not all tokens attend."""
        reason = super().prepare(subject)
        return reason if reason or subject.all_attend else "only CLS attends to the other tokens"

    def per_image(self, summary: Any) -> Values:
        """Not used: ``look`` reads the call."""
        raise NotImplementedError


class UpdateMetric(PerImageMetric):
    """A metric of an ``UpdateSummary``: norms and inner products of updates and residuals, token by token."""

    summary_kind = UpdateSummary
    sites = ("attn_out", "mlp_out")
    needs = frozenset({"updates"})

    @property
    def observes(self) -> tuple[str, ...]:
        """Updates, and the residuals that they are added to."""
        return ("resid_pre", "attn_out", "resid_mid", "mlp_out")


class RawTokens:
    """Float64 tokens at one site: ``all`` (B, T, D), ``cls`` (B, D), ``dist``, ``reg``, ``patch``, … (B, group, D).

    ``cls`` is the mean of the class tokens if there are several.
    """

    def __init__(self, layout: TokenLayout, x_BTD: Tensor) -> None:
        self.layout = layout
        self.all = x_BTD

    def __getattr__(self, group: str) -> Tensor:
        if group == "patch":
            return self.layout.patches_of(self.all)
        if group == "cls" and self.layout.has("cls"):
            return self.layout.mean_of(self.all, "cls")
        if group not in GROUP_TITLES and not self.layout.has(group):
            raise AttributeError(group)
        return self.all[..., list(self.layout.positions(group)), :]


class LatentMetric(HookMetric):
    """A metric of the latent that pools a model's tokens by attention, computed in the hook.

    ``per_image`` gets the ``PooledTokens`` and returns tensors (B,), or (B, H) per head, for each (part, group).
    """

    sites = (Site.POOL,)

    def prepare(self, subject: Subject) -> str | None:
        """Say so if the model has no such latent."""
        reason = super().prepare(subject)
        return "the model has no pooling latent (MAP head)" if Site.POOL not in subject.sites else reason

    def look(self, layout: TokenLayout, block: int | None, pooled: PooledTokens) -> Values:
        """Compute the numbers in the hook."""
        return self.per_image(pooled)


class RawTokenMetric(HookMetric):
    """A metric of the tokens themselves, computed in the hook: simple to write, but one pass over them at each site.

    ``per_image`` gets the ``RawTokens`` of one site and returns a tensor (B,) for each (part, group).
    """

    def look(self, layout: TokenLayout, block: int | None, x: Tensor) -> Values:
        """Compute the numbers in the hook."""
        x = to_float64(x)
        # The analysis stops at an image with NaN or infinity after its batch; a decomposition would fail here already.
        finite_B11 = torch.isfinite(x).all(dim=-1).all(dim=-1)[:, None, None]
        return self.per_image(RawTokens(layout, torch.where(finite_B11, x, 0)))
