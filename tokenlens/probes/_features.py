"""Features of a frozen model of any family: CLS, the mean of the patches, or every patch.

They are the output of the final norm, or ``resid_post`` of chosen blocks through that norm, concatenated, as in
DINOv2's ``get_intermediate_layers(norm=True)``.
"""

# Shapes: B images, T tokens, P patches, D channels of a token, F channels of a feature (D times the blocks taken).

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor, nn
from torch.nn import functional

from tokenlens.models.loading import LoadedModel
from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import NormCall
from tokenlens.recording.recorder import Recorder, evaluating
from tokenlens.tokens import Site

FeatureKind = Literal["image", "patches"]
"""The features of an image: one vector, or one vector per patch."""

RAW_PIXELS = "raw_pixels"
"""Name of the baseline that takes the pixels themselves as features."""

RAW_GRID = 16
RAW_SIZE = 224


class Backbone(Protocol):
    """Computes features of transformed images.

    Attributes:
        name: full name.
        untrained: whether its weights are random.
        image_size: (height, width) of transformed images.
        grid: rows and columns of patches.
        sources: names of the available image features, e.g. ``("cls", "patch_mean")``.
        transform: RGB image → (3, height, width).
        identity: everything besides the images that determines the features; JSON-able.
        protocol: the same in words.
    """

    name: str
    untrained: bool
    image_size: tuple[int, int]
    grid: tuple[int, int]
    sources: tuple[str, ...]
    transform: Callable[[Image.Image], Tensor]
    identity: dict[str, Any]
    protocol: dict[str, Any]

    def features(self, pixels_B3HW: Tensor) -> dict[str, Tensor]:
        """Return each source (B, F), or ``"patches"`` (B, P, F), in float32."""


