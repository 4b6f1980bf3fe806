"""DINOv2: DINO on CLS, iBOT on masked patches, KoLeo between images, Sinkhorn–Knopp centring (arXiv 2304.07193)."""

# Shapes: B images of a part, N = 2·B global crops (crop v of image b is row v·B + b), S crops of an image in all, P
# patches, h and w rows and columns of the patch grid, M masked patches of all global crops, D channels, K prototypes.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from lightly.loss.koleo_loss import KoLeoLoss
from lightly.models.modules.heads import DINOv2ProjectionHead
from lightly.utils.dist import gather, world_size
from torch import Tensor, nn

from tokenlens.training.objectives._centring import Centring
from tokenlens.training.objectives._masking import block_masks
from tokenlens.training.objectives._self_distillation import (
    GLOBAL_CROPS,
    SelfDistillation,
    SelfDistillationOptions,
    in_float32,
)
from tokenlens.training.objectives.base import Progress, Setting, TrainingBatch, check_option


@dataclass(frozen=True)
class DINOv2Options(SelfDistillationOptions):
    """Options of ``dinov2``, in addition to those of self-distillation.

    Args:
        ibot: weight of the loss of masked patches.
        koleo: weight of KoLeo, summed over the two global crops.
        tie_heads: whether patches share the head of CLS.
        centring: ``"sinkhorn"``, or ``"centre"`` as in DINO, for the teacher's outputs.
        masked_crops: share of the global crops that are masked for the student.
        mask_ratio: smallest and largest share of masked patches in such a crop.

    Raises:
        ValueError: for a value out of range.
    """

    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    momentum: float = 0.992
    ibot: float = 1.0
    koleo: float = 0.1
    tie_heads: bool = False
    centring: Literal["sinkhorn", "centre"] = "sinkhorn"
    masked_crops: float = 0.5
    mask_ratio: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ibot", "koleo"):
            check_option(self, name, getattr(self, name) >= 0, "at least 0")
        check_option(self, "centring", self.centring in ("sinkhorn", "centre"), "one of sinkhorn, centre")
        check_option(self, "masked_crops", 0 <= self.masked_crops <= 1, "in [0, 1]")
        self._check_range("mask_ratio", 1.0)


