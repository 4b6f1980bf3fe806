"""Supervised training: targets, losses, augmentation and the average of the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from tests.training.objectives._tiny import (
    CLASSES,
    IMAGES,
    SIZE,
    at,
    batch,
    built,
    optimizer_of,
    part,
    seeded,
    step,
    views,
)
from tokenlens.training.objectives.base import make_options

PLAIN = {"mixup": 0.0, "cutmix": 0.0}


@pytest.fixture(scope="module")
def whole():
    return batch(views("supervised", {}))


def losses(options, whole, step=0):
    objective = built("supervised", options).eval()
    with torch.no_grad():
        return objective, objective.backbone(whole.views[0]), objective(whole, at(step))


def test_cross_entropy_without_mixing_is_pytorchs(whole):
    for smoothing in (0.0, 0.1):
        _, logits, found = losses({**PLAIN, "loss": "ce", "smoothing": smoothing}, whole)
        torch.testing.assert_close(found["loss"], cross_entropy(logits, whole.labels, label_smoothing=smoothing))
        assert found["accuracy"] == (logits.argmax(1) == whole.labels).double().mean()


def test_binary_cross_entropy_without_mixing_is_pytorchs(whole):
    _, logits, found = losses(PLAIN, whole)
    wanted = one_hot(whole.labels, len(CLASSES)).float()
    torch.testing.assert_close(found["loss"], binary_cross_entropy_with_logits(logits, wanted))


class Recorder(torch.nn.Module):
    """Stand-in for a backbone or a criterion that keeps its last argument."""

    def forward(self, *given):
        self.given = given[-1]
        return self.given.sum()


def mixed(options, whole, number):
    """The images that the model sees, and the target that the criterion gets."""
    objective = built("supervised", options)
    objective.backbone, objective.criterion = Recorder(), Recorder()
    assert set(objective(whole, at(number))) == {"loss"}
    return objective.backbone.given, objective.criterion.given


def test_mixup_is_a_share_of_an_image_and_its_mirror_in_the_batch(whole):
    for number in range(4):
        images, target = mixed({"cutmix": 0.0}, whole, number)
        x, other = whole.views[0], whole.views[0].flip(0)
        share = ((images - other) * (x - other)).sum() / (x - other).square().sum()
        assert 0 < share < 1
        torch.testing.assert_close(images, share * x + (1 - share) * other, rtol=1e-4, atol=1e-4)
        # Images i and 7 − i are of different classes.
        torch.testing.assert_close(target.gather(1, whole.labels[:, None])[:, 0], share.expand(IMAGES))


def test_cutmix_pastes_a_part_and_counts_it_by_its_area(whole):
    for number in range(4):
        images, target = mixed({"mixup": 0.0}, whole, number)
        x, other = whole.views[0], whole.views[0].flip(0)
        pasted = (images == other).all(1)
        assert ((images == x).all(1) | pasted).all()
        torch.testing.assert_close(target.gather(1, whole.labels[:, None])[:, 0], 1 - pasted.float().mean((1, 2)))


def test_steps_mix_differently_and_parts_alike(whole):
    first, second = (mixed({}, whole, number)[0] for number in (0, 1))
    assert not torch.equal(first, second)
    positions = [0, 1, IMAGES - 2, IMAGES - 1]
    torch.testing.assert_close(mixed({}, part(whole, positions), 0)[0], first[positions], rtol=0, atol=0)


def test_a_threshold_makes_both_classes_count_in_full(whole):
    objective, *_ = losses({}, whole)
    images, shares = mixed({}, whole, 0)
    with torch.no_grad():
        wanted = binary_cross_entropy_with_logits(objective.backbone(images), (shares > 0).float())
    assert not torch.equal((shares > 0).float(), shares)
    _, _, found = losses({"bce_threshold": 0.0}, whole)
    torch.testing.assert_close(found["loss"], wanted)


def picture():
    """Red on the left, green on the right, 80×64 pixels."""
    pixels = np.zeros((64, 80, 3), np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 1] = 200
    return Image.fromarray(pixels)


def seen(count=60, **options):
    """Views of the picture as RGB in [0, 1]."""
    augment = views("supervised", {"three_augment": False, "color_jitter": 0.0, "flip": 0.0, **options})
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    found = []
    for index in range(count):
        seeded(index)
        [view] = augment(picture())
        assert view.shape == (3, SIZE, SIZE)
        found.append(view * std + mean)
    return found


def test_without_augmentation_a_simple_crop_keeps_the_short_side():
    for view in seen(20, crop="simple"):
        assert view[0, :, :8].mean() > 0.7
        assert view[1, :, -8:].mean() > 0.7
        assert view[2].abs().max() < 1e-5


def test_half_of_the_images_are_mirrored():
    mirrored = [float(view[0, :, -8:].mean()) > 0.5 for view in seen(100, crop="simple", flip=0.5)]
    assert 30 < sum(mirrored) < 70


def test_a_resized_crop_shows_parts_of_other_sizes():
    shares = [float((view[0] > view[1]).float().mean()) for view in seen(40, crop_scale=(0.1, 0.5))]
    assert max(shares) == 1
    assert min(shares) == 0
    whole_width = [float((view[0] > view[1]).float().mean()) for view in seen(20, crop_scale=(1.0, 1.0))]
    assert min(whole_width) > 0.35


def test_three_augment_is_grey_solarized_or_blurred_in_turn():
    kinds = {"grey": 0, "solarized": 0, "blurred": 0}
    for view in seen(120, three_augment=True, crop="simple"):
        left, right = view[:, :, :4].mean((1, 2)), view[:, :, -4:].mean((1, 2))
        if (view.amax(0) - view.amin(0)).max() < 0.02:
            kinds["grey"] += 1
        elif left[0] < 0.4 or right[1] < 0.4:  # 200 of 255 is above the threshold of 128
            kinds["solarized"] += 1
        else:
            kinds["blurred"] += 1
    assert all(25 < count < 55 for count in kinds.values()), kinds


def test_color_jitter_changes_colors_alone():
    plain = seen(10, crop="simple")
    for one, two in zip(plain, seen(10, crop="simple", color_jitter=0.4), strict=True):
        assert not torch.allclose(one, two, atol=0.02)


def test_the_average_follows_the_weights_and_is_the_result(whole):
    objective = built("supervised", {"ema_decay": 0.9})
    optimizer = optimizer_of(objective)
    expected = None
    for number in range(6):
        step(objective, whole, at(number), optimizer)
        now = {key: value.clone() for key, value in objective.backbone.state_dict().items()}
        decay = min(0.9, 1 - (1 + number) ** (-2 / 3))
        if expected is None:
            expected = now
        else:
            expected = {key: decay * value + (1 - decay) * now[key] for key, value in expected.items()}
    for key, value in objective.result().state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)
        assert not torch.equal(value, now[key]) or value.numel() < 2, key


def test_without_an_average_the_result_is_the_backbone(whole):
    objective = built("supervised", {})
    assert objective.result() is objective.backbone


def test_invalid_batches_and_classes_are_refused():
    with pytest.raises(ValueError, match=r"batch_size must be even, got 7; objective_options\.mixup=0"):
        built("supervised", {}, batch_size=7)
    built("supervised", PLAIN, batch_size=7)
    with pytest.raises(ValueError, match="at least two classes, got 0"):
        built("supervised", PLAIN, classes=())


@pytest.mark.parametrize(
    "wrong",
    [
        {"loss": "mse"},
        {"smoothing": 1.0},
        {"mixup": -1},
        {"crop": "centre"},
        {"crop_scale": (0.5, 0.1)},
        {"flip": 2},
        {"ema_decay": 1.0},
        {"bce_threshold": 1.0},
        {"color_jitter": -0.1},
        {"cutmix": -1},
    ],
)
def test_invalid_options_are_refused(wrong):
    [(name, _)] = wrong.items()
    with pytest.raises(ValueError, match=f"^{name}=.*expected"):
        make_options("supervised", wrong)
