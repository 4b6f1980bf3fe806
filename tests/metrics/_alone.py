"""One metric on tokens that a test makes up, by the way they take in ``analyze`` but without a model."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.metrics.base import Metric, RawTokenMetric, Subject
from tokenlens.metrics.base import metrics as catalog
from tokenlens.recording.attention import AttentionCall
from tokenlens.reduction.reducer import Summarizer
from tokenlens.tokens import Site, TokenLayout

EVERYTHING = frozenset(str(site) for site in Site)


def feed(name: str, layout: TokenLayout, images: int, show: Callable[[Summarizer], None]) -> Metric:
    """A metric after one batch, of which ``show`` tells the observer what the model's hooks would."""
    metric: Metric = catalog.get(name)()
    reason = metric.prepare(Subject(nn.Identity(), layout, blocks=1, sites=EVERYTHING))
    assert reason is None, reason
    raw = [(name, metric.sites, metric.look)] if isinstance(metric, RawTokenMetric) else []
    wanted = {site: set(metric.wanted) for site in metric.observes}
    summarizer = Summarizer(layout, wanted, raw=raw, whole_pattern=metric.wanted_of_pattern)
    summarizer.start(list(range(images)))
    with torch.no_grad():
        show(summarizer)
        summarizer.end()
        metric.update(summarizer.collect())
    return metric


def numbers(metric: Metric) -> dict[tuple[str, str], float]:
    """The values of a metric that saw one site (and one head), by part and group."""
    found = {(row["part"], row["group"]): float(row["value"]) for row in metric.rows()}
    assert len(found) == len(metric.rows())
    return found


def of_tokens(name: str, layout: TokenLayout, x_BTD: Tensor, site: Site = Site.RESID_POST) -> dict[Any, float]:
    """The values of a metric of tokens."""
    return numbers(feed(name, layout, len(x_BTD), lambda summarizer: summarizer.tokens(0, site, x_BTD)))


def of_norm(name: str, layout: TokenLayout, x_BTD: Tensor, module: nn.Module) -> dict[Any, float]:
    """The values of a metric of a norm, given its input."""
    return numbers(feed(name, layout, len(x_BTD), lambda s: s.norm(0, Site.NORM1, module, x_BTD, module(x_BTD))))


def of_attention(name: str, layout: TokenLayout, q_BHTd: Tensor, k_BHTd: Tensor) -> dict[Any, float]:
    """The values of a metric of attention with one head."""
    call = AttentionCall(q_BHTd, k_BHTd, k_BHTd, scale=1.0)
    return numbers(feed(name, layout, len(q_BHTd), lambda s: s.attention(0, call)))


def of_update(name: str, layout: TokenLayout, residual_BTD: Tensor, update_BTD: Tensor) -> dict[Any, float]:
    """The values of a metric of the attention branch's update."""

    def show(summarizer: Summarizer) -> None:
        summarizer.tokens(0, Site.RESID_PRE, residual_BTD)
        summarizer.tokens(0, Site.ATTN_OUT, update_BTD)

    return numbers(feed(name, layout, len(residual_BTD), show))
