"""Nothing of the size of the tokens outlives its hook, and memory does not grow with the number of images."""

# Shapes: B images, T tokens, D channels.

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tokenlens
from tests.metrics import _cases
from tests.metrics._cases import images, photographs
from tokenlens.analysis.run import AnalysisRun
from tokenlens.images import iterate_batches, open_images
from tokenlens.metrics import cka, energy_profile
from tokenlens.metrics import metrics as catalog
from tokenlens.models.loading import load_model
from tokenlens.recording.recorder import evaluating
from tokenlens.tokens import TokenLayout


def fresh() -> Any:
    return copy.deepcopy(_cases.model("registers"))


def test_no_activation_outlives_the_forward():
    """Weak references follow every output of every module through ``analyze`` with all metrics."""
    model, alive = fresh(), []

    def follow(_module: nn.Module, _args: Any, output: Any) -> None:
        alive.append(weakref.ref(output))

    for module in model.modules():
        module.register_forward_hook(follow)
    left: list[int] = []

    def after_batch(_done: int, _total: int | None) -> None:
        left.append(sum(ref() is not None for ref in alive))

    gc.disable()  # without the help of the garbage collector
    try:
        tokenlens.analyze(model, images("registers")[:3], metrics="all", batch_size=1, progress=after_batch)
    finally:
        gc.enable()
    assert len(alive) > 100
    assert left == [0] * 4  # before the first batch, too


def tensors_alive() -> list[Tensor]:
    return [x for x in gc.get_objects() if issubclass(type(x), Tensor)]


def test_no_tensor_of_the_size_of_tokens_is_alive_between_batches():
    """Not even a copy or a view: the summaries of all sites together are smaller than the tokens of two of them."""
    model = VisionTransformer(img_size=128, patch_size=4, embed_dim=48, depth=2, num_heads=3, num_classes=0).eval()
    pixels, layout = photographs(6, 128, 128), TokenLayout(grid=(32, 32))
    known = {id(x) for x in tensors_alive()}
    limit = 2 * 6 * layout.tokens * 48 * 4  # bytes of the float32 tokens of two of the eighteen sites
    found = []

    def after_batch(_done: int, _total: int | None) -> None:
        new = [x for x in tensors_alive() if id(x) not in known and x.shape[-2:] != pixels.shape[-2:]]
        found.extend((tuple(x.shape), x.dtype) for x in new if x.untyped_storage().nbytes() >= limit)

    tokenlens.analyze(model, pixels, metrics="all", batch_size=6, progress=after_batch)
    assert not found


def state_bytes(value: Any, seen: set[int]) -> int:
    """Count the bytes of all tensors and arrays that an object holds, and 8 for each number."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return int(value.untyped_storage().nbytes())
    if isinstance(value, np.ndarray):
        return value.nbytes if value.base is None else state_bytes(value.base, seen) or value.nbytes
    if isinstance(value, dict):
        return sum(state_bytes(item, seen) for item in value.values())
    if isinstance(value, list | tuple | set):
        return sum(state_bytes(item, seen) for item in value)
    if isinstance(value, int | float):
        return 8
    return sum(state_bytes(item, seen) for item in vars(value).values()) if hasattr(value, "__dict__") else 0


def test_metrics_do_not_grow_with_the_images(monkeypatch):
    """Except for per-image values, kept for ``keep_images`` images, and the tokens of a limited number of images."""
    monkeypatch.setattr(cka, "CKA_IMAGES", 8)
    monkeypatch.setattr(energy_profile, "MAX_IMAGES", 8)
    sizes: dict[str, list[int]] = {}
    for count in (16, 64):
        pixels = images("registers").repeat(count // 8, 1, 1, 1)
        run = AnalysisRun(
            load_model(fresh()), [catalog.get(name)() for name in catalog.names()], keep_images=8, expensive=True
        )
        with evaluating(run.loaded.module):
            run.process(iterate_batches(open_images(pixels), 8), amp=False, done=lambda _, run=run: run.flush())
        for metric in run.applicable:
            sizes.setdefault(metric.name, []).append(state_bytes(metric, set()))
    few, many = np.array(list(sizes.values())).T
    assert (few > 0).all()
    # Two attributes can hold the same int object, which is then counted once.
    assert (abs(many - few) <= 8).all(), sizes


def test_cka_keeps_a_limited_number_of_images(monkeypatch):
    monkeypatch.setattr(cka, "CKA_IMAGES", 5)
    analysis = tokenlens.analyze(fresh(), images("registers"), metrics=["cka"], batch_size=2)
    assert (analysis.table["n"] == 5).all()
    five = tokenlens.analyze(fresh(), images("registers")[:5], metrics=["cka"], batch_size=2)
    np.testing.assert_allclose(analysis.table["value"], five.table["value"])


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


SIZE = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}


def test_a_site_that_sees_other_images_is_refused():
    with pytest.raises(ValueError, match="4 images in a forward pass of 2"):
        tokenlens.analyze(Doubled(**SIZE).eval(), images("layer")[:2, :, :16, :16], batch_size=2)


def test_blocks_of_different_precisions():
    plain, mixed = VisionTransformer(**SIZE).eval(), Mixed(**SIZE).eval()
    mixed.load_state_dict(plain.state_dict())
    pixels = images("layer")[:2, :, :16, :16]
    expected, found = (tokenlens.analyze(model, pixels, metrics="cls_patch_cosine").table for model in (plain, mixed))
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-5, atol=2e-6)
