"""Small models with every parameter away from its initial value and some large channels, and photographs for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from timm.layers import LayerScale, RmsNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

import tokenlens
from tests.metrics._stored import Stored, from_recording, store
from tests.support.tiny_models import build

IMAGES = 8


class Twin(nn.Module):
    """Two copies of a module: one for the special tokens, one for the patches."""

    def __init__(self, module: Callable[[], nn.Module], prefix: int) -> None:
        super().__init__()
        self.cls, self.patch = module(), module()
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.cls(x[:, : self.prefix]), self.patch(x[:, self.prefix :])], dim=1)


@dataclass(frozen=True)
class Case:
    """A model and its layout; ``offset`` is added to one channel of all tokens, as in large ViTs.

    Where ``specialized``, the norms of the first block and the final norm are.
    """

    prefix: tuple[str, ...] = ("cls",)
    grid: tuple[int, int] = (4, 4)
    options: dict[str, Any] = field(default_factory=dict)
    make: Callable[..., Any] = VisionTransformer
    offset: float = 0.0
    specialized: bool = False

    @property
    def has(self) -> set[str]:
        """Token groups, and what else there is of ``NEEDS`` of the references."""
        found = {"prefix": self.prefix, "twins": self.specialized, "latent": self.options.get("global_pool") == "map"}
        return {*self.prefix, "patch", *(name for name, there in found.items() if there)}


CASES = {
    "layer": Case(options={"init_values": 1.0}),
    "rms": Case(options={"norm_layer": RmsNorm}),
    "registers": Case(("cls", "reg", "reg", "reg"), options={"reg_tokens": 3, "qk_norm": True, "init_values": 1.0}),
    "distilled": Case(("cls", "dist"), make=VisionTransformerDistilled),
    "pooled": Case(
        ("reg",),
        options={
            "class_token": False,
            "reg_tokens": 1,
            "global_pool": "map",
            "fc_norm": False,
            "pool_include_prefix": True,
        },
    ),
    "no_cls": Case((), options={"class_token": False, "global_pool": "avg"}),
    "register_only": Case(
        ("reg",), options={"class_token": False, "global_pool": "avg", "reg_tokens": 1, "fc_norm": False}
    ),
    "odd_grid": Case(grid=(3, 5), options={"norm_layer": partial(nn.LayerNorm, bias=False)}),
    "plain_norms": Case(options={"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)}),
    "outlier_channel": Case(options={"init_values": 1.0}, offset=30.0),
    "specialized": Case(("cls", "reg"), options={"reg_tokens": 1}, specialized=True),
    "rotary": Case(("cls", "reg", "reg", "reg", "reg"), make=partial(build, "timm_dinov3")),
}


@cache
def model(name: str) -> Any:
    """Return the model of a case in eval mode; always the same object, so do not change it."""
    case = CASES[name]
    if name == "rotary":
        return case.make()
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, name)))
        size = (8 * case.grid[0], 8 * case.grid[1])
        options = {"img_size": size, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
        module = case.make(**options | case.options)
        if case.specialized:
            for owner, norm in ((module.blocks[0], "norm1"), (module.blocks[0], "norm2"), (module, "norm")):
                setattr(owner, norm, Twin(partial(nn.LayerNorm, 48), len(case.prefix)))
        train(module)
        with torch.no_grad():
            module.patch_embed.proj.bias[7] += case.offset
            if case.offset:
                module.cls_token[..., 7] += case.offset
    return module.eval()


@torch.no_grad()
def train(module: nn.Module) -> None:
    """Imitate training: move every parameter away from its initial value."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            part.weight.normal_(0, part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                part.bias.normal_(0, 0.2)
        elif isinstance(part, LayerScale):
            part.gamma.normal_(0.5, 0.3)
        elif isinstance(part, nn.LayerNorm | RmsNorm):
            if part.weight is not None:
                part.weight.normal_(0, 0.6).exp_()
                part.weight[::11].neg_()
            if getattr(part, "bias", None) is not None:
                part.bias.normal_(0, 0.4)
    for name, parameter in module.named_parameters():
        if name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            parameter.normal_(0.2, 0.7)
            parameter[..., 3] += 4


@cache
@torch.inference_mode(False)
def photographs(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Return normalized views of scikit-learn's two photographs, (count, 3, height, width)."""
    generator = np.random.default_rng(seed)
    pictures = [torch.from_numpy(np.array(image)) for image in load_sample_images().images]
    sources = [picture.permute(2, 0, 1).float() / 255 for picture in pictures]
    views = []
    for index in range(count):
        source = sources[index % len(sources)]
        largest = min(5, source.shape[1] // height, source.shape[2] // width)
        zoom = int(generator.integers(1, largest + 1))
        top = int(generator.integers(0, source.shape[1] - zoom * height + 1))
        left = int(generator.integers(0, source.shape[2] - zoom * width + 1))
        view = source[:, top : top + zoom * height, left : left + zoom * width]
        views.append(avg_pool2d(view, zoom))
    return (torch.stack(views) - 0.45) / 0.225


def images(name: str, count: int = IMAGES) -> Tensor:
    case = CASES[name]
    return photographs(count, 8 * case.grid[0], 8 * case.grid[1])


@cache
def precise(name: str) -> Any:
    """Return the model of a case in float64."""
    return copy.deepcopy(model(name)).double()


@cache
def stored_precisely(name: str) -> Stored:
    """Return all activations of a case in float64."""
    case = CASES[name]
    return store(precise(name), images(name).double(), case.prefix, case.grid)


@cache
def stored(name: str) -> Stored:
    """Return all activations of a case."""
    case = CASES[name]
    if name == "rotary":
        return from_recording(tokenlens.record(model(name), images(name), limit=None), model(name))
    return store(model(name), images(name), case.prefix, case.grid)
