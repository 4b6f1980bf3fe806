"""Buffers hold the results of passes that all do the same, and refuse others."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import tokenlens
from tests.metrics._cases import images
from tokenlens.reduction.buffers import Buffers, select_rows


def test_passes_are_stored_one_after_the_other():
    buffers = Buffers()
    for first, images_of_pass, value in ((0, 1, 9.0), (0, 2, 1.0), (2, 1, 2.0)):
        buffers.start(first, images_of_pass, capacity=3 if images_of_pass == 2 else 1)
        for _ in range(2):
            slot, memory = buffers.next_slot("norms", (3,), torch.zeros(images_of_pass))
            memory.fill_(value + 10 * slot.row)
        buffers.end()
        assert buffers.read("norms", (3,)).shape == (2, 1 if value == 9 else 3, 3)
    assert buffers.read("norms", (3,))[..., 0].tolist() == [[1, 1, 2], [11, 11, 12]]


@pytest.mark.parametrize("rows", [[2], [0, 1], [1, 3], [3, 1], [0, 0], [0, 1, 3]])
def test_selected_rows(rows):
    x = torch.arange(8).reshape(4, 2)
    assert torch.equal(select_rows(x, rows), x[rows])


class Doubled(VisionTransformer):
    """A model that runs its first block on every image twice."""

    def forward_features(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        x = self.blocks[0](torch.cat([x, x.flip(-1)]))[: len(x)]
        return self.norm(self.blocks[1](x))


class Mixed(Doubled):
    """A model that computes in two precisions."""

    def forward_features(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        return self.norm(self.blocks[1](self.blocks[0].double()(x.double()).float()))


@pytest.mark.parametrize(("model", "message"), [(Doubled, "4 images in a forward pass of 2"), (Mixed, "precision")])
def test_models_that_do_not_fit_the_buffers_are_refused(model, message):
    vit = model(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0).eval()
    with pytest.raises((ValueError, RuntimeError), match=message):
        tokenlens.analyze(vit, images("layer")[:2, :, :16, :16], batch_size=2)
