"""The base of ``dino`` and ``dinov2``: crops of two sizes, tokens by layout, and a moving-average teacher."""

# Shapes: B images of a part, N crops of one size (crop v of image b is row v·B + b), C channels of an image, H height,
# W width, T tokens, P patches, D channels of a token.

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.dino_transform import DINOTransform
from lightly.utils.scheduler import cosine_schedule, linear_warmup_schedule
from torch import Tensor, nn

from tokenlens.families.base import Family, as_height_width, find_family
from tokenlens.training.objectives._masking import masked_patches
from tokenlens.training.objectives.base import Objective, Progress, Setting, Views, check_option
from tokenlens.training.seeds import seed_from

GLOBAL_CROPS = 2
"""They pass through teacher and student, the local crops through the student only."""


@dataclass(frozen=True)
class SelfDistillationOptions:
    """Options of ``dino`` and ``dinov2``, with defaults for 224 pixels and large data.

    Args:
        local_crops: number of local crops of an image, in addition to the two global ones.
        local_size: pixels of a local crop.
        global_scale: smallest and largest share of the image's area that a global crop covers.
        local_scale: the same for a local crop.
        blur: smallest and largest standard deviation of the Gaussian blur, in pixels. The first global crop is always
            blurred, the second with probability 0.1, a local one with probability 0.5.
        prototypes: outputs of a head.
        hidden: width of the two hidden layers of a head.
        bottleneck: width before the prototypes.
        student_temperature: divisor of the student's outputs.
        teacher_temperature_start: divisor of the teacher's outputs at the first step.
        teacher_temperature: their divisor after a linear warmup.
        teacher_temperature_warmup: length of that warmup, as a share of the steps.
        momentum: momentum of the teacher at the first step; it rises to 1 as half a cosine.
        last_layer_held: epochs at the start in which the prototypes are frozen.

    Raises:
        ValueError: for a value out of range.
    """

    local_crops: int = 8
    local_size: int = 96
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    blur: tuple[float, float] = (0.1, 2.0)
    prototypes: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    student_temperature: float = 0.1
    teacher_temperature_start: float = 0.04
    teacher_temperature: float = 0.07
    teacher_temperature_warmup: float = 0.3
    momentum: float = 0.996
    last_layer_held: float = 1.0

    def __post_init__(self) -> None:
        check_option(self, "local_crops", self.local_crops >= 0, "at least 0")
        for name in ("local_size", "hidden", "bottleneck"):
            check_option(self, name, getattr(self, name) >= 1, "at least 1")
        check_option(self, "prototypes", self.prototypes >= 2, "at least 2")
        for name in ("global_scale", "local_scale"):
            self._check_range(name, 1.0)
        self._check_range("blur", float("inf"))
        check_option(self, "student_temperature", self.student_temperature > 0, "above 0")
        check_option(
            self,
            "teacher_temperature_start",
            0 < self.teacher_temperature_start <= self.teacher_temperature,
            f"above 0 and at most teacher_temperature={self.teacher_temperature}",
        )
        for name in ("teacher_temperature_warmup", "momentum"):
            check_option(self, name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        check_option(self, "last_layer_held", self.last_layer_held >= 0, "at least 0")

    def _check_range(self, name: str, top: float) -> None:
        values = getattr(self, name)
        holds = len(values) == 2 and 0 < values[0] <= values[1] <= top
        check_option(
            self, name, holds, f"two numbers, the first above 0 and not above the second, the second at most {top:g}"
        )


class SelfDistillation(Objective):
    """A student that learns to predict, from every crop of an image, the teacher's output for another, global crop.

    The student is the backbone with ``heads``. The teacher (``teacher`` with ``teacher_heads``) starts as a copy and
    then follows as a moving average, always without stochastic depth and dropout. Where images of a batch are compared
    (centre, Sinkhorn–Knopp, KoLeo), those of all processes are used, so that N processes compute what one would; with
    accumulation each part is treated separately.

    Args:
        backbone: a ViT of timm with a CLS token and a final norm on all tokens. For crops of another size than its
            image size it must be made with ``dynamic_img_size=True``.

    Raises:
        ValueError: for a backbone that does not accept the crops, has no CLS token, or normalizes only after pooling.
        LookupError: for a backbone that belongs to no family.
    """

    Options = SelfDistillationOptions
    options: SelfDistillationOptions
    heads: nn.ModuleDict
    teacher_heads: nn.ModuleDict

    def __init__(self, backbone: nn.Module, options: SelfDistillationOptions, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        sizes = {"global": setting.image_size, "local": options.local_size}
        if not options.local_crops:
            del sizes["local"]
        self.family = _family_for(backbone, sizes)
        # A copy, because the backbone may be specialized and may have been loaded from a checkpoint.
        self.teacher = copy.deepcopy(backbone)
        deactivate_requires_grad(self.teacher)

    @classmethod
    def views(cls, options: Any, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Views:
        """Return two global crops, then the local ones, with the augmentation of DINO and DINOv2."""
        transform = DINOTransform(
            global_crop_size=image_size,
            global_crop_scale=tuple(options.global_scale),
            local_crop_size=options.local_size,
            local_crop_scale=tuple(options.local_scale),
            n_local_views=options.local_crops,
            sigmas=tuple(options.blur),
            normalize={"mean": list(mean), "std": list(std)},
        )
        return cast(Views, transform)

    def add_heads(self, make: Callable[[], nn.Module], *names: str) -> None:
        """Create heads of student and teacher, equal at the start, from the recipe's seed."""
        self.heads, self.teacher_heads = nn.ModuleDict(), nn.ModuleDict()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # lightly's heads use PyTorch's deprecated weight_norm.
            warnings.filterwarnings("ignore", r".*weight_norm` is deprecated", FutureWarning)
            # Not the seed itself: the backbone's first weights were drawn from that.
            torch.manual_seed(seed_from(self.setting.seed, 1))
            for name in names:
                self.heads[name], self.teacher_heads[name] = make(), make()
        self.teacher_heads.load_state_dict(self.heads.state_dict())
        deactivate_requires_grad(self.teacher_heads)

    def train(self, mode: bool = True) -> SelfDistillation:
        """Set the mode of the student; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def tokens(
        self, model: nn.Module, images_NCHW: Tensor, masks_NP: Tensor | None = None, mask_token_D: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return CLS (N, D) and patches (N, P, D) after the final norm, of the backbone or the teacher.

        Patches are replaced by the mask token where ``masks_NP`` is true.
        """
        timm_model: Any = model
        layout = self.family.layout(model, as_height_width(images_NCHW.shape[-2:]))
        masking = (
            nullcontext()
            if masks_NP is None or mask_token_D is None
            else masked_patches(timm_model.patch_embed, masks_NP, mask_token_D)
        )
        with masking:
            tokens_NTD = timm_model.forward_features(images_NCHW)
        layout.check(tokens_NTD.shape[1])
        return layout.mean_of(tokens_NTD, "cls"), layout.patches_of(tokens_NTD)

    def teacher_temperature(self, progress: Progress) -> float:
        """Return the teacher's temperature at a step."""
        options = self.options
        return linear_warmup_schedule(
            progress.step,
            round(options.teacher_temperature_warmup * progress.steps),
            options.teacher_temperature_start,
            options.teacher_temperature,
        )

    def after_backward(self, progress: Progress) -> None:
        """Freeze the prototypes in the first epochs: the optimizer skips parameters without a gradient."""
        if progress.epoch < self.options.last_layer_held:
            for name, parameter in self.heads.named_parameters():
                if ".last_layer." in name:
                    parameter.grad = None

    def after_step(self, progress: Progress) -> None:
        """Move the teacher towards the student, element by element, so that sharded parameters work too."""
        momentum = cosine_schedule(progress.step, progress.steps, self.options.momentum, 1.0)
        update_momentum(self.backbone, self.teacher, momentum)
        update_momentum(self.heads, self.teacher_heads, momentum)

    def result(self) -> nn.Module:
        """Return the teacher's backbone, which is also the one that DINO and DINOv2 evaluate."""
        return self.teacher


def in_float32(x: Tensor) -> Tensor:
    """Return a tensor in at least float32: losses over many prototypes need more than half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _family_for(backbone: Any, sizes: dict[str, int]) -> Family:
    """Return the backbone's family, after checking that it has the tokens and accepts crops of these sizes."""
    family = find_family(backbone)
    kind = type(backbone).__qualname__
    if not hasattr(backbone, "forward_features") or not hasattr(backbone, "patch_embed"):
        raise ValueError(f"self-distillation needs a ViT of timm as backbone, got a {kind}")
    if family.final_norm(backbone) is None:
        raise ValueError(
            f"this {kind} normalizes only after pooling, self-distillation needs CLS and patches after a final norm; "
            "create it with global_pool='token'"
        )
    for name, size in sizes.items():
        native = as_height_width(backbone.patch_embed.img_size)
        if native != (size, size) and not getattr(backbone, "dynamic_img_size", False):
            raise ValueError(
                f"{name} crops have {size}×{size} pixels, but this {kind} takes {native[0]}×{native[1]} only; create "
                f"it with dynamic_img_size=True (model_options), or choose {name} crops of its size"
            )
        try:
            layout = family.layout(backbone, (size, size))
        except ValueError as error:
            raise ValueError(f"{name} crops do not go through the backbone: {error}") from error
        if not layout.has("cls"):
            raise ValueError(f"self-distillation needs a CLS token, this {kind} has {', '.join(layout.groups)} only")
    return family
