"""The objective ``distill``, and its cache of features."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch.nn.functional import cosine_similarity, interpolate, layer_norm

from tests.training.objectives._tiny import (
    IMAGES,
    SIZE,
    at,
    backbone,
    batch,
    built,
    optimizer_of,
    part,
    photographs,
    seeded,
    step,
    tensors,
    views,
)
from tests.training.objectives.distill import TEACHER_SIZE, trained_teacher
from tokenlens import specialize
from tokenlens.training.objectives._feature_cache import FeatureFile
from tokenlens.training.objectives._frozen_teacher import FrozenTeacher
from tokenlens.training.objectives.base import Setting, make_options
from tokenlens.training.objectives.distill import Distill

KEY = {"who": "a teacher"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Options of a teacher of 3×3 patches."""
    return trained_teacher(tmp_path_factory.mktemp("teacher"))


def numbers(losses):
    return {key: loss.item() for key, loss in losses.items()}


def test_a_student_that_is_the_teacher_has_no_loss(tmp_path):
    options = trained_teacher(tmp_path, size=SIZE)
    objective = built("distill", options)
    teacher = objective.teacher.model
    torch.nn.init.ones_(teacher.norm.weight)
    torch.nn.init.zeros_(teacher.norm.bias)
    objective.backbone, objective.layout = copy.deepcopy(teacher), objective.teacher.layout
    objective.cls_head = objective.patch_head = torch.nn.Identity()
    views_of_both = batch(views("distill", options))
    assert len(views_of_both.views) == 2, "the two normalise differently"
    views_of_both.views = views_of_both.views[1:]
    found = numbers(objective(views_of_both, at(0)))
    assert found == pytest.approx({"loss": 0, "cls": 0, "patch": 0}, abs=1e-5)


@pytest.mark.parametrize("preset", [None, "paper"])
@pytest.mark.parametrize("kind", ["plain", "registers"])
def test_losses_are_one_minus_the_mean_cosine_of_tokens_at_the_same_position(teacher, kind, preset):
    options = {**teacher, "cls_weight": 0.3, "patch_weight": 2.0}
    objective = built("distill", options, kind=kind, specialization=preset)
    whole = batch(views("distill", options))
    assert [tuple(view.shape[1:]) for view in whole.views] == [(3, SIZE, SIZE), (3, TEACHER_SIZE, TEACHER_SIZE)]
    found = objective(whole, at(0))
    with torch.no_grad():
        prefix = 1 if kind == "plain" else 5
        student = objective.backbone.forward_features(whole.views[0])
        taught = objective.teacher.model.forward_features(whole.views[1])
        taught = layer_norm(taught, taught.shape[-1:])
        grid = interpolate(taught[:, 1:].mT.unflatten(2, (3, 3)), (4, 4), mode="bilinear").flatten(2).mT
        cls = 1 - cosine_similarity(objective.cls_head(student[:, 0]), taught[:, 0], dim=-1).mean()
        patch = 1 - cosine_similarity(objective.patch_head(student[:, prefix:]), grid, dim=-1).mean()
    torch.testing.assert_close(found["cls"], cls)
    torch.testing.assert_close(found["patch"], patch)
    torch.testing.assert_close(found["loss"], 0.3 * cls + 2 * patch)


def test_a_larger_grid_of_the_teacher_is_averaged(tmp_path):
    teacher = FrozenTeacher(*trained_teacher(tmp_path, size=128).values())
    features = torch.zeros(1, 65, 64)
    features[0, 1:] = torch.arange(64.0)[:, None]
    cls, patch = teacher.split(features, (2, 2))
    assert cls.shape == (1, 64)
    assert patch.shape == (1, 4, 64)
    assert patch[0, 0, 0] < 63 - patch[0, 3, 0] + 1e-3
    means = torch.arange(64.0).view(8, 8).unflatten(0, (2, 4)).unflatten(2, (2, 4)).mean((1, 3)).flatten()
    assert (patch[0, :, 0] - means).abs().max() < 4, "within one patch of the mean of each quarter"


def test_a_teacher_may_be_specialized(tmp_path, teacher):
    twin = specialize(timm.create_model("test_vit", img_size=48, num_classes=0), "paper")
    save_file(twin.state_dict(), tmp_path / "specialized.safetensors")
    options = {
        **teacher,
        "teacher": "specialized:paper:test_vit",
        "teacher_checkpoint": str(tmp_path / "specialized.safetensors"),
    }
    objective = built("distill", options)
    assert numbers(objective(batch(views("distill", options)), at(0)))["loss"] > 0


