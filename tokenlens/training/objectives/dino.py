"""DINO: CLS of every crop predicts a moving-average teacher's output for another, global crop (arXiv 2104.14294)."""

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
    """Options of ``dino``."""


class DINO(SelfDistillation):
    """Cross-entropy between the teacher's centred, sharpened assignment of one crop's CLS and the student's of another.

    The loss is a mean over images and over all combinations of a global crop and another crop. The centre follows the
    mean of the teacher's outputs, over all processes, with momentum 0.9; with accumulation it moves at every part.
    """

    Options = DINOOptions
    options: DINOOptions

    def __init__(self, backbone: nn.Module, options: DINOOptions, setting: Setting) -> None:
        super().__init__(backbone, options, setting)
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.add_heads(lambda: DINOProjectionHead(width, options.hidden, options.bottleneck, options.prototypes), "cls")
        self.dino_loss = DINOLoss(options.prototypes, student_temp=options.student_temperature, center_momentum=0.9)

    def forward(self, batch: TrainingBatch, progress: Progress) -> dict[str, Tensor]:
        """Return ``loss`` in nats; it is log K if all assignments are uniform."""
        sizes = [torch.cat(crops) for crops in (batch.views[:GLOBAL_CROPS], batch.views[GLOBAL_CROPS:]) if crops]
        with torch.no_grad():
            teacher_NK = self.teacher_heads["cls"](self.tokens(self.teacher, sizes[0])[0])
        cls_ND = torch.cat([self.tokens(self.backbone, crops)[0] for crops in sizes])
        student_NK = self.heads["cls"](cls_ND)
        with torch.autocast(student_NK.device.type, enabled=False):
            loss = self.dino_loss(
                list(in_float32(teacher_NK).chunk(GLOBAL_CROPS)),
                list(in_float32(student_NK).chunk(len(batch.views))),
                teacher_temp=self.teacher_temperature(progress),
            )
        return {"loss": loss}
