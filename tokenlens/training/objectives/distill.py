"""Learn CLS and patch features of a frozen teacher: the cheapest way to a good small model."""

# Shapes: B images of a part of a batch, T tokens, P patches; C channels of an image, D of the student, E of the
# teacher; H height, W width.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, smooth_l1_loss
from torchvision import transforms
from torchvision.transforms import functional

from tokenlens.families.base import find_family
from tokenlens.training.objectives._device_cache import DeviceTeacher
from tokenlens.training.objectives._feature_cache import CachedTeacher
from tokenlens.training.objectives._frozen_teacher import FrozenTeacher, teacher_normalization
from tokenlens.training.objectives._ridge import Ridge
from tokenlens.training.objectives.base import Objective, Progress, Setting, TrainingBatch, Views, check_option
from tokenlens.training.seeds import seed_from


@dataclass(frozen=True)
class DistillOptions:
    """Options of ``distill``.

    Args:
        teacher: name of a model, as for ``tokenlens analyze``.
        teacher_checkpoint: file of its weights, instead of the published ones.
        teacher_image_size: pixels of the teacher's views. Best is a size at which its patch grid equals the student's
            (112 for patches of 14 pixels and a student of 64 with patches of 8); other grids are resampled bilinearly.
        cls_weight: weight of the loss of CLS; 0 for none.
        patch_weight: weight of the loss of the patches; 0 for none.
        loss: ``"cosine"``, 1 − cosine, or ``"smooth_l1"`` on features of which each channel is standardized over the
            training images (needs ``fit_heads``).
        head: ``"linear"`` or ``"mlp"``, from the student's channels to the teacher's; one for CLS, one for the patches.
        fit_heads: number of training images on which linear heads are fitted by ridge regression before training; 0
            for random heads. New random heads would push noise into weights that are good already.
        views: ``"crop"``, a random part of the image, or ``"flip"``, the largest square in its middle, for which the
            teacher's features can be cached; both mirrored with probability ½.
        crop_scale: smallest and largest share of the image's area that a crop covers.
        cache: folder for the teacher's features, with ``views="flip"``; ``"device"`` keeps them in the device's memory,
            for all trainings of one process. None computes them each time.

    Raises:
        ValueError: for a value out of range.
    """

    teacher: str = "vit_small_patch14_dinov2"
    teacher_checkpoint: str | None = None
    teacher_image_size: int = 224
    cls_weight: float = 1.0
    patch_weight: float = 1.0
    loss: Literal["cosine", "smooth_l1"] = "cosine"
    head: Literal["linear", "mlp"] = "linear"
    fit_heads: int = 0
    views: Literal["crop", "flip"] = "crop"
    crop_scale: tuple[float, float] = (0.3, 1.0)
    cache: str | None = None

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        for name, holds, expected in (
            ("teacher_image_size", self.teacher_image_size >= 1, "a number of pixels"),
            ("cls_weight", self.cls_weight >= 0, "at least 0"),
            ("patch_weight", self.patch_weight >= 0, "at least 0"),
            ("patch_weight", self.cls_weight + self.patch_weight > 0, "above 0 where cls_weight is 0"),
            ("loss", self.loss in ("cosine", "smooth_l1"), "cosine or smooth_l1"),
            ("head", self.head in ("linear", "mlp"), "linear or mlp"),
            ("fit_heads", self.fit_heads >= 0, "at least 0"),
            ("fit_heads", self.fit_heads == 0 or self.head == "linear", "0 where head is mlp"),
            ("fit_heads", self.fit_heads > 0 or self.loss == "cosine", "above 0 where loss is smooth_l1"),
            ("views", self.views in ("crop", "flip"), "crop or flip"),
            ("crop_scale", 0 < low <= high <= 1, "two shares of the area, in (0, 1], the smaller one first"),
            ("cache", self.cache is None or self.views == "flip", "none, or views='flip': no crop comes twice"),
        ):
            check_option(self, name, holds, expected)


