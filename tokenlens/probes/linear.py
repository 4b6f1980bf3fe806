"""A linear classifier on frozen features; the learning rate is chosen on a part of the training images."""

# Shapes: N training images, M test images, B images of a step, F channels of a feature, C classes, K heads.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tokenlens.probes._heads import Heads, Schedule, edge_note, fit, held_out
from tokenlens.probes.base import RANKS, ImageProbe, Predictions, Vectors

SCHEDULE = Schedule(
    optimizer="SGD",
    learning_rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    batch_size=128,
    epochs=50,
    most_steps=12500,
)
"""12500 is the number of steps of DINOv2's linear evaluation."""


class Linear(ImageProbe):
    """BatchNorm without weights of its own and a linear classifier, by SGD."""

    def predict(self, train: Vectors, test: Vectors, seed: int) -> Predictions:
        """Choose the learning rate with a head for each, then train that one on all training images."""
        labels_N = torch.from_numpy(train.labels_N).to(train.device)

        def loss_of(heads: Heads, places_B: np.ndarray, _epoch: int) -> Tensor:
            rows = torch.from_numpy(places_B).to(train.device)
            return losses(heads, train.features_NF[rows], labels_N[rows])

        channels, classes = train.features_NF.shape[1], len(train.classes)
        held = held_out(len(train), seed, train.labels_N)
        rates = SCHEDULE.learning_rates
        heads = fit(loss_of, np.flatnonzero(~held), channels, classes, SCHEDULE, seed, train.device)
        out = torch.from_numpy(np.flatnonzero(held)).to(train.device)
        ranked_KMR = ranked(heads, train.features_NF[out])
        shares = (ranked_KMR[:, :, 0] == labels_N[out].cpu()).double().mean(1).tolist()
        best = int(np.argmax(shares))
        head = fit(loss_of, np.arange(len(train)), channels, classes, SCHEDULE, seed, train.device, (rates[best],))
        return Predictions(
            ranked_MR=ranked(head, test.features_NF)[0].numpy(),
            protocol={
                "classifier": "BatchNorm (no weights of its own) and one linear map, cross-entropy",
                "training": SCHEDULE.text(len(train)),
                "learning rate": f"{rates[best]:g}{edge_note(best, rates)}, the best of "
                f"{', '.join(f'{rate:g}' for rate in rates)} on the held-out images",
                "held out": f"{int(held.sum())} of {len(train)} training images, of each class alike, to choose the "
                "learning rate; then it is trained on all of them",
            },
            choices=[
                (f"learning rate {rate:g}", share, int(held.sum())) for rate, share in zip(rates, shares, strict=True)
            ],
        )


def losses(heads: Heads, x_BF: Tensor, labels_B: Tensor) -> Tensor:
    """Cross-entropy of each head, (K,)."""
    logits_BKC = heads(x_BF).unflatten(1, (heads.count, heads.classes))
    labels_BK = labels_B[:, None].expand(-1, heads.count)
    loss: Tensor = functional.cross_entropy(logits_BKC.flatten(0, 1), labels_BK.reshape(-1), reduction="none")
    return loss.view(labels_BK.shape).mean(0)


@torch.no_grad()
def ranked(heads: Heads, x_MF: Tensor) -> Tensor:
    """(K, M, up to 5) on the CPU: each head's classes, the highest logit first."""
    found = [
        heads(part).unflatten(1, (heads.count, heads.classes)).topk(min(RANKS, heads.classes)).indices.cpu()
        for part in x_MF.split(4096)
    ]
    return torch.cat(found).transpose(0, 1)
