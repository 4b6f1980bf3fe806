"""Run one metric on constructed tokens, through the same reductions as ``analyze`` but without a model."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.metrics import TOKEN_REDUCTIONS, AccumulatingMetric, HookMetric, Metric, Subject
from tokenlens.metrics import metrics as catalog
from tokenlens.recording.attention import AttentionCall
from tokenlens.reduction.reducer import Reducer
from tokenlens.tokens import Site, TokenLayout

EVERYTHING = frozenset(str(site) for site in Site)
ALL_GROUPS = TokenLayout(grid=(3, 4), prefix=("cls", "dist", "reg", "reg"))


def queries(seed: int = 0, layout: TokenLayout = ALL_GROUPS, images: int = 3, heads: int = 1) -> tuple[Tensor, Tensor]:
    """Return random q and k, (B, H, T, 8) each."""
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, images, heads, layout.tokens, 8, dtype=torch.float64, generator=generator)
    return q, k


def feed(name: str, layout: TokenLayout, images: int, show: Callable[[Reducer], None], blocks: int = 1) -> Metric:
    """Return a metric after one batch, for which ``show`` calls the reducer as the hooks of a model would."""
    metric: Metric = catalog.get(name)()
    reason = metric.prepare(Subject(nn.Identity(), layout, blocks, sites=EVERYTHING, expensive=True))
    assert reason is None, reason
    raw: list[Any] = []
    if isinstance(metric, HookMetric):
        raw.append((name, metric.looks_at, metric.receive_activation))
    if isinstance(metric, AccumulatingMetric):
        raw.append((name, metric.chosen_sites, metric.add_tokens))
    wanted = {site: set(TOKEN_REDUCTIONS & metric.needs) for site in metric.observes}
    reducer = Reducer(layout, wanted, metric.needs, raw)
    reducer.start(list(range(images)))
    with torch.no_grad():
        show(reducer)
        reducer.end()
        metric.update(reducer.collect())
    return metric


def numbers(metric: Metric) -> dict[tuple[str, str], float]:
    """Return the values of a metric at one site (and head), by part and group."""
    found = {(row["part"], row["group"]): float(row["value"]) for row in metric.rows()}
    assert len(found) == len(metric.rows())
    return found


def feed_tokens(name: str, layout: TokenLayout, x_BTD: Tensor, site: Site = Site.RESID_POST) -> Metric:
    """Return a metric after one batch of tokens at a site."""
    return feed(name, layout, len(x_BTD), lambda reducer: reducer.tokens(0, site, x_BTD))


def noise(images: int, layout: TokenLayout = ALL_GROUPS, channels: int = 96) -> Tensor:
    """Return standard normal tokens, (B, T, D)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(images, layout.tokens, channels, dtype=torch.float64, generator=generator)


def measure_tokens(name: str, layout: TokenLayout, x_BTD: Tensor, site: Site = Site.RESID_POST) -> dict[Any, float]:
    """Return the values of a metric of tokens."""
    return numbers(feed_tokens(name, layout, x_BTD, site))


def measure_norm(name: str, layout: TokenLayout, x_BTD: Tensor, module: nn.Module) -> dict[Any, float]:
    """Return the values of a metric of a norm, given its input."""
    return numbers(feed(name, layout, len(x_BTD), lambda s: s.norm(0, Site.NORM1, module, x_BTD, module(x_BTD))))


def feed_attention(name: str, layout: TokenLayout, blocks: list[tuple[Tensor, Tensor]]) -> Metric:
    """Return a metric after the attention with q and k of each block."""

    def show(reducer: Reducer) -> None:
        for block, (q_BHTd, k_BHTd) in enumerate(blocks):
            reducer.attention(block, AttentionCall(q_BHTd, k_BHTd, k_BHTd, scale=1.0))

    return feed(name, layout, len(blocks[0][0]), show, len(blocks))


def measure_attention(name: str, layout: TokenLayout, q_BHTd: Tensor, k_BHTd: Tensor) -> dict[Any, float]:
    """Return the values of a metric of attention with one head."""
    return numbers(feed_attention(name, layout, [(q_BHTd, k_BHTd)]))


def measure_update(name: str, layout: TokenLayout, residual_BTD: Tensor, update_BTD: Tensor) -> dict[Any, float]:
    """Return the values of a metric of the attention branch's update."""

    def show(reducer: Reducer) -> None:
        reducer.tokens(0, Site.RESID_PRE, residual_BTD)
        reducer.tokens(0, Site.ATTN_OUT, update_BTD)

    return numbers(feed(name, layout, len(residual_BTD), show))
