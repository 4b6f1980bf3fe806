"""The objective ``dino``, and what ``dinov2`` shares with it: crops and teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.self_distillation import backbone, batch, objective, progress
from tests.support.tiny_models import MODELS
from tests.training.objectives._tiny import seeded
from tokenlens.training.objectives.base import make_options, objectives

both = pytest.mark.parametrize("name", ["dino", "dinov2"])


@both
def test_views_are_two_global_crops_then_the_local_ones(name):
    kind = objectives.get(name)
    options = make_options(name, {"local_crops": 3, "local_size": 16})
    views = kind.views(options, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    seeded(0)
    found = views(image)
    assert [tuple(view.shape) for view in found] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 3
    seeded(0)
    plain = kind.views(options, 32, (0.0,) * 3, (1.0,) * 3)(image)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    for one, raw in zip(found, plain, strict=True):
        assert raw.min() >= 0
        assert raw.max() <= 1
        torch.testing.assert_close(one, (raw - mean) / std)


def test_a_global_crop_covers_the_requested_share_of_the_image():
    scales = {"global_scale": (1.0, 1.0), "local_scale": (0.01, 0.01)}
    options = make_options("dino", {"local_crops": 1, "local_size": 32, **scales})
    views = objectives.get("dino").views(options, 32, (0.0,) * 3, (1.0,) * 3)
    # Half black, half white: the whole image shows both, a hundredth of it almost never does.
    halves = np.zeros((100, 100, 3), np.uint8)
    halves[:, 50:] = 255
    halves = Image.fromarray(halves)
    spreads = [[float(view.amax() - view.amin()) for view in views(halves)] for _ in range(10)]
    assert min(spread[0] for spread in spreads) > 0.3
    assert np.median([spread[2] for spread in spreads]) < 0.1


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(taught, said, temperature):
    """Mean over combinations of different crops and over images, written out; ``taught`` are assignments."""
    terms = [
        -(taught[v] * np.log(softmax(said[s] / temperature))).sum(-1).mean()
        for v in range(len(taught))
        for s in range(len(said))
        if v != s
    ]
    return float(np.mean(terms))


def outputs(made, views, student):
    """Outputs of the head of CLS, one crop at a time, with token positions counted by hand: CLS is first here."""
    model, heads = (made.backbone, made.heads) if student else (made.teacher, made.teacher_heads)
    with torch.no_grad():
        return np.stack([heads["cls"](model.forward_features(view)[:, 0]).numpy() for view in views])


def test_the_loss_is_the_cross_entropy_of_teacher_and_student_and_the_centre_follows():
    made, images = objective("dino", teacher_temperature_warmup=0.0), batch()
    for one in (made.teacher, made.teacher_heads):  # another teacher
        with torch.no_grad():
            for parameter in one.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    taught, said = outputs(made, images.views[:2], False), outputs(made, images.views, True)
    centre = np.zeros(taught.shape[-1])
    for step in range(3):
        expected = cross_entropy(softmax((taught - centre) / 0.07), said, 0.1)
        with torch.no_grad():
            found = float(made(images, progress(step))["loss"])
        assert found == pytest.approx(expected, rel=1e-6)
        centre = 0.9 * centre + 0.1 * taught.mean((0, 1))


def test_registers_are_not_taken_for_cls():
    made = objective("dino", backbone(reg_tokens=3, class_token=True, no_embed_class=True))
    cls, patches = made.tokens(made.backbone, batch().views[0])
    whole = made.backbone.forward_features(batch().views[0])
    assert torch.equal(cls, whole[:, 0])
    assert torch.equal(patches, whole[:, 4:])


@both
def test_without_local_crops(name):
    made = objective(name, backbone(dynamic_img_size=False), local_crops=0)
    assert torch.isfinite(made(batch(local_crops=0), progress())["loss"])


@both
def test_the_teacher_starts_as_the_student_and_is_its_moving_average(name):
    made = objective(name)
    assert made.result() is made.teacher
    twins = [
        *zip(made.backbone.parameters(), made.teacher.parameters(), strict=True),
        *zip(made.heads.parameters(), made.teacher_heads.parameters(), strict=True),
    ]
    assert all(torch.equal(one, other) for one, other in twins)
    with torch.no_grad():
        for one, _ in twins:
            one.add_(torch.randn_like(one))
    before = [other.clone() for _, other in twins]
    made.after_step(progress(0))
    for (one, other), old in zip(twins, before, strict=True):
        torch.testing.assert_close(other.detach(), 0.5 * old + 0.5 * one.detach())
    before = [other.clone() for _, other in twins]
    made.after_step(progress(3))  # the last step
    assert all(torch.equal(other, old) for (_, other), old in zip(twins, before, strict=True))


def test_the_teacher_has_no_stochastic_depth():
    made = objective("dino", backbone(drop_path_rate=0.5, proj_drop_rate=0.3))
    image = batch().views[0]
    assert made.backbone.training
    assert torch.equal(made.teacher(image), made.teacher(image))
    assert not torch.equal(made.backbone(image), made.backbone(image))


@both
def test_the_prototypes_are_frozen_at_the_start(name):
    made = objective(name, last_layer_held=1.0)
    for step, held in ((0, True), (1, False)):
        made(batch(), progress(step))["loss"].backward()
        made.after_backward(progress(step))
        for path, parameter in made.heads.named_parameters():
            if parameter.requires_grad:
                assert (parameter.grad is None) == (held and ".last_layer." in path), (step, path)


def test_the_teachers_temperature_rises_then_stays():
    made = objective("dino", teacher_temperature_start=0.04, teacher_temperature=0.08, teacher_temperature_warmup=0.4)
    found = [made.teacher_temperature(progress(step, steps=10)) for step in range(10)]
    assert found[:5] == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.08])
    assert found[5:] == [0.08] * 5


@both
def test_losses_are_float32_under_half_precision(name):
    made = objective(name).float()
    images = batch()
    images.views = [view.float() for view in images.views]
    full = made(images, progress())["loss"]
    again = objective(name).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = again(images, progress())["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (
            {"dynamic_img_size": False},
            {},
            "local crops have 16×16 pixels, .* takes 32×32 only; .*dynamic_img_size=True",
        ),
        ({"img_size": 64, "dynamic_img_size": False}, {"local_crops": 0}, "global crops have 32×32 pixels"),
        ({}, {"local_size": 20}, "local crops do not go through the backbone: .*20×20 .* patches of 8×8"),
        ({"class_token": False, "global_pool": "map"}, {}, "needs a CLS token, this VisionTransformer has patch only"),
        ({"global_pool": "avg"}, {}, "normalizes only after pooling.* global_pool='token'"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused(model, options, says):
    with pytest.raises(ValueError, match=says):
        objective("dino", backbone(**model), **options)


def test_a_backbone_of_another_library_is_refused():
    with pytest.raises(ValueError, match="needs a ViT of timm as backbone, got a ViTModel"):
        objective("dino", MODELS["hf_vit"]())


@pytest.mark.parametrize(
    ("name", "option", "value", "says"),
    [
        ("dino", "local_crops", -1, "local_crops=-1: expected at least 0"),
        ("dino", "global_scale", (0.5, 1.5), r"global_scale=\(0.5, 1.5\): expected two numbers"),
        ("dino", "blur", (2.0, 1.0), "blur"),
        ("dino", "teacher_temperature", 0.01, "teacher_temperature_start=0.04: .* teacher_temperature=0.01"),
        ("dino", "momentum", 1.5, "momentum=1.5"),
        ("dinov2", "centring", "softmax", "centring='softmax': expected one of sinkhorn, centre"),
        ("dinov2", "mask_ratio", (0.0, 2.0), "mask_ratio"),
        ("dinov2", "koleo", -0.1, "koleo"),
    ],
)
def test_invalid_options_are_refused(name, option, value, says):
    with pytest.raises(ValueError, match=says):
        make_options(name, {option: value})
