"""Contract that all metrics share, and the catalogue of metrics.

A metric is a pure function (tensors in, tensor out) and a small class that names its sites, needs and unit.
See docs/add-a-metric.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tokenlens.catalog import Catalog
from tokenlens.families import Family
from tokenlens.reduction.summaries import BatchSummary, Reduction
from tokenlens.tokens import GROUP_TITLES, GROUPS, Key, Site, TokenLayout

metrics = Catalog("tokenlens.metrics", "metric", base="Metric")

PATTERN = "pattern"
"""The site of attention numbers."""

TOKEN_REDUCTIONS = frozenset[Reduction](get_args(Reduction))
NEEDS = frozenset(
    {*GROUPS, "special_tokens", "several_patches", "norm_stages", "patch_sample", "updates", "pattern"}
    | TOKEN_REDUCTIONS
)
"""The entries that ``Metric.needs`` may have. Required of the model: a token of a group, any special token, at least
two patches. Requested of the reducer: sums over patches, stages of norms, some patches of norm1's input, updates of
branches, the CLS row and special columns of the pattern."""

BOUNDS = {
    "cosine": (-1.0, 1.0),
    "share": (0.0, 1.0),
    "entropy / log P": (0.0, 1.0),
    "norm": (0.0, float("inf")),
}
"""Lowest and highest possible number, by unit."""

RANGES = {unit: high - low for unit, (low, high) in BOUNDS.items() if high < float("inf")}
"""Width of the range of bounded numbers, by unit."""

UNBOUNDED = (-float("inf"), float("inf"))

Row = dict[str, Any]
NumberKey = tuple[str, int | None, str, str, int | None]
"""Part, block, site, group and head of a number."""


@dataclass(frozen=True)
class NamedArray:
    """An array with the names of its dimensions and its unit."""

    values: NDArray[Any]
    dims: tuple[str, ...]
    unit: str = ""


@dataclass(frozen=True)
class Subject:
    """The model that a metric is prepared for.

    Attributes:
        model: the module.
        layout: its tokens.
        blocks: number of blocks.
        sites: the sites that it has.
        keep_images: number of images whose values are kept.
        expensive: whether the metrics were asked for by name or with ``"all"``.
        all_attend: whether all tokens attend to all, and not CLS alone.
        family: knows the model's blocks; None where only tokens are constructed.
    """

    model: nn.Module
    layout: TokenLayout
    blocks: int
    sites: frozenset[str]
    keep_images: int = 4096
    expensive: bool = False
    all_attend: bool = True
    family: Family | None = None


class Metric(ABC):
    """Contract of all metrics. Most derive from ``PerImageMetric`` or ``JackknifeMetric``, which stream the images.

    Attributes:
        name: the file's name; a metric defined elsewhere states its own.
        title: name on axes and in captions.
        unit: unit of all parts, or of each part.
        sites: sites that are always taken.
        expensive_sites: sites that are taken only where the metric is asked for by name or with ``"all"``; a metric
            that has only these is opt-in.
        cost: cost of the expensive sites.
        needs: entries of ``NEEDS``, in addition to those of the base class.
        no_interval: parts for which no interval covers, with the reason.
        fewest_images: fewer images give no interval.
        chosen_sites: the sites of one analysis, chosen by ``prepare``.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    unit: ClassVar[str | Mapping[str, str]] = ""
    sites: ClassVar[tuple[str, ...]] = ()
    expensive_sites: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    no_interval: ClassVar[Mapping[str, str]] = {}
    fewest_images: ClassVar[int] = 2
    chosen_sites: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        package, _, file = cls.__module__.rpartition(".")
        if package == metrics.package:
            cls.name = file
        cls.needs = frozenset(cls.needs).union(*(base.needs for base in cls.__bases__ if issubclass(base, Metric)))
        if unknown := cls.needs - NEEDS:
            raise ValueError(f"{cls.__name__} needs {sorted(unknown)}; a metric can need {', '.join(sorted(NEEDS))}")

    @classmethod
    def is_opt_in(cls) -> bool:
        """Return whether the metric runs only where it is asked for by name or with ``"all"``."""
        return bool(cls.expensive_sites) and not cls.sites

    @property
    def observes(self) -> tuple[str, ...]:
        """Sites to observe in the forward pass for the numbers at ``chosen_sites``."""
        return self.chosen_sites

    def prepare(self, subject: Subject) -> str | None:
        """Choose the sites for one model; return why the metric does not apply to it, or None."""
        self.chosen_sites = self.sites + (self.expensive_sites if subject.expensive else ())
        layout = subject.layout
        if "several_patches" in self.needs and layout.patches < 2:
            return "the image is one single patch"
        if "special_tokens" in self.needs and not layout.prefix:
            return "the model has no special token"
        for group in GROUPS:
            if group in self.needs and not layout.has(group):
                return f"the model has no {GROUP_TITLES[group]} token"
        chosen = set(self.chosen_sites) - {PATTERN}
        if chosen and not subject.sites & chosen:
            return f"the model has none of the sites {', '.join(sorted(chosen))}"
        if self.observes and not subject.sites & set(self.observes):
            return f"the model has none of the sites {', '.join(self.observes)}"
        return None

    @abstractmethod
    def update(self, batch: BatchSummary) -> None:
        """Add one batch."""

    def receive(self) -> None:  # noqa: B027
        """Add numbers of ``update`` that are still on their way from the device; called before the others below."""

    @abstractmethod
    def merge(self, other: Any) -> None:
        """Add the images of another instance that was prepared for the same model."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """Return the rows of the table, each as ``make_row`` makes it."""

    def arrays(self) -> dict[str, NamedArray]:
        """Return per-channel and per-position arrays by part."""
        return {}

    def unit_of(self, part: str) -> str:
        """Return the unit of one part."""
        return self.unit if isinstance(self.unit, str) else self.unit.get(part, "")

    def bounds_of(self, part: str) -> tuple[float, float]:
        """Return the lowest and the highest possible number of one part, by its unit; intervals end there."""
        return BOUNDS.get(self.unit_of(part), UNBOUNDED)


def make_row(
    key: NumberKey,
    value: float,
    n: int,
    unit: str,
    sd: float = np.nan,
    interval: tuple[float, float] = (np.nan, np.nan),
) -> Row:
    """Make one row of the table."""
    numbers = {"value": value, "sd": sd, "n": n, "ci_low": interval[0], "ci_high": interval[1], "unit": unit}
    return dict(zip(("part", "block", "site", "group", "head"), key, strict=True)) | numbers


def by_block(keys: list[Key], values: NDArray[Any], site: str) -> NDArray[Any] | None:
    """Return the values at one site in block order, (blocks, …), or (…) for the final norm; None if there are none."""
    found = sorted((-1 if block is None else block, i) for i, (block, name) in enumerate(keys) if name == site)
    if not found:
        return None
    ordered: NDArray[Any] = values[[i for _, i in found]]
    return ordered[0] if site == Site.FINAL_NORM else ordered
