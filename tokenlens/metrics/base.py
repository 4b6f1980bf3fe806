"""The numbers: one file per metric, and in this file the contract that all of them share.

A metric is a pure function (tensors in, tensor out) with a small class around it that names its sites, groups and unit.
See docs/add-a-metric.md.
"""

# Shapes: N cells (block, site), B images, S series, G groups of images, H heads, D channels.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokenlens.catalog import Catalog
from tokenlens.reduction.batch import BatchSummary
from tokenlens.reduction.summaries import (
    AttentionSummary,
    Kind,
    NormSummary,
    PatternReduction,
    Reduction,
    TokenSummary,
    UpdateSummary,
    precise,
)
from tokenlens.statistics.moments import JACKKNIFE_GROUPS, KeptRows, Moments, jackknife_interval
from tokenlens.tokens import GROUP_TITLES, HEAD_SITES, Key, Site, TokenLayout

metrics = Catalog("tokenlens.metrics", "metric", base="Metric")

PATTERN = "pattern"
"""The site of attention numbers."""

FEATURE_SITES = ("resid_pre", "norm1", "attn_out", "resid_mid", "norm2", "mlp_out", "resid_post", "final_norm")
HEAD_SITE_NAMES = tuple(str(site) for site in HEAD_SITES)
HEAD_COST = "at q, k and v per head when asked for by name: 4 % of a ViT-S forward pass, 2 % of a ViT-B"
RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post")
NORM_SITE_NAMES = ("norm1", "norm2", "final_norm")

Values = Mapping[tuple[str, str], Tensor]
"""What ``per_image`` returns: a tensor for each (part, group)."""

Row = dict[str, Any]


@dataclass(frozen=True)
class NamedArray:
    """An array with the names of its dimensions and its unit."""

    values: NDArray[Any]
    dims: tuple[str, ...]
    unit: str = ""


@dataclass(frozen=True)
class Subject:
    """What a metric is told before the first image: the model and what can be observed in it."""

    model: nn.Module
    layout: TokenLayout
    blocks: int
    sites: frozenset[str]
    keep_images: int = 4096


def row(
    part: str = "", block: int | None = None, site: str = "", group: str = "", head: int | None = None, **numbers: Any
) -> Row:
    """One row of the table, with what does not apply left empty."""
    blank = {"value": np.nan, "sd": np.nan, "n": 0, "ci_low": np.nan, "ci_high": np.nan, "unit": ""}
    return {"part": part, "block": block, "site": site, "group": group, "head": head, **blank, **numbers}


class Metric(ABC):
    """The contract of all metrics. Most derive from one of the classes below, which bring the streaming.

    Attributes:
        name: the file's name; a metric that is no file of this folder states its own.
        title: what axes and captions call it.
        unit: unit of all parts, or of each part.
        sites: the sites it is reported at.
        named_sites: more sites, which cost, for when the metric is asked for by name or with all.
        requires: token groups without which it does not apply.
        opt_in: whether it must be asked for by name, because it costs.
        cost: how much ``opt_in`` or ``named_sites`` cost.
        wanted: the sums over patches that it needs at its sites.
        wanted_of_pattern: what it needs of the whole pattern.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    unit: ClassVar[str | Mapping[str, str]] = ""
    sites: tuple[str, ...] = ()
    named_sites: ClassVar[tuple[str, ...]] = ()
    requires: ClassVar[tuple[str, ...]] = ()
    opt_in: ClassVar[bool] = False
    cost: ClassVar[str] = ""
    wanted: ClassVar[frozenset[Reduction]] = frozenset()
    wanted_of_pattern: ClassVar[frozenset[PatternReduction]] = frozenset()
    needs_norm_stages: ClassVar[bool] = False
    needs_updates: ClassVar[bool] = False
    needs_pattern: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        package, _, file = cls.__module__.rpartition(".")
        if package == metrics.package:
            cls.name = file

    @property
    def observes(self) -> tuple[str, ...]:
        """The sites to watch in the forward pass, for the numbers at ``sites``."""
        return self.sites

    def prepare(self, subject: Subject) -> str | None:
        """Get ready for one model; the reason why the metric does not apply to it, or None."""
        for group in self.requires:
            if not subject.layout.has(group):
                return f"the model has no {GROUP_TITLES[group]} token"
        if self.observes and not subject.sites & set(self.observes):
            return f"the model has none of the sites {', '.join(self.observes)}"
        return None

    @abstractmethod
    def update(self, batch: BatchSummary) -> None:
        """Take in one batch."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Take in all that another instance, prepared for the same model, has seen of other images."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """The table's rows."""

    def arrays(self) -> dict[str, NamedArray]:
        """Per-channel and per-position arrays, by part."""
        return {}

    def unit_of(self, part: str) -> str:
        """The unit of one part."""
        return self.unit if isinstance(self.unit, str) else self.unit.get(part, "")


