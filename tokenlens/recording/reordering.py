"""Pass activations on: with special tokens in front where they stand between patches, or to several observers."""

# Shapes: B images, T tokens, D channels, H heads, d channels per head.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import NormCall
from tokenlens.recording.recorder import Observer
from tokenlens.tokens import Site, TokenLayout


class ReorderingObserver:
    """An observer that passes tokens to another one in ``TokenLayout.contiguous_order``, so that patches are one slice.

    Args:
        observer: receives the activations; its layout is ``layout.with_contiguous_patches()``.
        layout: the model's own order.
    """

    def __init__(self, observer: Observer, layout: TokenLayout) -> None:
        self.observer = observer
        self._order = torch.tensor(layout.contiguous_order)

    def _reorder(self, x: Tensor, dim: int = -2) -> Tensor:
        if x.shape[dim] == 1:
            return x
        behind = torch.arange(len(self._order), x.shape[dim])  # the column of an attention bias
        return x.index_select(dim, torch.cat([self._order, behind]).to(x.device))

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Pass the tokens on."""
        self.observer.tokens(block, site, self._reorder(x_BTD))

    def norm(
        self, block: int | None, site: Site, module: nn.Module, x_BTD: Tensor, y_BTD: Tensor, call: NormCall | None
    ) -> None:
        """Pass a norm's input, output and statistics on."""
        if call is not None:
            mean_BT = None if call.mean_BT is None else self._reorder(call.mean_BT, -1)
            call = NormCall(mean_BT, self._reorder(call.rstd_BT, -1))
        self.observer.norm(block, site, module, self._reorder(x_BTD), self._reorder(y_BTD), call)

    def attention(self, block: int, call: AttentionCall) -> None:
        """Pass the call on; a bias with one row or column for all tokens keeps it."""
        bias, lse, pattern = call.bias, call.lse_BHT, call.pattern_BHTT
        reordered = replace(
            call,
            q_BHTd=self._reorder(call.q_BHTd),
            k_BHTd=self._reorder(call.k_BHTd),
            v_BHTd=self._reorder(call.v_BHTd),
            bias=None if bias is None else self._reorder(self._reorder(bias), -1),
            lse_BHT=None if lse is None else self._reorder(lse, -1),
            pattern_BHTT=None if pattern is None else self._reorder(self._reorder(pattern), -1),
        )
        self.observer.attention(block, reordered)


class RoutingObserver:
    """An observer that passes the activations of each block to an observer of its own; None is the final norm."""

    def __init__(self, observers: Mapping[int | None, Observer]) -> None:
        self.observers = observers

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Pass the tokens on."""
        self.observers[block].tokens(block, site, x_BTD)

    def norm(
        self, block: int | None, site: Site, module: nn.Module, x_BTD: Tensor, y_BTD: Tensor, call: NormCall | None
    ) -> None:
        """Pass a norm's input, output and statistics on."""
        self.observers[block].norm(block, site, module, x_BTD, y_BTD, call)

    def attention(self, block: int, call: AttentionCall) -> None:
        """Pass the call on."""
        self.observers[block].attention(block, call)
