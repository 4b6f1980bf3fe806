"""The catalogue of figures, and the names that they give to models, token groups and quantities.

Each figure is one file (see docs/add-a-figure.md): ``frame(result, …)`` selects the numbers, and ``plot(frame, ax, …)``
draws them in a new figure, or on ``ax``, one Axes per panel from left to right and top to bottom.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.catalog import Catalog
from tokenlens.metrics import metrics
from tokenlens.storage.result import SETTINGS

figures = Catalog("tokenlens.figures", "figure")

KINDS = tuple(SETTINGS)
"""Kinds of results, one of which is a figure's ``KIND``."""

GROUP_NAMES = {
    "cls": "CLS",
    "dist": "distillation token",
    "reg": "registers",
    "summary": "summary tokens",
    "det": "detection tokens",
    "patch": "patches",
    "high_norm": "high-norm patches",
    "bias": "attention bias",
}
PAIR_NAMES = {
    "cls-patch": "CLS–patch",
    "patch-patch": "patch–patch",
    "cls-cls": "CLS–CLS",
    "reg-cls": "register–CLS",
    "reg-patch": "register–patch",
}


class NothingToDraw(ValueError):
    """A figure has no numbers: the metric was not computed, or does not apply to the model."""


def figures_of(kind: str) -> list[str]:
    """Return the names of the figures for one kind of result, in the order of the report.

    Raises:
        ValueError: if ``kind`` is not one of ``KINDS``.
    """
    if kind not in KINDS:
        raise ValueError(f"expected a kind of result ({', '.join(KINDS)}), got {kind!r}")
    found = [name for name in figures.names() if kind == figures.get(name).KIND]
    return sorted(found, key=lambda name: (figures.get(name).ORDER, name))


def model_title(analysis: Analysis) -> str:
    """Return the model's full name, followed by "(untrained)" if its weights are random."""
    return f"{analysis.model} (untrained)" if analysis.untrained else str(analysis.model)


def group_title(group: str) -> str:
    """Return the display name of a token group or of a pair of groups."""
    return PAIR_NAMES.get(group) or " → ".join(GROUP_NAMES.get(name, name) for name in group.split("-"))


def quantity_title(row: Any) -> str:
    """Describe the quantity in a row of differences: the metric's title, then part, site, group and block."""
    title = metrics.get(row.metric).title if row.metric in metrics.names() else row.metric
    group, block = group_title(row.group), getattr(row, "block", None)
    parts = [title + (f" ({row.part.replace('_', ' ')})" if row.part else "")]
    parts += [row.site] if row.site not in ("", "pattern") else []
    parts += [group] if group and group.lower() not in title.lower() else []
    parts += [f"block {block}"] if block is not None and not pd.isna(block) else []
    return ", ".join(parts)


def sort_groups(groups: Iterable[str]) -> list[str]:
    """Return token groups and pairs of groups without duplicates, in the order used by all figures."""
    order = [*GROUP_NAMES, *PAIR_NAMES]
    return sorted(set(groups), key=lambda group: (order.index(group) if group in order else len(order), group))