@dataclass(frozen=True)
class _Preprocess:
    """Resize and normalize a square image for one of the two models."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return functional.normalize(functional.to_tensor(image), self.mean, self.std)


@dataclass(frozen=True)
class _SameViews:
    """The same part of an image for student and teacher, each at its size; one view if both take the same."""

    crop_scale: tuple[float, float] | None
    student: _Preprocess
    teacher: _Preprocess

    def __call__(self, image: Image.Image) -> list[Tensor]:
        if self.crop_scale is None:
            part = functional.center_crop(image, min(image.size))
        else:
            box = transforms.RandomResizedCrop.get_params(image, self.crop_scale, (3 / 4, 4 / 3))
            part = functional.crop(image, *box)
            if torch.rand(()) < 0.5:
                part = functional.hflip(part)
        both = [self.student(part)]
        return both if self.teacher == self.student else [*both, self.teacher(part)]


class Distill(Objective):
    """Distance between the student's tokens, after a head, and the teacher's at the same position.

    It is 1 − cosine, in [0, 2], or the smooth L1 distance of standardized channels, at least 0.

    The teacher's tokens are those after its last norm, each with mean 0 and variance 1 over its channels: without their
    common mean, which the cosine would reward. Registers and distillation tokens are ignored.

    Raises:
        LookupError, ValueError: for a teacher that cannot be loaded (as ``tokenlens.models.loading.load_model``), a
            model without CLS although ``cls_weight`` is above 0, or a cache without a hash of the images.
    """

    Options: ClassVar[type] = DistillOptions

    def __init__(self, backbone: nn.Module, options: DistillOptions, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        self.layout = find_family(backbone).layout(backbone, (setting.image_size, setting.image_size))
        teacher = FrozenTeacher(options.teacher, options.teacher_checkpoint, options.teacher_image_size)
        for whose, layout in (("student", self.layout), ("teacher", teacher.layout)):
            if options.cls_weight > 0 and not layout.has("cls"):
                raise ValueError(f"the {whose} has no CLS token to distill; set objective_options.cls_weight=0")
            side = setting.image_size if whose == "student" else options.teacher_image_size
            if options.patch_weight > 0 and (border := layout.border_note((side, side))):
                raise ValueError(
                    f"the patches of student and teacher must cover the whole image. The {whose}: {border}"
                )
        self.split_features = teacher.split
        self.cached: CachedTeacher | DeviceTeacher | None = None
        if options.cache is None:
            self.teacher = teacher
        else:
            if not setting.images or not setting.images_sha256:
                raise ValueError("a cache of features must know which images it is for: Setting.images, images_sha256")
            view = f"largest square in the middle, bicubic, {options.teacher_image_size} pixels"
            known = (teacher, setting.images, setting.images_sha256, view)
            if options.cache == "device":
                self.cached = DeviceTeacher(*known)
            else:
                self.cached = CachedTeacher(*known, folder=Path(options.cache).expanduser())
        width: Any = backbone.num_features
        # Not the seed itself: the backbone's first weights were drawn from that.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_from(setting.seed, 1))
            self.cls_head = _head(options.head, width, teacher.width) if options.cls_weight > 0 else None
            self.patch_head = _head(options.head, width, teacher.width) if options.patch_weight > 0 else None
        if options.loss == "smooth_l1":
            for part in self._heads:
                self.register_buffer(f"{part}_mean", torch.zeros(teacher.width))
                self.register_buffer(f"{part}_sd", torch.ones(teacher.width))

    @property
    def _heads(self) -> dict[str, nn.Module]:
        heads = {"cls": self.cls_head, "patch": self.patch_head}
        return {part: head for part, head in heads.items() if head is not None}

    @classmethod
    def has_fixed_views(cls, options: DistillOptions) -> bool:
        """Return whether views are whole images, which are mirrored later."""
        return options.views == "flip"

    @classmethod
    def views(cls, options: DistillOptions, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Views:
        """Return the student's view and the teacher's, or one if size and normalization are the same."""
        student = _Preprocess(image_size, tuple(mean), tuple(std))
        teacher_size = options.teacher_image_size
        teacher = _Preprocess(teacher_size, *teacher_normalization(options.teacher, teacher_size))
        return _SameViews(options.crop_scale if options.views == "crop" else None, student, teacher)

    @torch.no_grad()
    def prepare(self, samples: Callable[[int], Iterator[TrainingBatch]]) -> None:
        """Fit the heads by ridge regression from the student's features at the start to the teacher's.

        A cache on the device is filled first.
        """
        if isinstance(self.cached, DeviceTeacher):
            self.cached.fill(samples(self.setting.images), next(self.backbone.parameters()).device)
        if not self.options.fit_heads:
            return
        fits = {part: Ridge() for part in self._heads}
        self.backbone.eval()
        for batch in samples(self.options.fit_heads):
            here = batch.to(next(self.backbone.parameters()).device)
            for part, (student, taught) in self._features(
                here, torch.zeros(len(here.indices), dtype=torch.bool)
            ).items():
                fits[part].add(student.flatten(0, -2), taught.flatten(0, -2))
        self.backbone.train()
        for part, head in self._heads.items():
            weight, bias, mean, sd = fits[part].solve()
            if self.options.loss == "smooth_l1":
                self.get_buffer(f"{part}_mean").copy_(mean)
                self.get_buffer(f"{part}_sd").copy_(sd)
            else:
                weight, bias = weight * sd[:, None], bias * sd + mean
            head.get_parameter("weight").copy_(weight)
            head.get_parameter("bias").copy_(bias)

    def forward(self, batch: TrainingBatch, progress: Progress) -> dict[str, Tensor]:
        """Return ``loss``, and its parts ``cls`` and ``patch`` before weighting."""
        flipped_B = torch.zeros(len(batch.indices), dtype=torch.bool)
        if self.options.views == "flip":
            # By position in the whole batch, so that any number of processes mirrors the same images.
            draws = np.random.default_rng((progress.seed, progress.step)).random(batch.size) < 0.5
            flipped_B = torch.from_numpy(draws)[batch.positions.cpu()]
        features = self._features(batch, flipped_B)
        losses = {
            part: self._distance(part, head(features[part][0]), features[part][1]) for part, head in self._heads.items()
        }
        weights = {"cls": self.options.cls_weight, "patch": self.options.patch_weight}
        return {"loss": torch.stack([weights[part] * loss for part, loss in losses.items()]).sum(), **losses}

    def _features(self, batch: TrainingBatch, flipped_B: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the student's tokens and the teacher's features, (B, D) and (B, E) of CLS, (B, P, …) of patches."""
        student_view, teacher_view = _mirrored(batch.views[0], flipped_B), batch.views[-1]
        if self.cached is not None:
            features = self.cached.features(teacher_view, batch.indices, flipped_B)
        else:
            features = self.teacher(_mirrored(teacher_view, flipped_B))
        cls_BE, patch_BPE = self.split_features(features, self.layout.grid)
        backbone: Any = self.backbone
        tokens_BTD = backbone.forward_features(student_view)
        found = {}
        if self.patch_head is not None:
            found["patch"] = (self.layout.patches_of(tokens_BTD), patch_BPE)
        if self.cls_head is not None:
            assert cls_BE is not None
            found["cls"] = (self.layout.mean_of(tokens_BTD, "cls"), cls_BE)
        return found

    def _distance(self, part: str, found: Tensor, wanted: Tensor) -> Tensor:
        if self.options.loss == "cosine":
            return 1 - cosine_similarity(found.float(), wanted, dim=-1).mean()
        standardized = (wanted - self.get_buffer(f"{part}_mean")) / self.get_buffer(f"{part}_sd")
        return smooth_l1_loss(found.float(), standardized)


def _head(kind: str, width: int, wanted: int) -> nn.Module:
    return nn.Linear(width, wanted) if kind == "linear" else Mlp(width, wanted, wanted)


def _mirrored(images_BCHW: Tensor, flipped_B: Tensor) -> Tensor:
    if not flipped_B.any():
        return images_BCHW
    return torch.where(flipped_B.to(images_BCHW.device)[:, None, None, None], images_BCHW.flip(-1), images_BCHW)
