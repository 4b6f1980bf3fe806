"""Cait of timm: CaiT, whose first blocks have patches only, and whose last blocks update CLS alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tokenlens.families._timm import TimmFamily
from tokenlens.families.base import BlockComponents, BlockTaps, Tap, is_a
from tokenlens.tokens import Site, TokenLayout

_CLASS_BLOCK = "timm.models.cait.LayerScaleBlockClassAttn"


class TimmCait(TimmFamily):
    """timm.models.cait.Cait and its subclasses: blocks of patches, then class-attention blocks (2103.17239).

    LayerScale is a bare parameter, so no module outputs the updates ``attn_out`` and ``mlp_out``.
    """

    name = "timm_cait"
    timm_class = "timm.models.cait.Cait"

    def layout(self, model: Any, image_size: tuple[int, int]) -> TokenLayout:
        """Return the layout after the last block: CLS, then the patches."""
        prefix = () if model.cls_token is None else ("cls",)
        return TokenLayout(self.grid(model, image_size), prefix, patch_size=self.patch_size(model))

    def block_layout(self, block: nn.Module, layout: TokenLayout) -> TokenLayout:
        """Return CLS and patches for a class-attention block, patches alone for the blocks before."""
        return layout if is_a(block, _CLASS_BLOCK) else TokenLayout(layout.grid, (), patch_size=layout.patch_size)

    def notes(self, model: Any) -> list[str]:
        """Say what the two kinds of blocks lack."""
        first, last = len(model.blocks), len(model.blocks_token_only or ())
        notes = [
            f"Blocks 0 to {first - 1} have patches only. Their talking heads mix the attention of all heads after the "
            "softmax, so that its rows need not sum to 1: attention is left out there."
        ]
        if last:
            notes.append(
                f"Blocks {first} to {first + last - 1} update CLS alone, by its attention to itself and the patches: "
                "they have the sites resid_pre and norm1, and of the attention the row of CLS."
            )
        return notes

    def blocks(self, model: Any) -> Sequence[nn.Module]:
        """Return the blocks of patches, then the class-attention blocks."""
        return [*model.blocks, *(model.blocks_token_only or ())]

    def taps(self, block: Any) -> BlockTaps:
        """Return the taps; a class-attention block joins CLS and patches before its first norm only."""
        sites = {Site.RESID_PRE: Tap(block.norm1, "input"), Site.NORM1: Tap(block.norm1)}
        if is_a(block, _CLASS_BLOCK):
            return BlockTaps(sites, attention=block.attn, queries=1)
        sites |= {Site.RESID_MID: Tap(block.norm2, "input"), Site.NORM2: Tap(block.norm2), Site.RESID_POST: Tap(block)}
        return BlockTaps(sites, attention=None)

    def components(self, block: Any) -> BlockComponents:
        """Raise LookupError: class-attention blocks are a specialization of their own.

        Raises:
            LookupError: always.
        """
        raise LookupError(
            "CaiT cannot be specialized: its first blocks have no CLS, and its class-attention blocks have weights for "
            "CLS alone already"
        )
