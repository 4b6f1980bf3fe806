"""A trained, frozen model whose features a student learns."""

# Shapes: B images, F kept tokens (CLS where there is one, then the patches), P patches, D channels, H height, W width.

from __future__ import annotations

from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm

from tokenlens.models import LoadedModel, create_meta_model, load_model


def teacher_normalization(name: str, image_size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel for normalizing a model's images; loads no weights.

    Raises:
        LookupError, ValueError: as ``tokenlens.models.loading.load_model``.
    """
    config = resolve_data_config({}, model=create_meta_model(name, img_size=image_size))
    return tuple(config["mean"]), tuple(config["std"])


class FrozenTeacher(nn.Module):
    """A model by name with its trained weights, always in eval mode and without gradients.

    Args:
        name: name of a model, as for ``tokenlens analyze``.
        checkpoint: file of weights to use instead of the published ones.
        image_size: pixels of its images.

    Raises:
        LookupError, ValueError: as ``tokenlens.models.loading.load_model``.
    """

    def __init__(self, name: str, checkpoint: str | None, image_size: int) -> None:
        super().__init__()
        loaded: LoadedModel = load_model(name, checkpoint=checkpoint, img_size=image_size, device="cpu")
        module: Any = loaded.module.requires_grad_(False)
        self.model = module
        self.layout = loaded.family.layout(module, loaded.image_size)
        self.width = int(module.num_features)
        self.has_cls = self.layout.has("cls")
        self.identity = {
            "name": type(module).__qualname__,
            "sha256": loaded.weights["sha256"],
            "image_size": image_size,
            "grid": list(self.layout.grid),
            "prefix": list(self.layout.prefix),
            "mean": list(loaded.data_config["mean"]),
            "std": list(loaded.data_config["std"]),
        }
        """Everything that the features of an image depend on."""
        self.eval()

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Shape (F, D) of the features of one image."""
        return (int(self.has_cls) + self.layout.patches, self.width)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode, whatever the mode of the training."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return tokens after the last norm, each with mean 0 and variance 1 over its channels, (B, F, D) float32."""
        model: Any = self.model
        tokens_BTD = model.forward_features(images).float()
        self.layout.check(tokens_BTD.shape[1])
        kept = [self.layout.patches_of(tokens_BTD)]
        if self.has_cls:
            kept.insert(0, self.layout.mean_of(tokens_BTD, "cls").unsqueeze(1))
        features_BFD = torch.cat(kept, 1)
        return layer_norm(features_BFD, features_BFD.shape[-1:])

    def split(self, features_BFD: Tensor, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor]:
        """Return CLS (B, D), None without one, and the patches (B, P, D), resampled bilinearly to another grid."""
        cls_BD = features_BFD[:, 0] if self.has_cls else None
        patch_BPD = features_BFD[:, int(self.has_cls) :]
        if grid != self.layout.grid:
            patch_BDHW = patch_BPD.transpose(1, 2).unflatten(2, self.layout.grid)
            patch_BDHW = interpolate(patch_BDHW, grid, mode="bilinear", antialias=True)
            patch_BPD = patch_BDHW.flatten(2).transpose(1, 2)
        return cls_BD, patch_BPD