class PerImageMetric(Metric):
    """A metric with one number per image and series; the table shows mean, spread and t interval over images."""

    of: ClassVar[Kind] = TokenSummary

    def __init__(self) -> None:
        self.keep_images = 0
        self.keys: list[tuple[str, int | None, str, str, int | None]] = []
        self.moments = Moments()
        self._indices: list[int] = []
        self._values = KeptRows()

    @abstractmethod
    def per_image(self, summary: Any) -> Values:
        """The numbers of stacked cells: a tensor (N, B), or (N, B, H) per head, for each (part, group)."""

    def prepare(self, subject: Subject) -> str | None:
        """Remember how many images to keep."""
        self.keep_images = subject.keep_images
        return super().prepare(subject)

    def results(self, batch: BatchSummary) -> Iterable[tuple[list[Key], Values]]:
        """The numbers of all cells of a batch."""
        for cells in batch.stacks(self.of, self.sites):
            values = self.per_image(cells.summary)
            if cells.shared:
                values = {name: tensor[cells.rows] for name, tensor in values.items()}
            yield cells.keys, values

    def update(self, batch: BatchSummary) -> None:
        """Take in one batch."""
        keys, columns = [], []
        for cells, values in self.results(batch):
            for (part, group), tensor in values.items():
                heads = tensor.shape[2] if tensor.dim() == 3 else 0
                columns.append(tensor.reshape(len(cells), tensor.shape[1], -1).transpose(1, 2).flatten(0, 1))
                keys += [
                    (part, block, str(site), group, head)
                    for block, site in cells
                    for head in (range(heads) if heads else (None,))
                ]
        if not columns:
            return
        values_BS = torch.cat(columns).T.cpu().numpy()
        if not self.keys:
            self.keys = keys
        assert keys == self.keys, "the series of a metric are the same in every batch"
        self.moments.update(values_BS)
        room = self.keep_images - len(self._indices)
        if room > 0:
            self._indices += batch.indices[:room]
            self._values.append(values_BS[:room])

    def merge(self, other: PerImageMetric) -> None:
        """Take in what another instance has seen."""
        self.keys = self.keys or other.keys
        self.moments.merge(other.moments)
        self._indices += other._indices
        self._values.merge(other._values)

    def per_image_values(self) -> NDArray[np.float32]:
        """The kept values (images, S), images in the order of their index, series in the order of ``keys``."""
        if not self._values.count:
            return np.zeros((0, len(self.keys)), dtype=np.float32)
        values = self._values.rows()
        if (np.diff(self._indices) > 0).all():
            return values[: self.keep_images]
        return values[np.argsort(self._indices, kind="stable")[: self.keep_images]]

    def rows(self) -> list[Row]:
        """A row for each series."""
        low, high = self.moments.interval() if self.keys else (np.zeros(0), np.zeros(0))
        sd = self.moments.sd
        return [
            row(
                part,
                block,
                site,
                group,
                head,
                value=self.moments.mean[i] if self.moments.n[i] else np.nan,
                sd=sd[i],
                n=int(self.moments.n[i]),
                ci_low=low[i],
                ci_high=high[i],
                unit=self.unit_of(part),
            )
            for i, (part, block, site, group, head) in enumerate(self.keys)
        ]


