"""Models whose verdicts are known beforehand (docs/findings.md), with library initialization and photographs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.metrics._cases import photographs
from tokenlens.analysis import Analysis, Finding, analyze, judge

DIM, DEPTH, IMAGES = 192, 6, 64
PLANTED = slice(10, 15)
METRICS = ["norm_differentiation", "energy_profile"]


def _vit(**options: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": DIM, "depth": DEPTH, "num_heads": 3, "num_classes": 0}
    return VisionTransformer(**sizes, **options).eval()


def random_vit() -> nn.Module:
    return _vit()


@torch.no_grad()
def common_offset() -> nn.Module:
    """Add one constant to all channels of all tokens."""
    model = _vit()
    model.pos_embed += 3.0
    return model


@torch.no_grad()
def random_cls() -> nn.Module:
    """Give CLS a random direction and the length of the patches."""
    model = _vit()
    patches = model.patch_embed(photographs(4, 48, 48))
    model.cls_token.normal_(0, patches.square().mean().sqrt().item())
    return model


@torch.no_grad()
def massive_channel() -> nn.Module:
    """Make one channel of all tokens far larger than all others."""
    model = _vit()
    model.pos_embed[..., 7] += 50.0
    return model


@torch.no_grad()
def planted_channels() -> nn.Module:
    """Give CLS most of its energy in five channels, which the patches share a little and γ suppresses.

    The branches add nothing, so that all blocks see the same tokens.
    """
    model = _vit(init_values=0.1)
    scale = model.patch_embed(photographs(4, 48, 48)).square().mean().sqrt().item()
    model.cls_token.normal_(0, scale)
    model.cls_token[..., PLANTED] = 25 * scale
    model.pos_embed[:, 0] = 0
    # A common direction keeps the patches alike without the planted channels.
    model.pos_embed[:, 1:] = 1.5 * scale * torch.randn(DIM)
    model.pos_embed[:, 1:, PLANTED] = 5 * scale
    for block in model.blocks:
        block.ls1.gamma.zero_()
        block.ls2.gamma.zero_()
        block.norm1.weight[PLANTED] = 0.02
    return model


def _timm(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"depth": 4, "embed_dim": 96, "num_heads": 3, "num_classes": 0, "img_size": 48, "patch_size": 8}
    return timm.create_model(name, **sizes, **options).eval()


def _torchvision() -> nn.Module:
    from torchvision.models import VisionTransformer as Torchvision

    torch.manual_seed(0)
    sizes = {"image_size": 48, "patch_size": 8, "num_layers": 4, "num_heads": 3, "hidden_dim": 96, "mlp_dim": 192}
    return Torchvision(**sizes).eval()


RANDOM_FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: _timm("vit_tiny_patch16_224"),
    "deit3": lambda: _timm("deit3_small_patch16_224"),
    "dinov2_registers": lambda: _timm("vit_small_patch14_reg4_dinov2"),
    "clip": lambda: _timm("vit_base_patch16_clip_quickgelu_224"),
    "dinov3": lambda: _timm("vit_small_patch16_dinov3"),
    "torchvision": _torchvision,
}


def judge_model(model: nn.Module, images: Tensor | None = None) -> tuple[Analysis, dict[str, Finding]]:
    """Analyze a model and judge it by its numbers alone, as if its weights were not known to be random."""
    analysis = analyze(model, photographs(IMAGES, 48, 48) if images is None else images, metrics=METRICS)
    assert not analysis.untrained
    return analysis, {finding.name: finding for finding in judge(analysis)}
