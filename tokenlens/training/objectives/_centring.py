"""Turn a teacher's outputs into assignments, by Sinkhorn–Knopp or with a moving centre."""

# Shapes: R rows (CLS of crops, or masked patches) of this process, K prototypes.

from __future__ import annotations

from typing import Literal

import torch
from lightly.utils.dist import world_size
from torch import Tensor, distributed, nn


def sinkhorn(outputs_RK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Return assignments (R, K) of rows to prototypes: each row sums to 1, and prototypes are used about equally.

    Rows of all processes count together; a process may have none. As in DINOv2, first the prototypes are normalized,
    then the rows, ``iterations`` times. (lightly's ``sinkhorn`` divides by a count that must be the same in every
    process: with different numbers of masked patches, two processes would get other assignments than one.)
    """
    # Subtracting a constant changes no assignment, and keeps exp from overflowing.
    largest = outputs_RK.amax() if outputs_RK.numel() else outputs_RK.new_tensor(-torch.inf)
    if world_size() > 1:
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    assigned_RK = ((outputs_RK - largest) / temperature).exp()
    for _ in range(iterations):
        assigned_RK /= _sum_over_processes(assigned_RK.sum(0))
        assigned_RK /= assigned_RK.sum(1, keepdim=True)
    return assigned_RK


class Centring(nn.Module):
    """Assignments of a teacher's outputs to prototypes, without gradient.

    Args:
        prototypes: their number K.
        method: ``"sinkhorn"``, or ``"centre"``: softmax((outputs − centre) / temperature) with the centre of previous
            steps.
        momentum: momentum of the centre.

    lightly's ``Center`` averages the means of the processes, which is not the mean of all rows if processes have
    different numbers of masked patches, or none.
    """

    centre: Tensor

    def __init__(self, prototypes: int, method: Literal["sinkhorn", "centre"], momentum: float = 0.9) -> None:
        super().__init__()
        self.method = method
        self.momentum = momentum
        if method == "centre":
            self.register_buffer("centre", torch.zeros(prototypes))

    @torch.no_grad()
    def forward(self, outputs_RK: Tensor, temperature: float) -> Tensor:
        """Return assignments (R, K) of outputs (R, K); each row sums to 1."""
        if self.method == "sinkhorn":
            return sinkhorn(outputs_RK, temperature)
        assigned_RK = ((outputs_RK - self.centre) / temperature).softmax(-1)
        total_K1 = _sum_over_processes(torch.cat([outputs_RK.sum(0), outputs_RK.new_tensor([float(len(outputs_RK))])]))
        if total_K1[-1]:
            mean_K = (total_K1[:-1] / total_K1[-1]).to(self.centre.dtype)
            self.centre.lerp_(mean_K, 1 - self.momentum)
        return assigned_RK


def _sum_over_processes(total: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place."""
    if world_size() > 1:
        distributed.all_reduce(total)
    return total
