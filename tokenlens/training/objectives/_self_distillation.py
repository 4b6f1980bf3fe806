"""What ``dino`` and ``dinov2`` share: crops of two sizes, tokens by layout, and a teacher that follows the student."""

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

from tokenlens.families.base import Family, as_pair, find_family
from tokenlens.training.objectives._masking import masked_patches
from tokenlens.training.objectives.base import Objective, Progress, Setting, Views
from tokenlens.training.seeds import seed_from

GLOBAL_CROPS = 2
"""Both go through teacher and student; the local crops only through the student."""


@dataclass(frozen=True)
class SelfDistillationOptions:
    """Options of ``dino`` and ``dinov2``; the defaults are those of 224 pixels and large data.

    Args:
        local_crops: of one image, beside the two global ones.
        local_size: their pixels.
        global_scale: smallest and largest share of the image's area that a global crop covers.
        local_scale: the same for a local crop.
        blur: smallest and largest standard deviation of the Gaussian blur, in pixels; the first global crop is always
            blurred, the second in 10 %, a local one in 50 % of the cases.
        prototypes: outputs of a head.
        hidden: width of the two hidden maps of a head.
        bottleneck: width before the prototypes.
        student_temperature: divides the student's outputs.
        teacher_temperature_start: divides the teacher's at the first step,
        teacher_temperature: and after a linear rise over
        teacher_temperature_warmup: this share of the steps.
        momentum: of the teacher at the first step; a cosine takes it to 1.
        last_layer_held: epochs at the start in which the prototypes do not move.

    Raises:
        ValueError: for a value that cannot be.
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
        self._must("local_crops", self.local_crops >= 0, "at least 0")
        for name in ("local_size", "hidden", "bottleneck"):
            self._must(name, getattr(self, name) >= 1, "at least 1")
        self._must("prototypes", self.prototypes >= 2, "at least 2")
        for name in ("global_scale", "local_scale"):
            self._must_be_range(name, 1.0)
        self._must_be_range("blur", float("inf"))
        self._must("student_temperature", self.student_temperature > 0, "above 0")
        self._must(
            "teacher_temperature_start",
            0 < self.teacher_temperature_start <= self.teacher_temperature,
            f"above 0 and at most teacher_temperature={self.teacher_temperature}",
        )
        for name in ("teacher_temperature_warmup", "momentum"):
            self._must(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._must("last_layer_held", self.last_layer_held >= 0, "at least 0")

    def _must(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r}: expected {expected}")

    def _must_be_range(self, name: str, top: float) -> None:
        values = getattr(self, name)
        holds = len(values) == 2 and 0 < values[0] <= values[1] <= top
        self._must(name, holds, f"two numbers, the first above 0 and not above the second, the second at most {top:g}")


class SelfDistillation(Objective):
    """A student that learns to say of every crop of an image what its teacher says of another, global crop.

    The student is the backbone with ``heads``. The teacher (``teacher`` with ``teacher_heads``) starts as its copy and
    is its moving average from then on, always without stochastic depth and dropout. Where an objective compares the
    images of a batch with each other (a centre, Sinkhorn–Knopp, KoLeo), it takes those of all processes, so that N
    processes compute what one would; of accumulated parts each is taken for itself.

    Args:
        backbone: a ViT of timm with a CLS token whose final norm covers all tokens. For crops that are not of its own
            image size it must be made with ``dynamic_img_size=True``.

    Raises:
        ValueError: for a backbone that does not take the crops, has no CLS token, or normalizes only after pooling.
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
        """Two global crops, then the local ones, with the augmentation of DINO (and DINOv2)."""
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
        """Heads of the student and of the teacher, the same at the start, from the recipe's seed."""
        self.heads, self.teacher_heads = nn.ModuleDict(), nn.ModuleDict()
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # lightly's heads use PyTorch's older weight_norm.
            warnings.filterwarnings("ignore", r".*weight_norm` is deprecated", FutureWarning)
            # Not the seed itself: the backbone's first weights were drawn from that.
            torch.manual_seed(seed_from(self.setting.seed, 1))
            for name in names:
                self.heads[name], self.teacher_heads[name] = make(), make()
        self.teacher_heads.load_state_dict(self.heads.state_dict())
        deactivate_requires_grad(self.teacher_heads)

    def train(self, mode: bool = True) -> SelfDistillation:
        """The student; the teacher always stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def tokens(
        self, model: nn.Module, images_NCHW: Tensor, masks_NP: Tensor | None = None, mask_token_D: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """CLS (N, D) and patches (N, P, D) after the final norm, of the backbone or of the teacher.

        Where ``masks_NP`` is true, the mask token takes the place of the patch.
        """
        timm_model: Any = model
        layout = self.family.layout(model, as_pair(images_NCHW.shape[-2:]))
        masking = (
            nullcontext()
            if masks_NP is None or mask_token_D is None
            else masked_patches(timm_model.patch_embed, masks_NP, mask_token_D)
        )
        with masking:
            tokens_NTD = timm_model.forward_features(images_NCHW)
        layout.check(tokens_NTD.shape[1])
        return tokens_NTD[:, layout.positions("cls")[0]], layout.patches_of(tokens_NTD)

    def teacher_temperature(self, progress: Progress) -> float:
        """Of this step."""
        options = self.options
        return linear_warmup_schedule(
            progress.step,
            round(options.teacher_temperature_warmup * progress.steps),
            options.teacher_temperature_start,
            options.teacher_temperature,
        )

    def after_backward(self, progress: Progress) -> None:
        """Hold the prototypes still in the first epochs: without a gradient the optimizer leaves them as they are."""
        if progress.epoch < self.options.last_layer_held:
            for name, parameter in self.heads.named_parameters():
                if ".last_layer." in name:
                    parameter.grad = None

    def after_step(self, progress: Progress) -> None:
        """Move the teacher towards the student; element by element, so it works on sharded parameters, too."""
        momentum = cosine_schedule(progress.step, progress.steps, self.options.momentum, 1.0)
        update_momentum(self.backbone, self.teacher, momentum)
        update_momentum(self.heads, self.teacher_heads, momentum)

    def result(self) -> nn.Module:
        """The teacher's backbone, which DINO and DINOv2 evaluate, too."""
        return self.teacher


def in_float32(x: Tensor) -> Tensor:
    """At least float32: losses over many prototypes are not computed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _family_for(backbone: Any, sizes: dict[str, int]) -> Family:
    """The backbone's family, when its tokens can be had and crops of these sizes go through it."""
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
        own = as_pair(backbone.patch_embed.img_size)
        if own != (size, size) and not getattr(backbone, "dynamic_img_size", False):
            raise ValueError(
                f"{name} crops have {size}×{size} pixels, but this {kind} takes {own[0]}×{own[1]} only; create it with "
                f"dynamic_img_size=True (model_options), or choose {name} crops of its size"
            )
        try:
            layout = family.layout(backbone, (size, size))
        except ValueError as error:
            raise ValueError(f"{name} crops do not go through the backbone: {error}") from error
        if not layout.has("cls"):
            raise ValueError(f"self-distillation needs a CLS token, this {kind} has {', '.join(layout.groups)} only")
    return family
