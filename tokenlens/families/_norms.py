"""The parameters of norm layers of any library."""

# Shapes: D channels; 1 image with 3 tokens.

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NormParameters:
    """The parameters of a norm, (x − μ)/σ · weight + bias, for prefix tokens and for patches.

    Args:
        kind: ``"layer"`` subtracts the mean of each token and divides by its standard deviation, ``"rms"`` only divides
            by its root mean square.
        weight_prefix: γ (D,) for the prefix tokens, also where a module stores γ − 1; None for 1.
        bias_prefix: β (D,) for the prefix tokens; None for 0.
        weight_patch: γ (D,) for the patches; the same tensor as ``weight_prefix`` unless the norm is specialized.
        bias_patch: β (D,) for the patches.
        eps: ε, which is added to the variance or the mean square.
    """

    kind: Literal["layer", "rms"]
    weight_prefix: Tensor | None
    bias_prefix: Tensor | None
    weight_patch: Tensor | None
    bias_patch: Tensor | None
    eps: float

    @property
    def specialized(self) -> bool:
        """Whether prefix tokens and patches have separate parameters, equal or not."""
        return self.weight_prefix is not self.weight_patch or self.bias_prefix is not self.bias_patch


def norm_parameters(module: nn.Module) -> NormParameters:
    """Return the parameters of a norm over channels: ``nn.LayerNorm``, ``nn.RMSNorm``, those of timm and Hugging Face.

    A specialized norm has two child norms called ``cls`` (for all prefix tokens) and ``patch``. A module of any other
    class with a ``weight`` and an ``eps`` is run on a few numbers, to find out whether it computes one of these norms.

    Raises:
        LookupError: for any other module.

    >>> norm_parameters(nn.LayerNorm(4)).kind
    'layer'
    """
    # named_children() leaves out a module that is there twice.
    children = module.__dict__.get("_modules", {})
    if {"cls", "patch"} <= children.keys():
        if children["cls"] is children["patch"]:
            return norm_parameters(children["cls"])
        prefix, patch = norm_parameters(children["cls"]), norm_parameters(children["patch"])
        if (prefix.kind, prefix.eps) == (patch.kind, patch.eps):
            return replace(prefix, weight_patch=patch.weight_prefix, bias_patch=patch.bias_prefix)
    elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return _shared("layer", module.weight, module.bias, module.eps)
    elif isinstance(module, nn.RMSNorm) and len(module.normalized_shape) == 1:
        dtype = torch.get_default_dtype() if module.weight is None else module.weight.dtype
        return _shared("rms", module.weight, None, torch.finfo(dtype).eps if module.eps is None else module.eps)
    elif _is_timm_rms(module):
        assert isinstance(module.eps, float)
        return _shared("rms", _detached(getattr(module, "weight", None)), None, module.eps)
    else:
        found = _identify(module)
        if found is not None:
            return found
    cls = type(module)
    raise LookupError(
        f"unknown norm {cls.__module__}.{cls.__qualname__}: expected nn.LayerNorm or nn.RMSNorm over channels, a "
        "module that computes the same from weight, bias and eps, or a module with two such norms called cls and patch"
    )


def _shared(kind: Literal["layer", "rms"], weight: Tensor | None, bias: Tensor | None, eps: float) -> NormParameters:
    weight, bias = _detached(weight), _detached(bias)
    return NormParameters(kind, weight, bias, weight, bias, float(eps))


def _detached(x: object) -> Tensor | None:
    return x.detach() if isinstance(x, Tensor) else None


def _is_timm_rms(module: nn.Module) -> bool:
    if "timm.layers" not in sys.modules:
        return False
    from timm.layers import RmsNorm, RmsNormFp32

    return isinstance(module, RmsNorm | RmsNormFp32)


class SplitNorm(nn.Module):
    """A final norm that a model applies to its special tokens, which come first, and then to its patches.

    It holds modules of the model, and is none of them itself.

    Args:
        cls: the norm of the special tokens.
        patch: the norm of the patches; may be the same module.
        prefix: number of special tokens.
    """

    def __init__(self, cls: nn.Module, patch: nn.Module, prefix: int) -> None:
        super().__init__()
        self.cls, self.patch, self.prefix = cls, patch, prefix

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Norm all tokens."""
        return torch.cat((self.cls(x_BTD[:, : self.prefix]), self.patch(x_BTD[:, self.prefix :])), dim=1)


@torch.no_grad()
def _identify(module: nn.Module) -> NormParameters | None:
    """Find out which norm an unknown module computes by running it on a few numbers; None if it is neither."""
    weight, bias = _detached(getattr(module, "weight", None)), _detached(getattr(module, "bias", None))
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    if weight is None or weight.dim() != 1 or weight.is_meta or not isinstance(eps, float) or list(module.buffers()):
        return None
    # Numbers that all differ, with a mean far from 0 and a variance far from 1.
    angles = torch.linspace(-2.0, 5.0, 3 * len(weight), dtype=torch.float64)
    x_13D = (3 * angles.sin() + 1).view(1, 3, -1).to(weight)
    try:
        y_13D = module.forward(x_13D)
    except (TypeError, ValueError, RuntimeError):
        return None
    if not isinstance(y_13D, Tensor) or y_13D.shape != x_13D.shape:
        return None
    x_13D = x_13D.double()
    for kind in ("rms", "layer"):
        centred_13D = x_13D if kind == "rms" else x_13D - x_13D.mean(-1, keepdim=True)
        normed_13D = centred_13D / (centred_13D.square().mean(-1, keepdim=True) + eps).sqrt()
        for gamma_D in (weight, 1 + weight):
            expected_13D = normed_13D * gamma_D + (0 if bias is None else bias)
            if torch.allclose(y_13D.double(), expected_13D, rtol=0.02, atol=0.02 * float(expected_13D.abs().max())):
                return _shared(kind, gamma_D, bias, eps)
    return None