class DINOv2(SelfDistillation):
    """The sum of three losses, each a mean over images.

    ``dino``: as in the objective of that name. ``ibot``: cross-entropy between the teacher's assignment of a patch and
    that of the student, which sees a mask token there; mean over the masked patches of a crop, then over all global
    crops. ``koleo``: −log of the distance to the nearest other CLS of the batch before the heads, which keeps images
    apart; summed over the two global crops.

    Sinkhorn–Knopp, the centre and KoLeo's neighbours use the images of all processes. (The authors' code looks for
    neighbours among the images of one GPU; the loss then depends on the number of GPUs.) With accumulation each part
    is treated separately.
    """

    Options = DINOv2Options
    options: DINOv2Options

    def __init__(self, backbone: nn.Module, options: DINOv2Options, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        width = int(backbone.num_features)  # type: ignore[arg-type]
        groups = ("cls",) if options.tie_heads else ("cls", "patch")
        self.add_heads(
            lambda: DINOv2ProjectionHead(width, options.hidden, options.bottleneck, options.prototypes), *groups
        )
        self.patch_head = groups[-1]
        # Two centres even with one head: CLS and patches have different means.
        self.centring = nn.ModuleDict(
            {group: Centring(options.prototypes, options.centring) for group in ("cls", "patch")}
        )
        self.mask_token_D = nn.Parameter(torch.zeros(width))
        self.koleo = KoLeoLoss()

    def forward(self, batch: TrainingBatch, progress: Progress) -> dict[str, Tensor]:
        """Return ``loss`` = ``dino`` + ibot · ``ibot`` + koleo · ``koleo``, and the three parts."""
        options, temperature = self.options, self.teacher_temperature(progress)
        images_NCHW = torch.cat(batch.views[:GLOBAL_CROPS])
        masks_NP = self.masks(batch, progress)
        # On the CPU, where the masks are drawn; on a GPU this would wait for the device.
        masked_M = masks_NP.flatten().nonzero()[:, 0]
        weight_M = (1 / masks_NP.sum(1).clamp(min=1)).repeat_interleave(masks_NP.sum(1))
        masks_NP, masked_M, weight_M = (x.to(images_NCHW.device) for x in (masks_NP, masked_M, weight_M))

        with torch.no_grad():
            cls_ND, patches_NPD = self.tokens(self.teacher, images_NCHW)
            teacher_NK = self.teacher_heads["cls"](cls_ND)
            teacher_MK = self.teacher_heads[self.patch_head](patches_NPD.flatten(0, 1)[masked_M])
            with torch.autocast(teacher_NK.device.type, enabled=False):
                teacher_NK = self.centring["cls"](in_float32(teacher_NK), temperature)
                teacher_MK = self.centring["patch"](in_float32(teacher_MK), temperature)

        cls_ND, patches_NPD = self.tokens(self.backbone, images_NCHW, masks_NP, self.mask_token_D)
        all_cls_ND = cls_ND
        if len(batch.views) > GLOBAL_CROPS:
            local_ND, _ = self.tokens(self.backbone, torch.cat(batch.views[GLOBAL_CROPS:]))
            all_cls_ND = torch.cat([cls_ND, local_ND])
        student_NK = self.heads["cls"](all_cls_ND)
        student_MK = self.heads[self.patch_head](patches_NPD.flatten(0, 1)[masked_M])

        with torch.autocast(student_NK.device.type, enabled=False):
            student_NK, student_MK = (
                (in_float32(outputs) / options.student_temperature).log_softmax(-1)
                for outputs in (student_NK, student_MK)
            )
            dino = cls_loss(
                torch.stack(teacher_NK.chunk(GLOBAL_CROPS)), torch.stack(student_NK.chunk(len(batch.views)))
            )
            ibot = patch_loss(teacher_MK, student_MK, weight_M, len(masks_NP))
            koleo = sum((self._koleo(in_float32(crop)) for crop in cls_ND.chunk(GLOBAL_CROPS)), cls_ND.new_zeros(()))
            loss = dino + options.ibot * ibot + options.koleo * koleo
        return {"loss": loss, "dino": dino, "ibot": ibot, "koleo": koleo}

    def masks(self, batch: TrainingBatch, progress: Progress) -> Tensor:
        """Return masks (N, P) of a part's global crops, on the CPU; they do not depend on the number of processes."""
        grid = self.family.layout(self.backbone, (self.setting.image_size, self.setting.image_size)).grid
        positions = batch.positions.tolist()
        rows = [crop * batch.size + position for crop in range(GLOBAL_CROPS) for position in positions]
        masks_Nhw = block_masks(
            rows,
            GLOBAL_CROPS * batch.size,
            grid,
            self.options.masked_crops,
            self.options.mask_ratio,
            (progress.seed, progress.step),
        )
        return masks_Nhw.flatten(1)

    def _koleo(self, cls_BD: Tensor) -> Tensor:
        if world_size() > 1:
            cls_BD = torch.cat(gather(cls_BD.contiguous()))
        koleo: Tensor = self.koleo(cls_BD)
        return koleo


def cls_loss(teacher_VBK: Tensor, student_SBK: Tensor) -> Tensor:
    """Return the cross-entropy of the teacher's assignments and the student's log-assignments, in nats.

    Mean over images and over all combinations of a teacher's crop and another crop of the student; the first V of the
    student's S crops are the teacher's. Equals lightly's ``DINOLoss``, which centres the teacher itself.
    """
    crops_VS = -torch.einsum("vbk,sbk->vs", teacher_VBK, student_SBK) / teacher_VBK.shape[1]
    same_VS = torch.eye(*crops_VS.shape, dtype=torch.bool, device=crops_VS.device)
    return crops_VS.masked_fill(same_VS, 0).sum() / (crops_VS.numel() - len(crops_VS))


def patch_loss(teacher_MK: Tensor, student_MK: Tensor, weight_M: Tensor, crops: int) -> Tensor:
    """Return the weighted cross-entropy of masked patches, in nats, divided by the number of crops, masked or not.

    With weight 1 / (masked patches of the crop) it equals lightly's ``IBOTPatchLoss``, which centres by itself.
    """
    return -((teacher_MK * student_MK).sum(-1) * weight_M).sum() / crops