class FrozenModel:
    """A frozen Vision Transformer, in eval mode and without gradients; see ``Backbone``.

    Args:
        loaded: the model.
        kind: the kind of features.
        blocks: use ``resid_post`` of these blocks, through the final norm; None for the output of the final norm.
        amp: run it under autocast in bfloat16.

    A model without a norm over all its tokens (it normalizes after pooling) gives ``resid_post`` unchanged.

    Raises:
        LookupError: for a block that the model does not have.
        ValueError: for patches of images whose sides are no multiples of the patch size.
    """

    def __init__(self, loaded: LoadedModel, kind: FeatureKind, blocks: Sequence[int] | None, amp: bool) -> None:
        module, family = loaded.module, loaded.family
        self.loaded, self.kind, self.amp = loaded, kind, amp
        self.name, self.untrained, self.image_size = loaded.name, loaded.untrained, loaded.image_size
        self.layout = family.layout(module, loaded.image_size)
        self.grid = self.layout.grid
        border = self.layout.border_note(loaded.image_size)
        if border and kind == "patches":
            raise ValueError(
                f"{border} Masks are compared with the patches over the whole image, so a segmentation probe needs an "
                "image size (--img-size) that is a multiple of the patch size"
            )
        self.sources: tuple[str, ...] = ("cls", "patch_mean") if self.layout.has("cls") else ("patch_mean",)
        self.norm = family.final_norm(module)
        self.blocks = _resolve_blocks(blocks, len(family.blocks(module)))
        last = len(family.blocks(module)) - 1
        if self.blocks is None and self.norm is None:
            self.blocks = [last]
        modules = family.blocks(module)
        lacking = [b for b in self.blocks or () if family.block_layout(modules[b], self.layout) != self.layout]
        if lacking:
            raise ValueError(
                f"blocks {lacking} of this model lack some of its tokens; leave out blocks, or name others"
            )
        config, resize = _resize_config(loaded.data_config, kind)
        self.transform = replace(loaded, data_config=config).transform()
        self.identity: dict[str, Any] = {
            "model": loaded.name,
            "family": family.name or type(family).__qualname__,
            "weights": loaded.weights["sha256"],
            "model_args": dict(loaded.model_args),
            "image_size": list(loaded.image_size),
            "transform": {key: str(value) for key, value in config.items()},
            "blocks": self.blocks,
            "amp": amp,
            "device": loaded.device.type,
            "torch": torch.__version__,
            "timm": timm.__version__,
        }
        if isinstance(loaded.weights.get("source"), str) and loaded.weights["source"] == "module as handed over":
            # The weights of a user's module do not determine what it computes (its number of heads, say).
            self.identity["computes"] = self._fingerprint()
        self.protocol: dict[str, Any] = {
            "model": loaded.name + (" (untrained: random weights)" if loaded.untrained else ""),
            "weights": f"{loaded.weights['source']}, SHA-256 {loaded.weights['sha256'][:12]}",
            "frozen features": self._describe_features() + (", computed in bfloat16 autocast" if amp else ""),
            "images": f"{resize}. {border}" if border else resize,
        }

    def _describe_features(self) -> str:
        if self.blocks is None:
            return "output of the final norm"
        names = ("blocks " if len(self.blocks) > 1 else "block ") + ", ".join(map(str, self.blocks))
        joined = ", concatenated" if len(self.blocks) > 1 else ""
        if self.norm is None:
            return f"resid_post of {names}, unchanged{joined} (the model has no norm over all tokens)"
        return f"resid_post of {names} through the final norm{joined}"

    def _fingerprint(self) -> str:
        size = (1, 3, *self.image_size)
        pixels_B3HW = torch.randn(size, generator=torch.Generator().manual_seed(0))
        parts = self.features(pixels_B3HW)
        return hashlib.sha256(b"".join(parts[name].cpu().numpy().tobytes() for name in sorted(parts))).hexdigest()

    def features(self, pixels_B3HW: Tensor) -> dict[str, Tensor]:
        """Run one forward pass; see ``Backbone``."""
        return self.forward(pixels_B3HW)[1]

    def forward(self, pixels_B3HW: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Run one forward pass, and return the model's output and the features."""
        module = self.loaded.module
        weights = next(module.parameters())
        x = pixels_B3HW.to(weights.device, weights.dtype, non_blocking=True)
        autocast = torch.autocast(x.device.type, dtype=torch.bfloat16) if self.amp else contextlib.nullcontext()
        reducer = _FeatureReducer(self)
        site = Site.FINAL_NORM if self.blocks is None else Site.RESID_POST
        recorder = Recorder(module, self.loaded.family, self.layout, reducer, sites=[site], blocks=self.blocks or [])
        with evaluating(module), recorder, autocast:
            output = recorder.run(x)
        order: list[int | None] = [None] if self.blocks is None else list(self.blocks)
        joined = {name: torch.cat([reducer.parts[name, block] for block in order], dim=-1) for name in reducer.names}
        return output, joined


class _FeatureReducer:
    """Keeps the features at each recorded site during a forward pass."""

    def __init__(self, model: FrozenModel) -> None:
        self.model = model
        self.names = ("patches",) if model.kind == "patches" else model.sources
        self.parts: dict[tuple[str, int | None], Tensor] = {}

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Keep ``resid_post``, through the final norm if there is one."""
        norm = self.model.norm
        if norm is not None:
            # Under autocast the residual stream may be in half precision, which the norm's weights are not.
            # Not through __call__: others may count how often the norm's hooks fire in a pass.
            x_BTD = norm.forward(x_BTD.to(_dtype(norm, x_BTD)))
        self._keep(block, x_BTD)

    def norm(
        self, block: int | None, site: Site, module: nn.Module, x_BTD: Tensor, y_BTD: Tensor, call: NormCall | None
    ) -> None:
        """Keep the output of the final norm."""
        self._keep(block, y_BTD)

    def attention(self, block: int, call: AttentionCall) -> None:
        """Do nothing: attention is not recorded."""

    def _keep(self, block: int | None, y_BTD: Tensor) -> None:
        layout = self.model.layout
        patches_BPD = layout.patches_of(y_BTD)
        for name in self.names:
            if name == "cls":
                part = layout.mean_of(y_BTD.float(), "cls")
            else:
                part = patches_BPD.float().mean(1) if name == "patch_mean" else patches_BPD
            self.parts[name, block] = part.float().clone()


class RawPixels:
    """The pixels of the image as features: averaged to 16 × 16, or those of each of 16 × 16 patches.

    Args:
        kind: the kind of features.
        img_size: side of the transformed image, a multiple of 16.

    Raises:
        ValueError: for another size.
    """

    name = RAW_PIXELS
    untrained = False
    sources: tuple[str, ...] = ("pixels",)
    grid = (RAW_GRID, RAW_GRID)

    def __init__(self, kind: FeatureKind, img_size: int | tuple[int, int] | None) -> None:
        size = RAW_SIZE if img_size is None else img_size
        self.image_size = (size, size) if isinstance(size, int) else (size[0], size[1])
        if self.image_size[0] != self.image_size[1] or self.image_size[0] % RAW_GRID or self.image_size[0] < RAW_GRID:
            raise ValueError(f"{RAW_PIXELS} takes a square img_size that is a multiple of {RAW_GRID}, got {img_size}")
        self.kind = kind
        self.patch_size = self.image_size[0] // RAW_GRID
        config, resize = _resize_config(
            {
                "input_size": (3, *self.image_size),
                "mean": IMAGENET_DEFAULT_MEAN,
                "std": IMAGENET_DEFAULT_STD,
                "interpolation": "bicubic",
                "crop_pct": 1.0,
                "crop_mode": "center",
            },
            kind,
        )
        self.transform: Callable[[Image.Image], Tensor] = create_transform(**config, is_training=False)
        self.identity: dict[str, Any] = {
            "model": RAW_PIXELS,
            "transform": {key: str(value) for key, value in config.items()},
        }
        features = (
            f"the {self.patch_size}×{self.patch_size}×3 pixels of each of {RAW_GRID}×{RAW_GRID} patches"
            if kind == "patches"
            else f"pixels averaged to {RAW_GRID}×{RAW_GRID}×3"
        )
        self.protocol: dict[str, Any] = {
            "model": f"{RAW_PIXELS} (no model)",
            "frozen features": features,
            "images": resize,
        }

    def features(self, pixels_B3HW: Tensor) -> dict[str, Tensor]:
        """Return the pixels; see ``Backbone``."""
        if self.kind == "patches":
            return {"patches": functional.pixel_unshuffle(pixels_B3HW, self.patch_size).flatten(2).mT.contiguous()}
        return {"pixels": functional.adaptive_avg_pool2d(pixels_B3HW, RAW_GRID).flatten(1)}


def _resolve_blocks(blocks: Sequence[int] | None, count: int) -> list[int] | None:
    """Return block numbers from 0; negative ones count from the end."""
    if blocks is None:
        return None
    numbers = [block + count if block < 0 else block for block in blocks]
    if not numbers or any(not 0 <= number < count for number in numbers) or len(set(numbers)) < len(numbers):
        raise LookupError(f"expected different blocks of 0 to {count - 1}, at least one, got {list(blocks)}")
    return numbers


def _resize_config(config: dict[str, Any], kind: FeatureKind) -> tuple[dict[str, Any], str]:
    """Return timm's data config for a probe, and the resizing of images in words."""
    height, width = config["input_size"][-2:]
    config = {key: value for key, value in config.items() if key != "assumed"}
    if kind == "patches":
        # A crop would leave parts of the mask without features.
        config |= {"crop_pct": 1.0, "crop_mode": "squash"}
        return config, f"resized to {height}×{width} pixels without keeping the aspect ratio, {config['interpolation']}"
    modes = {"center": "centre crop", "squash": "aspect ratio not kept", "border": "border added"}
    mode = modes.get(config.get("crop_mode", "center"), str(config.get("crop_mode")))
    return config, f"{height}×{width} pixels, {mode} of {100 * config['crop_pct']:g} %, {config['interpolation']}"


def _dtype(module: nn.Module, x: Tensor) -> torch.dtype:
    weights = next(module.parameters(), None)
    return x.dtype if weights is None else weights.dtype
