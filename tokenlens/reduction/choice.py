"""Choose the kernels that reduce a model's activations on a device."""

from __future__ import annotations

import torch

from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.tokens import TokenLayout


def kernels_for(layout: TokenLayout, device: torch.device) -> ReductionKernels:
    """Return the kernels for a device."""
    return ReductionKernels(layout)


def describe_kernels(device: torch.device) -> str:
    """Describe the kernels for a device, for the provenance."""
    return "torch"
