"""DINO: CLS of every crop predicts what a moving-average teacher says of another, global crop (arXiv 2104.14294)."""

# Shapes: B images of a part, N crops, V crops of an image, D channels of a token, K prototypes.

from __future__ import annotations

from dataclasses import dataclass

import torch
from lightly.loss.dino_loss import DINOLoss
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor, nn

from tokenlens.training.objectives._self_distillation import (
    GLOBAL_CROPS,
    SelfDistillation,
    SelfDistillationOptions,
    in_float32,
)
from tokenlens.training.objectives.base import Progress, Setting, TrainingBatch


@dataclass(frozen=True)
class DINOOptions(SelfDistillationOptions):
    """Options of ``dino``: those of self-distillation, with DINO's defaults."""


class DINO(SelfDistillation):
    """Cross-entropy of the teacher's centred, sharpened assignment of a crop's CLS and the student's of another crop.

    Means over images and over all pairs of a global crop and another crop. The centre follows the mean of the
    teacher's outputs of all processes with momentum 0.9; with accumulation it moves at every part.
    """

    Options = DINOOptions
    options: DINOOptions

    def __init__(self, backbone: nn.Module, options: DINOOptions, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.add_heads(lambda: DINOProjectionHead(width, options.hidden, options.bottleneck, options.prototypes), "cls")
        self.dino_loss = DINOLoss(options.prototypes, student_temp=options.student_temperature, center_momentum=0.9)

    def forward(self, batch: TrainingBatch, progress: Progress) -> dict[str, Tensor]:
        """``loss``, in nats; log K where everything is assigned everywhere."""
        sizes = [torch.cat(crops) for crops in (batch.views[:GLOBAL_CROPS], batch.views[GLOBAL_CROPS:]) if crops]
        with torch.no_grad():
            taught_NK = self.teacher_heads["cls"](self.tokens(self.teacher, sizes[0])[0])
        cls_ND = torch.cat([self.tokens(self.backbone, crops)[0] for crops in sizes])
        said_NK = self.heads["cls"](cls_ND)
        with torch.autocast(said_NK.device.type, enabled=False):
            loss = self.dino_loss(
                list(in_float32(taught_NK).chunk(GLOBAL_CROPS)),
                list(in_float32(said_NK).chunk(len(batch.views))),
                teacher_temp=self.teacher_temperature(progress),
            )
        return {"loss": loss}