def test_a_weight_of_zero_omits_the_loss_and_its_head(teacher):
    for part_left, without in (("patch", "cls"), ("cls", "patch")):
        objective = built("distill", {**teacher, f"{without}_weight": 0.0})
        found = objective(batch(views("distill", teacher)), at(0))
        assert set(found) == {"loss", part_left}
        assert not [name for name, _ in objective.named_parameters() if name.startswith(f"{without}_head")]


def test_the_teacher_stays_in_eval_mode_and_does_not_change(teacher):
    objective = built("distill", {**teacher, "head": "mlp"}).train()
    assert not any(module.training for module in objective.teacher.modules())
    before = tensors(objective.teacher)
    trained(objective, batch(views("distill", teacher)), 3)
    assert all(torch.equal(value, before[key]) for key, value in objective.teacher.state_dict().items())


def test_student_and_teacher_see_the_same_part(teacher):
    for kind in ("crop", "flip"):
        augment = views("distill", {**teacher, "views": kind})
        for index, image in enumerate(photographs()):
            seeded(index)
            small, large = augment(image)
            mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
            small = small * std[:, None, None] + mean[:, None, None]
            # timm's test models normalise with 0.5.
            large = interpolate(large[None] * 0.5 + 0.5, (SIZE, SIZE), mode="bicubic", antialias=True)[0]
            assert (small - large).abs().mean() < 0.02


def test_random_crops_and_mirror_images_differ(teacher):
    augment = views("distill", {**teacher, "views": "crop"})
    image, found = photographs()[0], []
    for index in range(8):
        seeded(index)
        found.append(augment(image)[0])
    assert len({view.numpy().tobytes() for view in found}) == 8
    still = views("distill", {**teacher, "views": "flip"})
    assert torch.equal(still(image)[1], still(image)[1])


def test_half_of_the_images_are_mirrored_by_seed_and_step(teacher):
    options = {**teacher, "views": "flip"}
    objective, whole = built("distill", options), batch(views("distill", options))
    mirrored = []
    for number in range(12):
        seen = []
        patches = objective.backbone.patch_embed
        handle = patches.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        objective(whole, at(number))
        handle.remove()
        flips = [torch.equal(one, two.flip(-1)) for one, two in zip(seen[0], whole.views[0], strict=True)]
        assert all(flip or torch.equal(seen[0][i], whole.views[0][i]) for i, flip in enumerate(flips))
        mirrored.append(tuple(flips))
    assert len(set(mirrored)) > 10
    assert 30 < sum(map(sum, mirrored)) < 66


def cached(teacher, folder, **setting):
    return built("distill", {**teacher, "views": "flip", "cache": str(folder)}, **setting)


def trained(objective, whole, steps=4):
    optimizer = optimizer_of(objective)
    return [step(objective, whole, at(number), optimizer) for number in range(steps)]


def test_losses_do_not_depend_on_what_the_cache_holds(teacher, tmp_path):
    whole = batch(views("distill", {**teacher, "views": "flip"}))
    cold = cached(teacher, tmp_path / "one")
    expected = trained(cold, whole)
    assert 0 < cold.cached.computed <= 2 * IMAGES
    warm = cached(teacher, tmp_path / "one")
    assert trained(warm, whole) == expected
    assert warm.cached.computed == 0
    partly = cached(teacher, tmp_path / "two")
    partly(part(whole, [1, 6]), at(0))
    filled = partly.cached.computed
    assert filled == 2
    half_warm = cached(teacher, tmp_path / "two")
    assert trained(half_warm, whole) == expected
    assert half_warm.cached.computed == cold.cached.computed - filled
    never = built("distill", {**teacher, "views": "flip"})
    assert trained(never, whole) == pytest.approx(expected, rel=1e-3), "float16 and float32"


def test_half_precision_does_not_reach_the_cache(teacher, tmp_path):
    whole = batch(views("distill", {**teacher, "views": "flip"}))
    full, half = cached(teacher, tmp_path / "full"), cached(teacher, tmp_path / "half")
    full(whole, at(0))
    with torch.autocast("cpu", torch.bfloat16):
        half(whole, at(0))
    rows = [objective.cached.file.folder / "rows.float16" for objective in (full, half)]
    assert rows[0].read_bytes() == rows[1].read_bytes()


def test_a_cached_teacher_is_in_no_checkpoint(teacher, tmp_path):
    objective = cached(teacher, tmp_path)
    assert {name.partition(".")[0] for name in objective.state_dict()} == {"backbone", "cls_head", "patch_head"}
    assert {name.partition(".")[0] for name in built("distill", teacher).state_dict()} > {"teacher"}


