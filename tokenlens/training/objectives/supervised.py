"""DeiT-III: class labels, 3-Augment, Mixup and CutMix, binary or softmax cross-entropy."""

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

from tokenlens.training.objectives._augment import SingleView
from tokenlens.training.objectives.base import Objective, Progress, Setting, TrainingBatch, Views
from tokenlens.training.seeds import seed_from


@dataclass(frozen=True)
class SupervisedOptions:
    """Of DeiT-III's recipe for ImageNet-1k, but for ``bce_threshold``.

    Args:
        loss: ``"bce"``, a yes or no for each class, or ``"ce"``, one class out of all.
        bce_threshold: targets above it become 1, the others 0, so that both classes of a mixed image count in full
            (DeiT-III's own code: 0). None keeps the shares.
        smoothing: of the labels, in [0, 1).
        mixup: alpha of Mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none. Where both are wanted, each has half of the steps.
        three_augment: one of grey, solarized and blurred, a third of the images each.
        color_jitter: of brightness, contrast and saturation; 0 for none.
        crop: ``"resized"``, a random part of the image, at a random aspect; ``"simple"``, the whole short side, moved
            by up to 4 pixels beyond the border (DeiT-III on ImageNet-22k).
        crop_scale: smallest and largest share of the area that a resized crop takes.
        flip: probability of the mirror image.
        ema_decay: of the moving average of the weights, in (0, 1), which is then the result; it is lower at the start,
            1 − (1 + t)^(−2/3) at step t as long as that is less. None for no average.

    Raises:
        ValueError: for a value that cannot be.
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
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {expected}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0


class Supervised(Objective):
    """Cross-entropy between the classifier and the (mixed) labels; ``accuracy`` beside it where nothing is mixed.

    Touvron, Cord and Jégou, DeiT III: Revenge of the ViT, ECCV 2022. An image is mixed with its mirror in the batch, by
    draws from (seed, step) that all parts of a step share, so that several processes train as one does.

    Raises:
        ValueError: for images without classes, and for an odd batch to be mixed.
    """

    Options: ClassVar[type] = SupervisedOptions
    labelled = True

    def __init__(self, backbone: nn.Module, options: SupervisedOptions, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        if len(setting.classes) < 2:
            raise ValueError(f"supervised training needs images of at least two classes, got {len(setting.classes)}")
        if options.mixes and setting.batch_size % 2:
            raise ValueError(
                f"Mixup and CutMix mix images in pairs, so batch_size must be even, got {setting.batch_size}; "
                "objective_options.mixup=0 and objective_options.cutmix=0 mix nothing"
            )
        yes_or_no = options.loss == "bce"
        self.criterion = BinaryCrossEntropy(0, options.bce_threshold) if yes_or_no else SoftTargetCrossEntropy()
        self.average: ModelEmaV3 | None = None
        if options.ema_decay is not None:
            self.average = ModelEmaV3(backbone, options.ema_decay, use_warmup=True)
            self.average.requires_grad_(False)

    @classmethod
    def classes(cls, options: SupervisedOptions, classes: tuple[str, ...]) -> int:
        """As many as the images have."""
        return len(classes)

    @classmethod
    def views(
        cls, options: SupervisedOptions, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Views:
        """One view: cropped, flipped, grey or solarized or blurred, jittered."""
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
        if options.crop == "simple":  # timm has none with a margin of reflected pixels
            crop = transforms.Compose(
                [
                    transforms.Resize(image_size, transforms.InterpolationMode.BICUBIC),
                    transforms.RandomCrop(image_size, padding=4, padding_mode="reflect"),
                    transforms.RandomHorizontalFlip(options.flip),
                ]
            )
        return SingleView(transforms.Compose([crop, colors, ready]))

    def forward(self, batch: TrainingBatch, progress: Progress) -> dict[str, Tensor]:
        """``loss``, and ``accuracy`` in [0, 1] where nothing is mixed."""
        [images] = batch.views
        assert batch.labels is not None
        classes, smoothing = len(self.setting.classes), self.options.smoothing
        if not self.options.mixes:
            logits_BC = self.backbone(images)
            loss = self.criterion(logits_BC, mixup_target(batch.labels, classes, smoothing=smoothing))
            return {"loss": loss, "accuracy": (logits_BC.argmax(-1) == batch.labels).float().mean()}
        mix = Mixup(self.options.mixup, self.options.cutmix, label_smoothing=smoothing, num_classes=classes)
        with _numpy_seeded(progress.seed, progress.step):
            mixed, target_BC = mix(images.clone(), batch.labels)  # it mixes in place
        return {"loss": self.criterion(self.backbone(mixed), target_BC)}

    @torch.no_grad()
    def after_step(self, progress: Progress) -> None:
        """Move the average."""
        if self.average is not None:
            self.average.update(self.backbone, step=progress.step + 1)

    def result(self) -> nn.Module:
        """The average of the weights where there is one."""
        return self.backbone if self.average is None else self.average.module


@contextmanager
def _numpy_seeded(*seed: int) -> Iterator[None]:
    """timm's Mixup draws from numpy's global generator."""
    state = np.random.get_state()
    np.random.seed(seed_from(*seed))
    try:
        yield
    finally:
        np.random.set_state(state)