class TokenMetric(PerImageMetric):
    """From a ``TokenSummary``: prefix tokens, norms of all tokens, and the wanted sums over patches."""

    of = TokenSummary


class NormMetric(PerImageMetric):
    """From a ``NormSummary``: a norm's input, stages and output."""

    of = NormSummary
    sites = NORM_SITE_NAMES
    needs_norm_stages = True


class AttentionMetric(PerImageMetric):
    """From an ``AttentionSummary``: the CLS row and the mean attention of patches to the prefix tokens."""

    of: ClassVar[Kind] = AttentionSummary
    sites = (PATTERN,)
    needs_pattern = True

    @property
    def observes(self) -> tuple[str, ...]:
        """The attention call is seen with q."""
        return ("q",)


class UpdateMetric(PerImageMetric):
    """From an ``UpdateSummary``: what a branch adds to the residual, token by token."""

    of = UpdateSummary
    sites = ("attn_out", "mlp_out")
    needs_updates = True

    @property
    def observes(self) -> tuple[str, ...]:
        """Updates and the residuals they are added to."""
        return ("resid_pre", "attn_out", "resid_mid", "mlp_out")


class RawTokens:
    """The tokens at one site as they are, float64, for metrics that sums do not serve.

    ``cls`` is (B, D), ``dist`` and ``reg`` (B, R, D), ``patch`` (B, P, D), ``all`` (B, T, D); in layout order.
    """

    def __init__(self, layout: TokenLayout, x_BTD: Tensor) -> None:
        self.layout = layout
        self.all = x_BTD

    def __getattr__(self, group: str) -> Tensor:
        if group == "patch":
            return self.layout.patches_of(self.all)
        if group not in GROUP_TITLES:
            raise AttributeError(group)
        tokens = self.all[..., list(self.layout.positions(group)), :]
        return tokens.squeeze(-2) if group == "cls" else tokens


class RawTokenMetric(PerImageMetric):
    """From the tokens themselves, inside the hook: simple to write, but costs a pass over them at each site.

    ``per_image`` gets a ``RawTokens`` of one site and returns a tensor (B,) for each (part, group).
    """

    def results(self, batch: BatchSummary) -> Iterable[tuple[list[Key], Values]]:
        """The numbers computed inside the hooks."""
        for key, values in batch.raw.get(self.name, {}).items():
            yield [key], {name: tensor.unsqueeze(0) for name, tensor in values.items()}

    def look(self, layout: TokenLayout, x: Tensor) -> Values:
        """Called inside the hook."""
        # The analysis stops at an image with NaN or infinity after its batch; a decomposition would fail here already.
        finite_B11 = torch.isfinite(x).all(dim=-1).all(dim=-1)[:, None, None]
        return self.per_image(RawTokens(layout, torch.where(finite_B11, x, 0)))