def test_everything_that_features_depend_on_gives_another_cache(teacher, tmp_path):
    whole = batch(views("distill", {**teacher, "views": "flip"}))
    other_weights = trained_teacher(tmp_path / "other")
    file = Path(other_weights["teacher_checkpoint"])
    save_file({key: value + 1e-3 for key, value in load_file(file).items()}, file)
    larger = trained_teacher(tmp_path / "larger", size=64)
    made = [
        cached(teacher, tmp_path / "cache"),
        cached(other_weights, tmp_path / "cache"),
        cached(larger, tmp_path / "cache"),
        cached(teacher, tmp_path / "cache", images_sha256="1" * 64),
        cached(teacher, tmp_path / "cache", images=IMAGES + 1),
    ]
    for objective in made:
        views_of = whole if objective is not made[2] else batch(views("distill", {**larger, "views": "flip"}))
        objective(views_of, at(0))
        assert objective.cached.computed == IMAGES
    assert len(list((tmp_path / "cache").iterdir())) == len(made)
    key = json.loads(next((tmp_path / "cache").glob("*/key.json")).read_text())
    assert key["image_size"] in (TEACHER_SIZE, 64)
    again = cached(teacher, tmp_path / "cache", seed=5, batch_size=4, steps=99)
    again(whole, at(0))
    assert again.cached.computed == 0, "neither seed nor batch size matter"


def test_a_damaged_row_is_computed_again(teacher, tmp_path):
    whole = batch(views("distill", {**teacher, "views": "flip"}))
    expected = numbers(cached(teacher, tmp_path)(whole, at(0)))
    [rows] = tmp_path.glob("*/rows.float16")
    content = bytearray(rows.read_bytes())
    first = next(index for index, byte in enumerate(content) if byte)
    content[first] ^= 1
    rows.write_bytes(content)
    again = cached(teacher, tmp_path)
    assert numbers(again(whole, at(0))) == expected
    assert again.cached.computed == 1


def test_empty_rows_take_no_disk_space(tmp_path):
    shape = (100_000, 65, 384)
    file = FeatureFile(tmp_path, KEY, shape)
    assert file.get(99_999) is None
    row = np.random.default_rng(0).standard_normal(shape[1:]).astype(np.float16)
    file.put(99_999, row)
    for one in (file, FeatureFile(tmp_path, KEY, shape)):
        assert np.array_equal(one.get(99_999), row)
        assert one.get(99_998) is None
    used = sum(path.stat().st_blocks * 512 for path in file.folder.iterdir())
    assert used < 2**20


def test_a_row_of_zeros_is_a_row(tmp_path):
    file = FeatureFile(tmp_path, KEY, (2, 4))
    file.put(1, np.zeros(4, np.float16))
    assert file.get(0) is None
    assert np.array_equal(file.get(1), np.zeros(4))


forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def fill(folder: Path, rows: int) -> multiprocessing.Process:
    """Start a process that fills the rows of a file."""

    def run() -> None:
        file = FeatureFile(folder, KEY, (rows, 5000))
        for row in range(rows):
            file.put(row, np.full(5000, row % 100 + 1, np.float16))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


@forks
def test_a_killed_process_leaves_whole_rows_only(tmp_path):
    file = FeatureFile(tmp_path, KEY, (4000, 5000))
    for least in (60, 120):
        running = fill(tmp_path, 4000)
        while file.get(least) is None:
            assert running.is_alive()
        running.kill()
        running.join()
    found = [file.get(row) for row in range(4000)]
    assert 60 < sum(values is not None for values in found) < 4000
    assert all((values == row % 100 + 1).all() for row, values in enumerate(found) if values is not None)


@forks
def test_two_processes_fill_one_file(tmp_path):
    for one in [fill(tmp_path, 1000) for _ in range(2)]:
        one.join()
        assert one.exitcode == 0
    file = FeatureFile(tmp_path, KEY, (1000, 5000))
    assert all((file.get(row) == row % 100 + 1).all() for row in range(1000))


def test_invalid_teachers_and_students_are_refused(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"the teacher has no CLS token.*cls_weight=0"):
        built("distill", trained_teacher(tmp_path, "test_vit2"))
    built("distill", {**trained_teacher(tmp_path, "test_vit2"), "cls_weight": 0.0})
    with pytest.raises(ValueError, match="the student has no CLS token"):
        built("distill", teacher, kind="no_cls")
    with pytest.raises(ValueError, match="must know which images"):
        cached(teacher, tmp_path, images_sha256="")
    with pytest.raises(LookupError, match="test_vit"):
        views("distill", {"teacher": "test_vitt"})
    with pytest.raises(ValueError, match="does not exist"):
        built("distill", {**teacher, "teacher_checkpoint": str(tmp_path / "nowhere.safetensors")})


