"""From a teacher's outputs to its assignments: Sinkhorn–Knopp, or a centre that follows the outputs' mean."""

# Shapes: R rows (CLS of crops, or masked patches) of this process, K prototypes.

from __future__ import annotations

from typing import Literal

import torch
from lightly.utils.dist import world_size
from torch import Tensor, distributed, nn


def sinkhorn(outputs_RK: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Assignments (R, K) of rows to prototypes: each row sums to 1, and every prototype gets about as much as another.

    The rows are those of all processes; a process may have none. As in DINOv2 the prototypes are made even first, then
    the rows, ``iterations`` times. (lightly's ``sinkhorn`` divides by a count that must be the same in every process:
    with different numbers of masked patches, two processes get other assignments than one.)
    """
    # No assignment depends on what is taken off all outputs, but exp could overflow.
    largest = outputs_RK.amax() if outputs_RK.numel() else outputs_RK.new_tensor(-torch.inf)
    if world_size() > 1:
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
    assigned_RK = ((outputs_RK - largest) / temperature).exp()
    for _ in range(iterations):
        assigned_RK /= _over_processes(assigned_RK.sum(0))
        assigned_RK /= assigned_RK.sum(1, keepdim=True)
    return assigned_RK


class Centring(nn.Module):
    """Assignments of a teacher's outputs to prototypes, without gradient.

    Args:
        prototypes: K.
        method: ``"sinkhorn"``, or ``"centre"``: softmax((outputs − centre) / temperature) with the centre of the steps
            before.
        momentum: of the centre.

    lightly's ``Center`` takes the mean over processes of their means, which is not the mean of all rows where
    processes have different numbers of masked patches; and a process may have none.
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
        """(R, K) → (R, K); each row sums to 1."""
        if self.method == "sinkhorn":
            return sinkhorn(outputs_RK, temperature)
        assigned_RK = ((outputs_RK - self.centre) / temperature).softmax(-1)
        total_K1 = _over_processes(torch.cat([outputs_RK.sum(0), outputs_RK.new_tensor([float(len(outputs_RK))])]))
        if total_K1[-1]:
            mean_K = (total_K1[:-1] / total_K1[-1]).to(self.centre.dtype)
            self.centre.lerp_(mean_K, 1 - self.momentum)
        return assigned_RK


def _over_processes(total: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        distributed.all_reduce(total)
    return total
