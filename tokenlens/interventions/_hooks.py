"""Hooks that read or replace the tokens of one site during a forward pass."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
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
        last = self.blocks[-1].sites.get(Site.RESID_POST)
        whole = last is not None and last.gain is None and not last.plus and self._layouts[-1] == layout
        self.final_stream = last if whole else None
        """The residual stream behind the last block, if a module outputs it."""
        self.added_BD: Tensor | None = None
        """The token that ``added_token`` took off in the last forward pass."""
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

    def check_added_token(self) -> None:
        """Raise LookupError with the reason if no token can be appended to those of this model."""
        if self.layout.has("reg"):
            raise LookupError("this model has registers; a test-time register is for models without them")
        if self.final_stream is None or any(block.mlp_hidden is None for block in self.blocks):
            raise LookupError(
                "a test-time register is known for VisionTransformers of timm with an MLP in every block; the family "
                "of this model does not say where the neurons of its MLPs are (BlockTaps.mlp_hidden)"
            )

    @contextmanager
    def added_token(self) -> Iterator[None]:
        """Append a token of zeros at the first block, and take it off behind the last one."""
        taps, first, last = self.blocks[0].sites, self.blocks[0].sequence_first, self.final_stream
        assert last is not None

        def append(x_BTD: Tensor) -> Tensor:
            return torch.cat([x_BTD, torch.zeros_like(x_BTD[:, :1])], dim=1)

        def take_off(x_BTD: Tensor) -> Tensor:
            self.added_BD = x_BTD[:, -1]
            return x_BTD[:, :-1]

        with (
            self._hook(taps[Site.RESID_PRE], "block 0, resid_pre", append, first),
            self._hook(last, "the last block, resid_post", take_off, first, added=1),
        ):
            try:
                yield
            finally:
                self.added_BD = None

    @contextmanager
    def at_end(self, keep: Callable[[Tensor], None], keep_stream: Callable[[Tensor], None]) -> Iterator[None]:
        """Pass the final tokens to ``keep``, and those behind the last block to ``keep_stream`` if there are any."""
        last = len(self.blocks) - 1
        site = Site.RESID_POST if self.final_norm is None else Site.FINAL_NORM
        with contextlib.ExitStack() as hooks:
            hooks.enter_context(self.at(site, last, keep))
            if self.final_stream is not None:
                hooks.enter_context(self.at(Site.RESID_POST, last, keep_stream))
            yield

    @contextmanager
    def at_hidden(self, block: int, change: Change, added: int = 1) -> Iterator[None]:
        """Call ``change`` with the activations of a block's MLP, (B, T, H), with ``added`` more tokens than usual."""
        tap = self.blocks[block].mlp_hidden
        assert tap is not None
        with self._hook(tap, f"block {block}, neurons of the MLP", change, self.blocks[block].sequence_first, added):
            yield

    @contextmanager
    def _hook(self, tap: Tap, name: str, change: Change, sequence_first: bool, added: int = 0) -> Iterator[None]:
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
            self.layout.check(x_BTD.shape[1] - added)
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