class JackknifeMetric(Metric):
    """A number of the whole set of images, from sums over images, with a jackknife interval.

    Sums are kept for groups of images (by index), so memory does not grow and neither batches nor processes matter.
    """

    of: ClassVar[Kind] = TokenSummary

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], Tensor] = {}
        self._cells: list[tuple[list[Key], list[int]]] = []
        self._constants: list[dict[str, NDArray[np.float64]]] = []
        self.counts_G: NDArray[np.int64] = np.zeros(JACKKNIFE_GROUPS, dtype=np.int64)

    @abstractmethod
    def terms(self, summary: Any) -> dict[str, Tensor]:
        """What each image adds to the sums: tensors (N, B, …)."""

    @abstractmethod
    def value(
        self, sums: dict[str, NDArray[np.float64]], n: int, constants: dict[str, NDArray[np.float64]]
    ) -> dict[tuple[str, str], NDArray[np.float64]]:
        """The numbers (N,) for each (part, group), from sums (N, …) over n images."""

    def constants(self, summary: Any) -> dict[str, Tensor]:
        """What does not depend on the images (weights), tensors (N, …)."""
        return {}

    def update(self, batch: BatchSummary) -> None:
        """Take in one batch."""
        groups = np.array(batch.indices) % JACKKNIFE_GROUPS
        np.add.at(self.counts_G, groups, 1)
        # Images that follow each other go to groups that follow each other; a group takes its images one after the
        # other, so batches do not matter.
        ends = [*(np.flatnonzero(np.diff(groups) != 1) + 1).tolist(), len(groups)]
        runs = list(zip([0, *ends[:-1]], ends, strict=True))
        for index, cells in enumerate(batch.stacks(self.of, self.sites)):
            if index == len(self._cells):
                self._cells.append((cells.keys, cells.rows))
                self._constants.append({k: _numpy(v) for k, v in self.constants(cells.summary).items()})
            assert self._cells[index] == (cells.keys, cells.rows)
            for name, term in self.terms(cells.summary).items():
                if (index, name) not in self._sums:
                    shape = (JACKKNIFE_GROUPS, term.shape[0], *term.shape[2:])
                    self._sums[index, name] = torch.zeros(shape, dtype=precise(term[:0]).dtype, device=term.device)
                for first, last in runs:
                    group = int(groups[first])
                    self._sums[index, name][group : group + last - first] += term[:, first:last].transpose(0, 1)

    def merge(self, other: JackknifeMetric) -> None:
        """Take in what another instance has seen."""
        self._cells = self._cells or other._cells
        self._constants = self._constants or other._constants
        self.counts_G = self.counts_G + other.counts_G
        for key, total in other._sums.items():
            self._sums[key] = self._sums[key] + total.to(self._sums[key].device) if key in self._sums else total

    @property
    def n(self) -> int:
        """Images seen."""
        return int(self.counts_G.sum())

    def _stack_sums(self, index: int) -> dict[str, NDArray[np.float64]]:
        return {name: _numpy(total) for (stack, name), total in self._sums.items() if stack == index}

    def rows(self) -> list[Row]:
        """A row for each cell, part and group."""
        rows = []
        present = np.flatnonzero(self.counts_G)
        for index, (keys, places) in enumerate(self._cells):
            by_group, constants = self._stack_sums(index), self._constants[index]
            whole = {name: total.sum(axis=0) for name, total in by_group.items()}
            with np.errstate(invalid="ignore", divide="ignore"):
                value = self.value(whole, self.n, constants)
                without = (
                    [
                        self.value(
                            {name: whole[name] - by_group[name][g] for name in whole},
                            self.n - int(self.counts_G[g]),
                            constants,
                        )
                        for g in present
                    ]
                    if len(present) > 2
                    else []
                )
                for (part, group), numbers in value.items():
                    left_out = np.array([other[part, group] for other in without])
                    counts = self.counts_G[present] if without else np.zeros(0, dtype=np.int64)
                    low, high = jackknife_interval(numbers, left_out, counts)
                    rows += [
                        row(
                            part,
                            block,
                            str(site),
                            group,
                            value=numbers[i],
                            n=self.n,
                            ci_low=low[i],
                            ci_high=high[i],
                            unit=self.unit_of(part),
                        )
                        for i, (block, site) in zip(places, keys, strict=True)
                    ]
        return rows


def _numpy(x: Tensor) -> NDArray[np.float64]:
    return x.detach().cpu().numpy().astype(np.float64)


def by_block(keys: list[Key], values: NDArray[Any], site: str) -> NDArray[Any] | None:
    """The cells of one site in block order, (blocks, …), or None if there are none; (…) for the final norm."""
    cells = sorted((-1 if block is None else block, i) for i, (block, name) in enumerate(keys) if name == site)
    if not cells:
        return None
    found: NDArray[Any] = values[[i for _, i in cells]]
    return found[0] if site == Site.FINAL_NORM else found
