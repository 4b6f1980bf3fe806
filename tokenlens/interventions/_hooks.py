"""Hooks that read or replace the tokens of one site during a forward pass."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from tokenlens.families import Family, SplitNorm, Tap
from tokenlens.recording.recorder import IncompleteRecording
from tokenlens.tokens import HEAD_SITES, Site, TokenLayout

Change = Callable[[Tensor], Tensor | None]
"""Returns new tokens for (B, T, D), or None to leave them as they are."""


class Sites:
    """The sites of one model at which tokens can be read and replaced.

    Args:
        model: the model.
        family: its family.
        layout: its tokens.
    """

    def __init__(self, model: nn.Module, family: Family, layout: TokenLayout) -> None:
        self.layout = layout
        modules = list(family.blocks(model))
        self.blocks = [family.taps(block) for block in modules]
        self._layouts = [family.block_layout(block, layout) for block in modules]
        norm = family.final_norm(model)
        # A norm in two parts has no tensor with all tokens.
        self.final_norm = None if norm is None or isinstance(norm, SplitNorm) else Tap(norm)

    def has_all_tokens(self, block: int) -> bool:
        """Return whether a block has all tokens of the model."""
        return self._layouts[block] == self.layout

    def check(self, site: Site, block: int) -> None:
        """Raise LookupError if tokens cannot be replaced at this site of this block."""
        if site in HEAD_SITES:
            raise LookupError(
                f"tokens cannot be replaced at {site}: it is read at the attention kernel. Replace them at norm1, from "
                "which q, k and v are computed"
            )
        if not self.has_all_tokens(block):
            raise LookupError(f"block {block} of this model lacks some of its tokens, so none is replaced there")
        sites = self.blocks[block].sites
        needed = [Site.RESID_PRE, Site.ATTN_OUT] if site == Site.RESID_MID else [site]
        if any(name not in sites for name in (site, *needed)):
            raise LookupError(f"block {block} of this model has no site {site}; it has {', '.join(sites)}")
        if any(sites[name].gain is not None or sites[name].plus for name in needed):
            raise LookupError(
                f"no module of block {block} outputs {site} as such, so it cannot be replaced; try resid_pre, norm1 or "
                "resid_post"
            )

    @contextmanager
    def at(self, site: Site, block: int, change: Change) -> Iterator[None]:
        """Call ``change`` with the tokens of a site in every forward pass, which must reach the site exactly once.

        ``resid_mid`` is the sum of ``resid_pre`` and ``attn_out``, so it is replaced by changing ``attn_out``.
        """
        if site == Site.FINAL_NORM:
            assert self.final_norm is not None
            with self._hook(self.final_norm, "final_norm", change, False):
                yield
            return
        taps, first = self.blocks[block].sites, self.blocks[block].sequence_first
        if site != Site.RESID_MID:
            with self._hook(taps[site], f"block {block}, {site}", change, first):
                yield
        else:
            before = {}

            def remember(x_BTD: Tensor) -> None:
                before["resid_pre"] = x_BTD

            def change_update(update_BTD: Tensor) -> Tensor | None:
                resid_mid_BTD = before.pop("resid_pre") + update_BTD
                changed_BTD = change(resid_mid_BTD)
                # Adding the difference leaves a token as it is, to the bit, where nothing changes.
                return None if changed_BTD is None else update_BTD + (changed_BTD - resid_mid_BTD)

            with (
                self._hook(taps[Site.RESID_PRE], f"block {block}, resid_pre", remember, first),
                self._hook(taps[Site.ATTN_OUT], f"block {block}, attn_out", change_update, first),
            ):
                yield

    @contextmanager
    def _hook(self, tap: Tap, name: str, change: Change, sequence_first: bool) -> Iterator[None]:
        calls = 0

        def checked(x_BTD: Tensor) -> Tensor | None:
            nonlocal calls
            calls += 1
            if x_BTD.dim() != 3:
                raise IncompleteRecording(
                    f"{name}: expected tokens of shape (images, tokens, channels), got {tuple(x_BTD.shape)}"
                )
            if sequence_first:
                x_BTD = x_BTD.transpose(0, 1)
            self.layout.check(x_BTD.shape[1])
            changed_BTD = change(x_BTD)
            return changed_BTD if changed_BTD is None or not sequence_first else changed_BTD.transpose(0, 1)

        def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
            return _with_tokens((args, kwargs), checked)[0]

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            return _with_tokens(output, checked)[0]

        if tap.side == "input":
            handle = tap.module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = tap.module.register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()
        if calls != 1:
            raise IncompleteRecording(
                f"the forward pass reached {name} {calls} times, expected once: its module is shared, skipped or "
                "inside compiled code"
            )


def _with_tokens(value: Any, change: Change) -> tuple[Any, bool]:
    """Return a copy of nested outputs in which the first tensor is changed, and whether there is a tensor."""
    if isinstance(value, Tensor):
        changed = change(value)
        return (value if changed is None else changed), True
    if isinstance(value, tuple | list):
        items = list(value)
        for index, item in enumerate(items):
            items[index], found = _with_tokens(item, change)
            if found:
                return (type(value)(*items) if hasattr(value, "_fields") else type(value)(items)), True
    elif isinstance(value, Mapping):
        for key, item in value.items():
            changed, found = _with_tokens(item, change)
            if found:
                copied: Any = copy.copy(value)
                copied[key] = changed
                return copied, True
    return value, False
