"""Mean activations of the neurons of MLPs at marked patches, and the neurons where they are largest."""

# Shapes: B images, T tokens, H neurons of an MLP.

from __future__ import annotations

import torch
from torch import Tensor

SHARE_OF_NEURONS = 5e-4
"""Share of all neurons of the blocks that are register neurons, at least one.

Jiang et al. (arXiv 2506.08010) take 10 to 50 neurons of a whole model, between 0.03 and 0.06 % of those it has.
"""


class NeuronSums:
    """Sums of activations over marked tokens, for each neuron of each block."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: dict[int, Tensor] = {}

    def update(self, hidden: dict[int, Tensor], marked_BT: Tensor) -> None:
        """Add a batch: (B, T, H) of each block, and which tokens count, (B, T) bool."""
        self.count += int(marked_BT.sum())
        for block, hidden_BTH in hidden.items():
            sums_H = hidden_BTH[marked_BT].float().sum(0).cpu().double()
            self._sums[block] = self._sums.get(block, torch.zeros_like(sums_H)) + sums_H

    def merge(self, other: NeuronSums) -> None:
        """Add the images of another process."""
        self.count += other.count
        for block, sums_H in other._sums.items():
            self._sums[block] = self._sums.get(block, torch.zeros_like(sums_H)) + sums_H

    def largest(self, share: float = SHARE_OF_NEURONS) -> dict[int, Tensor]:
        """Return the neurons with the largest mean activation, by block; none if no token was marked."""
        if not self.count:
            return {}
        blocks = sorted(self._sums)
        sums = torch.cat([self._sums[block] for block in blocks])
        owner = torch.cat([torch.full_like(self._sums[block], block, dtype=torch.long) for block in blocks])
        number = torch.cat([torch.arange(len(self._sums[block])) for block in blocks])
        best = sums.topk(max(1, round(share * len(sums)))).indices
        return {block: number[best][owner[best] == block].sort().values for block in owner[best].unique().tolist()}
