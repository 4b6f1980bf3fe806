"""DeiT-III: class labels with 3-Augment, Mixup, CutMix, and binary or softmax cross-entropy."""

# Shapes: B images of a part of a batch, C classes.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.transforms_factory import transforms_imagenet_train
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchvision import transforms

from tokenlens.training.objectives.base import (
    Objective,
    Progress,
    Setting,
    SingleView,
    TrainingBatch,
    Views,
    check_option,
)
from tokenlens.training.seeds import seed_from


@dataclass(frozen=True)
class SupervisedOptions:
    """Options of ``supervised``, with the defaults of DeiT-III for ImageNet-1k except ``bce_threshold``.

    Args:
        loss: ``"bce"``, binary cross-entropy for each class, or ``"ce"``, softmax cross-entropy.
        bce_threshold: targets above it become 1, the others 0, so that both classes of a mixed image count fully
            (DeiT-III's code: 0). None keeps the shares.
        smoothing: label smoothing, in [0, 1).
        mixup: alpha of Mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none. With both, each is applied in half of the steps.
        three_augment: grey, solarized or blurred images, a third of each.
        color_jitter: strength for brightness, contrast and saturation; 0 for none.
        crop: ``"resized"``, a random part of the image with a random aspect ratio; ``"simple"``, the whole short side,
            shifted by up to 4 pixels beyond the border (DeiT-III on ImageNet-22k).
        crop_scale: smallest and largest share of the image's area that a resized crop covers.
        flip: probability of mirroring.
        ema_decay: decay, in (0, 1), of a moving average of the weights, which is then the result. At step t it is at
            most 1 − (1 + t)^(−2/3). None for no average.

    Raises:
        ValueError: for a value out of range.
    """

    loss: Literal["bce", "ce"] = "bce"
    bce_threshold: float | None = None
    smoothing: float = 0.0
    mixup: float = 0.8
    cutmix: float = 1.0
    three_augment: bool = True
    color_jitter: float = 0.3
    crop: Literal["resized", "simple"] = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        for name, holds, expected in (
            ("loss", self.loss in ("bce", "ce"), "bce or ce"),
            ("crop", self.crop in ("resized", "simple"), "resized or simple"),
            ("smoothing", 0 <= self.smoothing < 1, "in [0, 1)"),
            ("mixup", self.mixup >= 0, "at least 0"),
            ("cutmix", self.cutmix >= 0, "at least 0"),
            ("color_jitter", self.color_jitter >= 0, "at least 0"),
            ("crop_scale", 0 < low <= high <= 1, "two shares of the area, in (0, 1], the smaller one first"),
            ("flip", 0 <= self.flip <= 1, "in [0, 1]"),
            ("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "in (0, 1), or none"),
            ("bce_threshold", self.bce_threshold is None or 0 <= self.bce_threshold < 1, "in [0, 1), or none"),
        ):
            check_option(self, name, holds, expected)

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0


class Supervised(Objective):
    """Cross-entropy between the classifier's outputs and the (mixed) labels; also ``accuracy`` if nothing is mixed.

    Touvron, Cord and Jégou, DeiT III: Revenge of the ViT, ECCV 2022. Image i of a batch is mixed with
    image size − 1 − i, by draws from (seed, step) that all parts of a step share: several processes train as one does.

    Raises:
        ValueError: for images with fewer than two classes, or an odd batch size with mixing.
    """

    Options: ClassVar[type] = SupervisedOptions
    labelled = True

    def __init__(self, backbone: nn.Module, options: SupervisedOptions, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        if len(setting.classes) < 2:
            raise ValueError(f"supervised training needs images of at least two classes, got {len(setting.classes)}")
        if options.mixes and setting.batch_size % 2:
            raise ValueError(
                f"Mixup and CutMix mix images two by two, so batch_size must be even, got {setting.batch_size}; "
                "objective_options.mixup=0 and objective_options.cutmix=0 turn mixing off"
            )
        binary = options.loss == "bce"
        self.criterion = BinaryCrossEntropy(0, options.bce_threshold) if binary else SoftTargetCrossEntropy()
        self.average: ModelEmaV3 | None = None
        if options.ema_decay is not None:
            self.average = ModelEmaV3(backbone, options.ema_decay, use_warmup=True)
            self.average.requires_grad_(False)

    @classmethod
    def classes(cls, options: SupervisedOptions, classes: tuple[str, ...]) -> int:
        """Return the number of classes of the images."""
        return len(classes)

    @classmethod
    def views(
        cls, options: SupervisedOptions, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Views:
        """Return one view: cropped, flipped, grey or solarized or blurred, jittered."""
        crop, colors, ready = transforms_imagenet_train(
            image_size,
            scale=options.crop_scale,
            hflip=options.flip,
            color_jitter=options.color_jitter,
            auto_augment="3a" if options.three_augment else None,
            interpolation="bicubic",
            mean=mean,
            std=std,
            separate=True,
        )
        if options.crop == "simple":  # timm has no crop with a margin of reflected pixels
            crop = transforms.Compose(
                [
                    transforms.Resize(image_size, transforms.InterpolationMode.BICUBIC),
                    transforms.RandomCrop(image_size, padding=4, padding_mode="reflect"),
                    transforms.RandomHorizontalFlip(options.flip),
                ]
            )
        return SingleView(transforms.Compose([crop, colors, ready]))

    def forward(self, batch: TrainingBatch, progress: Progress) -> dict[str, Tensor]:
        """Return ``loss``, and ``accuracy`` in [0, 1] if nothing is mixed."""
        [images] = batch.views
        assert batch.labels is not None
        classes, smoothing = len(self.setting.classes), self.options.smoothing
        if not self.options.mixes:
            logits_BC = self.backbone(images)
            loss = self.criterion(logits_BC, mixup_target(batch.labels, classes, smoothing=smoothing))
            return {"loss": loss, "accuracy": (logits_BC.argmax(-1) == batch.labels).float().mean()}
        mix = Mixup(self.options.mixup, self.options.cutmix, label_smoothing=smoothing, num_classes=classes)
        with _seed_numpy(progress.seed, progress.step):
            mixed, target_BC = mix(images.clone(), batch.labels)  # it mixes in place
        return {"loss": self.criterion(self.backbone(mixed), target_BC)}

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Update the moving average."""
        if self.average is not None:
            self.average.update(self.backbone, step=progress.step + 1)

    def result(self) -> nn.Module:
        """Return the moving average of the weights if there is one, else the backbone."""
        return self.backbone if self.average is None else self.average.module


@contextmanager
def _seed_numpy(*seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which timm's Mixup draws, and restore it on exit."""
    state = np.random.get_state()
    np.random.seed(seed_from(*seed))
    try:
        yield
    finally:
        np.random.set_state(state)
