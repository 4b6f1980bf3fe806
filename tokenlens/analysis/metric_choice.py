"""TODO."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from tokenlens.metrics.base import Metric
from tokenlens.metrics.base import metrics as metric_catalog

Choice = str | type[Metric] | Metric
"""A metric that is asked for: its name, or a class or an instance of one's own."""


def chosen_metrics(metrics: Choice | Sequence[Choice] | None) -> list[Metric]:
    """Fresh metrics for one analysis; those that were not left to the default at all of their sites.

    Args:
        metrics: None for all that are not opt-in, ``"all"``, or names and metrics of one's own, which are classes or
            instances; an instance is copied, so that it can be handed over again.

    Raises:
        LookupError: for an unknown name.
        ValueError: for an empty list, for what is no metric, and for metrics without a name of their own.
    """
    names = metric_catalog.names()
    wanted: Sequence[Choice]
    if metrics is None:
        wanted = [name for name in names if not metric_catalog.get(name).opt_in]
    elif metrics == "all":
        wanted = names
    else:
        wanted = [metrics] if isinstance(metrics, str | type | Metric) else list(dict.fromkeys(metrics))
    if not wanted:
        raise ValueError("metrics is an empty list; leave it out for the default ones")
    chosen = [_fresh(metric) for metric in wanted]
    _check_names(chosen)
    if metrics is not None:
        for metric in chosen:
            metric.sites = metric.sites + metric.named_sites
    return chosen


def _fresh(metric: Choice) -> Metric:
    """A metric that has seen nothing yet."""
    if isinstance(metric, str):
        found: Metric = metric_catalog.get(metric)()
        return found
    if isinstance(metric, type) and issubclass(metric, Metric):
        return metric()
    if isinstance(metric, Metric):
        return copy.deepcopy(metric)
    raise ValueError(f"a metric is a name, a Metric class or an instance of one, got {metric!r}")


def _check_names(chosen: Sequence[Metric]) -> None:
    """Each metric has a name, and no other metric has it."""
    known, seen = set(metric_catalog.names()), set()
    for metric in chosen:
        kind = type(metric).__qualname__
        if not metric.name:
            raise ValueError(f'the metric {kind} has no name; state one in its class: name = "…"')
        if metric.name in seen or (metric.name in known and type(metric) is not metric_catalog.get(metric.name)):
            raise ValueError(f"the name {metric.name!r} of the metric {kind} is taken; give it another")
        seen.add(metric.name)
