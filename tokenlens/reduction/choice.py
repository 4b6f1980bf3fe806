"""Choose the kernels that reduce a model's activations on a device."""

from __future__ import annotations

import functools
import os

import torch

from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.tokens import TokenLayout


def choose_kernels(device: torch.device) -> tuple[type[ReductionKernels], str]:
    """Return the kernels for a device and their name for the provenance.

    They are Triton's on a GPU and torch operations elsewhere, or ``TOKENLENS_KERNELS``. The name says why a GPU uses
    torch operations.

    Raises:
        ValueError: for an unknown value of ``TOKENLENS_KERNELS``, and for ``triton`` where Triton does not run.
    """
    wanted = os.environ.get("TOKENLENS_KERNELS", "")
    if wanted not in ("", "torch", "triton"):
        raise ValueError(f"TOKENLENS_KERNELS must be torch or triton, got {wanted!r}; unset it for the default")
    if wanted == "torch":
        return ReductionKernels, "torch (TOKENLENS_KERNELS=torch)"
    if not wanted and device.type != "cuda":
        return ReductionKernels, "torch"
    problem = _problem_with_triton(device)
    if problem is None:
        import triton

        from tokenlens.reduction.triton_kernels import TritonKernels

        return TritonKernels, f"triton {triton.__version__}"
    if wanted:
        raise ValueError(
            f"TOKENLENS_KERNELS=triton, but Triton cannot be used on {device}: {problem}; unset it to use torch "
            "operations"
        )
    return ReductionKernels, f"torch ({problem})"


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
    forms = TritonKernels(layout), ReductionKernels(layout)
    try:
        found, expected = (kernels.reduce_tokens(x_BTD, ["unit_patch_sum"]) for kernels in forms)
    except Exception as error:  # no C compiler, an old GPU or driver, a folder that cannot be written, …
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    right = all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-4) for name in found)
    return None if right else "its results are wrong"
