"""Specialized tiny models, and their outputs."""

import torch
from torch import Tensor, nn

from tests.support.watching import tensors
from tokenlens.families.base import Family, find_family

SEVERAL = ("timm_vit", "timm_dinov2_registers", "timm_beit", "timm_eva02", "hf_dinov2", "torchvision_vit", "dinov2_hub")
"""Kinds of ``tests.support.tiny_models`` that differ in how they are specialized."""


def preset_for(name: str) -> str:
    """Return the largest preset that a kind supports."""
    return "norms" if name == "torchvision_vit" else "everything"


@torch.no_grad()
def perturb(model: nn.Module) -> nn.Module:
    """Add noise to all parameters, so that the weights for special tokens and patches differ."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def outputs(model: nn.Module, x: Tensor, family: Family | None = None) -> Tensor:
    """Return all tokens after the last block and the model's outputs as one vector."""
    family = family or find_family(model)
    found: list[Tensor] = []
    hook = family.blocks(model)[-1].register_forward_hook(lambda _m, _a, out: found.extend(tensors(out)))
    try:
        found += tensors(family.forward(model, x))
    finally:
        hook.remove()
    return torch.cat([value.flatten() for value in found if value.is_floating_point()])
