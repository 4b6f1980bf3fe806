"""Choose the kernels that reduce a model's activations on a device."""

from __future__ import annotations

import functools
import os

import torch

from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.tokens import TokenLayout


def kernels_for(layout: TokenLayout, device: torch.device) -> ReductionKernels:
    """Return the kernels for a device: Triton's on a GPU and torch operations elsewhere, or ``TOKENLENS_KERNELS``.

    Raises:
        ValueError: for an unknown value of ``TOKENLENS_KERNELS``, and for ``triton`` where Triton does not run.
    """
    if _why_torch(device) is not None:
        return ReductionKernels(layout)
    from tokenlens.reduction.triton_kernels import TritonKernels

    return TritonKernels(layout)


def describe_kernels(device: torch.device) -> str:
    """Describe the kernels for a device for the provenance, with the reason if a GPU uses torch operations."""
    reason = _why_torch(device)
    if reason is not None:
        return f"torch ({reason})" if reason else "torch"
    import triton

    return f"triton {triton.__version__}"


def _why_torch(device: torch.device) -> str | None:
    """Return why torch operations are used on a device, "" if nothing else is meant for it, or None for Triton."""
    wanted = os.environ.get("TOKENLENS_KERNELS", "")
    if wanted not in ("", "torch", "triton"):
        raise ValueError(f"TOKENLENS_KERNELS must be torch or triton, got {wanted!r}; unset it for the default")
    if wanted == "torch":
        return "TOKENLENS_KERNELS=torch"
    if not wanted and device.type != "cuda":
        return ""
    problem = _problem_with_triton(device)
    if problem is not None and wanted:
        raise ValueError(
            f"TOKENLENS_KERNELS=triton, but Triton cannot be used on {device}: {problem}; unset it to use torch "
            "operations"
        )
    return problem


@functools.cache
def _problem_with_triton(device: torch.device) -> str | None:
    """Return why Triton cannot be used on a device, after trying a small kernel, or None."""
    try:
        from triton import knobs

        from tokenlens.reduction.triton_kernels import TritonKernels
    except ImportError:
        return "Triton is not installed"
    if device.type != "cuda" and not knobs.runtime.interpret:
        return "it needs a GPU"
    layout = TokenLayout(grid=(2, 3))
    x_BTD = torch.linspace(-1, 2, 7 * 16, device=device).reshape(1, 7, 16)
    wanted = ("norms", "prefix", "unit_patch_sum")
    try:
        found, expected = (form(layout).reduce_tokens(x_BTD, wanted) for form in (TritonKernels, ReductionKernels))
    except Exception as error:  # no C compiler, an old GPU or driver, a folder that cannot be written, …
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    right = all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-4) for name in wanted)
    return None if right else "its results are wrong"