@pytest.mark.parametrize(
    "wrong",
    [
        {"teacher_image_size": 0},
        {"cls_weight": -1},
        {"patch_weight": -1.0},
        {"patch_weight": 0, "cls_weight": 0},
        {"head": "deep"},
        {"views": "none"},
        {"crop_scale": (0.0, 1.0)},
        {"cache": "somewhere"},
    ],
)
def test_invalid_options_are_refused(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}=.*expected"):
        make_options("distill", wrong)


@pytest.mark.pretrained
def test_a_student_learns_from_real_dinov2(tmp_path):
    data = os.environ.get("TOKENLENS_TEST_DATA")
    if not data:
        pytest.skip("TOKENLENS_TEST_DATA does not say where the real weights are")
    weights = Path(data) / "weights" / "dinov2_vits14.safetensors"
    options = make_options(
        "distill",
        {
            "teacher": "vit_small_patch14_dinov2",
            "teacher_checkpoint": str(weights),
            "teacher_image_size": 112,
            "views": "flip",
            "cache": str(tmp_path),
        },
    )
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    whole = batch(Distill.views(options, 64, mean, std))
    student = backbone(0, img_size=64, depth=2)
    objective = Distill(student, options, Setting(64, (), IMAGES, 10, 0, lambda classes: student, IMAGES, "0" * 64))
    losses = trained(objective, whole, 10)
    assert objective.layout.grid == objective.split_features.__self__.layout.grid == (8, 8)
    assert losses[-1] < losses[0] - 0.1
    model = timm.create_model("vit_small_patch14_dinov2", img_size=112, num_classes=0).eval()
    model.load_state_dict(checkpoint_filter_fn({k: v.float() for k, v in load_file(weights).items()}, model))
    with torch.no_grad():
        tokens = model.forward_features(whole.views[1])
    kept = objective.cached.features(whole.views[1], whole.indices, torch.zeros(IMAGES, dtype=torch.bool))
    torch.testing.assert_close(kept, layer_norm(tokens, tokens.shape[-1:]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("loss", ["cosine", "smooth_l1"])
@pytest.mark.parametrize("cache", [None, "device"])
def test_fitted_heads_start_with_a_lower_loss(teacher, loss, cache):
    options = {**teacher, "views": "flip", "loss": loss, "fit_heads": IMAGES, "cache": cache}
    objective, whole = built("distill", options), batch(views("distill", options))
    with torch.no_grad():
        for head in (objective.cls_head, objective.patch_head):
            head.weight.mul_(5)
    if cache is None:
        before = numbers(objective(whole, at(0)))["loss"]
    objective.prepare(lambda count: iter([whole]))
    assert objective.backbone.training
    if cache is None:
        assert numbers(objective(whole, at(0)))["loss"] < before
    again = built("distill", options, specialization="paper")
    again.prepare(lambda count: iter([whole]))
    torch.testing.assert_close(again.patch_head.weight, objective.patch_head.weight, rtol=1e-3, atol=1e-4)


def test_smooth_l1_is_of_standardized_channels(teacher):
    options = {**teacher, "views": "flip", "loss": "smooth_l1", "fit_heads": IMAGES, "patch_weight": 0.0}
    objective, whole = built("distill", options), batch(views("distill", options))
    objective.prepare(lambda count: iter([whole]))
    with torch.no_grad():
        taught = objective.teacher(whole.views[-1])[:, 0]
        torch.testing.assert_close(objective.cls_mean, taught.mean(0))
        torch.testing.assert_close(objective.cls_sd, taught.std(0, correction=0))
        objective.cls_head.weight.zero_()
        objective.cls_head.bias.zero_()
    assert "cls_mean" in objective.state_dict(), "a resumed training needs it"


def test_features_on_the_device_are_the_teachers(teacher):
    options = {**teacher, "views": "flip", "cache": "device"}
    kept, fresh = built("distill", options), built("distill", {**options, "cache": None})
    whole = batch(views("distill", options))
    kept.prepare(lambda count: iter([whole]))
    assert not [name for name in kept.state_dict() if "teacher" in name]
    for step_number in range(3):
        one, other = (numbers(objective(whole, at(step_number))) for objective in (kept, fresh))
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"loss": "smooth_l1"}, "fit_heads=0: expected above 0 where loss is smooth_l1"),
        ({"fit_heads": 8, "head": "mlp"}, "fit_heads=8: expected 0 where head is mlp"),
        ({"loss": "l2"}, "loss='l2': expected cosine or smooth_l1"),
    ],
)
def test_options_that_do_not_go_together(wrong, said):
    """`fit_heads` with `head=mlp`, or `loss=smooth_l1` without it"""
    with pytest.raises(ValueError, match=said):
        make_options("distill", wrong)
