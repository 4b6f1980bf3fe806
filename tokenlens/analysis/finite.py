"""Check that activations are finite, and say where they first were not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenlens.analysis.analysis import SITE_ORDER
from tokenlens.metrics import PATTERN
from tokenlens.reduction.memory import HostCopy
from tokenlens.reduction.summaries import AttentionSummary, BatchSummary, NormSummary, TokenSummary
from tokenlens.tokens import HEAD_SITES, NORM_SITES, TOKEN_SITES, Key


class NonFiniteActivation(ValueError):
    """NaN or infinity in a forward pass; the message says where it was first seen."""


class FiniteCheck:
    """Sums for each site and image that show NaN and infinity, computed on the device and read later.

    A token with NaN or infinity has a norm that is NaN or infinite, so norms are all that has to be looked at.
    """

    def __init__(self, batch: BatchSummary, names: Sequence[str]) -> None:
        self.names = names
        checked: list[tuple[list[Key], Tensor, str]] = []
        for sites in (TOKEN_SITES, HEAD_SITES):
            checked += [(stack.keys, stack.summary.norms, "") for stack in batch.stacks(TokenSummary, sites)]
        for stack in batch.stacks(NormSummary, NORM_SITES):
            checked.append((stack.keys, stack.summary.input.norms, "input of "))
        # Without token metrics, attention is all there is.
        for stack in batch.stacks(AttentionSummary, (PATTERN,)):
            both = (stack.summary.cls_row, stack.summary.patch_to_prefix)
            checked += [(stack.keys, weights, "") for weights in both if weights is not None]
        if not batch.layout.prefix:  # patches attend to patches only, in metrics that read the calls
            for by_key in batch.raw.values():
                pattern = {key: values for key, values in by_key.items() if key[1] == PATTERN}
                checked += [([key], next(iter(values.values()))[None], "") for key, values in pattern.items()]
        self._where = [(keys, prefix) for keys, _, prefix in checked]
        # No value is negative, so a sum is finite if and only if all values are, and NaN if one of them is.
        self._sums = [HostCopy(values.flatten(2).sum(-1)) for _, values, _ in checked]

    def raise_first(self) -> None:
        """Raise NonFiniteActivation for the first site and image in order, if there is any."""
        found = []
        for (keys, prefix), copied in zip(self._where, self._sums, strict=True):
            sums = copied.read()
            for row, image in (~torch.isfinite(sums)).nonzero().tolist():
                block, site = keys[row]
                order = SITE_ORDER.index(str(site)) - (0.5 if prefix else 0)
                overflow = not bool(sums[row, image].isnan())
                found.append((block is None, -1 if block is None else block, order, image, f"{prefix}{site}", overflow))
        if not found:
            return
        _, first, _, image, site, overflow = min(found)
        where = site if first < 0 else f"block {first}, {site}"
        if overflow:
            raise NonFiniteActivation(
                f"the activations at {where} are infinite, or so large (above about 1e19) that their squares are, "
                f"first for image {self.names[image]!r}. Check the weights and the images."
            )
        raise NonFiniteActivation(
            f"NaN or infinity in the activations at {where}, first for image {self.names[image]!r}. Check the weights "
            "and the images, and try without reduced precision (amp)."
        )
