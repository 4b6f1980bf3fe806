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
    kernels, text = _try_triton(device)
    if kernels is not None:
        return kernels, text
    if wanted:
        raise ValueError(
            f"TOKENLENS_KERNELS=triton, but Triton cannot be used on {device}: {text}; unset it to use torch operations"
        )
    return ReductionKernels, f"torch ({text})"


@functools.cache
def _try_triton(device: torch.device) -> tuple[type[ReductionKernels] | None, str]:
    """Try a small kernel; return Triton's kernels and their name, or None and why they cannot be used on a device."""
    try:
        from triton import __version__, knobs

        from tokenlens.reduction.triton_kernels import TritonKernels
    except ImportError:
        return None, "Triton is not installed"
    if device.type != "cuda" and not knobs.runtime.interpret:
        return None, "it needs a GPU"
    layout = TokenLayout(grid=(2, 3))
    x_BTD = torch.linspace(-1, 2, 7 * 16, device=device).reshape(1, 7, 16)
    forms = TritonKernels(layout), ReductionKernels(layout)
    try:
        found, expected = (kernels.reduce_tokens(x_BTD, ["unit_patch_sum"]) for kernels in forms)
    except Exception as error:  # no C compiler, an old GPU or driver, a folder that cannot be written, …
        return None, f"{type(error).__name__}: {error}".partition("\n")[0]
    right = all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-4) for name in found)
    return (TritonKernels, f"triton {__version__}") if right else (None, "its results are wrong")
