"""A linear classifier on frozen features; the learning rate is chosen on held-out training images."""

# Shapes: N training images, M test images, B images of a step, F channels of a feature, C classes, K heads.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tokenlens.probes._heads import Heads, Schedule, edge_note, hold_out, train_with_best_rate
from tokenlens.probes.base import RANKS, FittedHead, ImageFeatures, ImageProbe

SCHEDULE = Schedule(
    optimizer="SGD",
    learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    batch_size=128,
    epochs=50,
    max_steps=12500,
)
"""``max_steps`` is that of DINOv2's linear evaluation."""


class Linear(ImageProbe):
    """BatchNorm without affine weights and a linear classifier, trained with SGD."""

    def fit(self, train: ImageFeatures, seed: int) -> FittedHead:
        """Train a head per learning rate to choose one, then train with it on all training images."""
        labels_N = torch.from_numpy(train.labels_N).to(train.device)

        def loss_of(heads: Heads, indices_B: np.ndarray, _epoch: int) -> Tensor:
            rows = torch.from_numpy(indices_B).to(train.device)
            return head_losses(heads, train.features_NF[rows], labels_N[rows])

        channels, classes = train.features_NF.shape[1], len(train.classes)
        held = hold_out(len(train), seed, train.labels_N)
        rates = SCHEDULE.learning_rates

        def accuracies_of(heads: Heads, images_N: np.ndarray) -> list[float]:
            rows = torch.from_numpy(images_N).to(train.device)
            hits_KM = rank_classes(heads, train.features_NF[rows])[:, :, 0] == labels_N[rows].cpu()
            return list(hits_KM.double().mean(1).tolist())

        head, best, accuracies = train_with_best_rate(
            loss_of, held, accuracies_of, channels, classes, SCHEDULE, seed, train.device, self.progress
        )
        return FittedHead(
            tensors=head.state_dict(),
            protocol={
                "classifier": "BatchNorm (without affine weights) and one linear map, cross-entropy",
                "training": SCHEDULE.describe(len(train)),
                "learning rate": f"{rates[best]:g}{edge_note(best, rates)}, the best of "
                f"{', '.join(f'{rate:g}' for rate in rates)} on the held-out images",
                "held out": f"{int(held.sum())} of {len(train)} training images, the same share of each class, "
                "to choose the learning rate; then it is trained on all of them",
            },
            choices=[
                (f"learning rate {rate:g}", accuracy, int(held.sum()))
                for rate, accuracy in zip(rates, accuracies, strict=True)
            ],
        )

    def rank(self, head: FittedHead, features_MF: Tensor, classes: int) -> np.ndarray:
        """Rank classes by the logits."""
        ranked: np.ndarray = rank_classes(Heads.of(head.tensors, features_MF.device), features_MF)[0].numpy()
        return ranked


def head_losses(heads: Heads, x_BF: Tensor, labels_B: Tensor) -> Tensor:
    """Compute the cross-entropy of each head, (K,)."""
    logits_BKC = heads(x_BF).unflatten(1, (heads.count, heads.classes))
    labels_BK = labels_B[:, None].expand(-1, heads.count)
    loss: Tensor = functional.cross_entropy(logits_BKC.flatten(0, 1), labels_BK.reshape(-1), reduction="none")
    return loss.view(labels_BK.shape).mean(0)


@torch.no_grad()
def rank_classes(heads: Heads, x_MF: Tensor) -> Tensor:
    """Return each head's classes, the highest logit first, on the CPU: (K, M, up to 5)."""
    found = [
        heads(part).unflatten(1, (heads.count, heads.classes)).topk(min(RANKS, heads.classes)).indices.cpu()
        for part in x_MF.split(4096)
    ]
    return torch.cat(found).transpose(0, 1)
