"""What every recipe must be: complete, described, makeable, and able to run end to end, standard and specialized."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenlens_cli.app import app
from typer.main import get_command

from tests.support.command_line import REPOSITORY, finished, process
from tests.support.markdown import blocks, commands
from tokenlens.training.backbone import make_backbone
from tokenlens.training.objectives.base import objectives, options_of
from tokenlens.training.recipe import recipe_of, recipes
from tokenlens.training.train import train

NAMES = recipes.names()
FULL = [
    f"{kind}_{size}_{data}"
    for kind, data in (("deit3", "imagenet1k"), ("dinov2", "imagenet22k"))
    for size in ("small", "base", "large")
]
FIELDS = ("Command", "Specialized", "Data", "Hardware", "Time", "Result")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of two images, 64 × 48 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def about(name):
    """The fields of a recipe's docstring: what it says of command, hardware, time …"""
    text = recipes.module(name).__doc__
    found = re.findall(r"^(\w+): +(.+(?:\n {13}.+)*)", text, re.MULTILINE)
    return {field: re.sub(r"\s*\\?\n\s+", " ", value) for field, value in found}


def test_there_are_recipes_of_all_three_sizes():
    assert {name.partition("_")[0] for name in NAMES} >= {"tiny", "small", "deit3", "dinov2"}
    assert set(FULL) <= set(NAMES)
    for objective in objectives.names():
        assert recipe_of(f"tiny_{objective}").objective == objective
        assert recipe_of(f"small_{objective}").objective == objective


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_a_reader_needs(name):
    told = about(name)
    assert set(FIELDS) <= set(told)
    assert recipes.describe(name).endswith(".")
    assert "--specialize paper" in told["Specialized"]
    result = told["Result"]
    measured = "n = " in result and "interval" in result
    assert measured or "not measured" in result, "an n and a spread, or that there is none"
    if name in FULL:
        assert "torchrun" in told["Command"]
        assert "strategy=fsdp2" in told["FSDP2"]
        assert told["SLURM"].startswith("srun ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["Command", "SLURM"])
def test_its_commands_are_commands(name, field):
    told = about(name)
    if field not in told:
        pytest.skip("it needs no cluster")
    words = shlex.split(told[field])
    words = words[next(i for i, word in enumerate(words) if word in ("tokenlens", "tokenlens_cli")) + 1 :]
    assert words[:2] == ["train", name]
    command = get_command(app).commands["train"]
    context = command.make_context("train", words[1:], resilient_parsing=False)
    settings = [text.replace("VALUE", "1") for text in context.params["set"] or ()]
    recipe_of(name).with_settings(settings, objectives.get(recipe_of(name).objective).Options)
    if field == "SLURM":
        asked = dict(re.findall(r"--(nodes|ntasks-per-node) (\d+)", told[field]))
        assert int(asked["nodes"]) == context.params["nodes"]
        assert int(asked["ntasks-per-node"]) == context.params["devices"]


@pytest.mark.parametrize("preset", [None, "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_its_model_can_be_made(name, preset):
    recipe = replace(recipe_of(name), specialization=preset)
    with torch.device("meta"):
        model = make_backbone(recipe, classes=10)
    assert model.patch_embed.grid_size[0] * model.patch_embed.patch_size[0] == recipe.image_size
    components = {path.rsplit(".", 1)[-1] for path, module in model.named_modules() if hasattr(module, "patch")}
    expected = {"norm1", "norm2", "norm", "qkv"} | ({"ls1", "ls2"} if "init_values" in recipe.model_options else set())
    assert components == (set() if preset is None else expected)


@pytest.mark.parametrize("name", NAMES)
def test_its_options_are_the_objective_s(name):
    recipe = recipe_of(name)
    options = options_of(recipe.objective, recipe.objective_options)
    image = Image.fromarray(np.zeros((300, 400, 3), dtype=np.uint8))
    views = objectives.get(recipe.objective).views(options, recipe.image_size, (0.5,) * 3, (0.2,) * 3)(image)
    sizes = [view.shape[-1] for view in views]
    assert sizes[0] == recipe.image_size
    patch = recipe.model_options.get("patch_size") or int(re.search(r"patch(\d+)", recipe.model)[1])
    if recipe.objective in ("dino", "dinov2"):
        assert sizes == [recipe.image_size] * 2 + [options.local_size] * options.local_crops
        assert options.local_size % patch == 0
        assert recipe.image_size > options.local_size
    if recipe.objective == "distill":
        assert options.teacher_image_size // 14 == recipe.image_size // patch, "the teacher's grid is the student's"


@pytest.mark.parametrize("name", FULL)
def test_a_batch_can_be_shared_out(name):
    told, recipe = about(name), recipe_of(name)
    gpus = int(re.search(r"^(\d+) GPUs", told["Hardware"])[1])
    asked = {key: int(value) for key, value in re.findall(r"--(nodes|ntasks-per-node) (\d+)", told["SLURM"])}
    assert asked["nodes"] * asked["ntasks-per-node"] == gpus
    assert recipe.batch_size % (2 * gpus) == 0
    at_a_time = re.search(r"(\d+) images each", told["Hardware"])
    if at_a_time:
        assert recipe.batch_size == gpus * int(at_a_time[1])


def test_sizes_of_a_kind_differ_in_what_their_pages_say_only():
    small, base, large = (recipe_of(f"deit3_{size}_imagenet1k") for size in ("small", "base", "large"))
    assert replace(base, model=small.model, model_options=small.model_options, image_size=224, lr=4e-3) == small
    assert replace(large, model=base.model, model_options=base.model_options) == base
    small, base, large = (recipe_of(f"dinov2_{size}_imagenet22k") for size in ("small", "base", "large"))
    assert replace(base, model=large.model, model_options=large.model_options) == large
    assert replace(small, model=base.model) == base


def tiny(name, weights):
    """Settings under which two steps of a recipe fit a CPU, and nothing else about it changes."""
    recipe = recipe_of(name)
    settings = ["steps=2", "batch_size=2", "log_every=1", "workers=0", "precision=32-true", "diagnose_images=2"]
    if name not in ("deit3_small_imagenet1k", "dinov2_small_imagenet22k"):
        settings.append("model_options.depth=2")
    if recipe.objective in ("dino", "dinov2"):
        settings += ["objective_options.prototypes=64", "objective_options.hidden=64"]
    if recipe.objective == "distill":
        settings += [
            "objective_options.teacher=test_vit",
            "objective_options.teacher_image_size=64",
            f"objective_options.teacher_checkpoint='{weights}'",
            "objective_options.cache=none",
        ]
    return settings


SLOW = ("large", "dinov2_small", "dinov2_base", "deit3_small", "deit3_base")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if any(part in name for part in SLOW) else []) for name in NAMES],
)
def test_two_tiny_batches_standard_and_specialized(name, pictures, weights, tmp_path):
    losses = {}
    for preset in (None, "paper"):
        run = train(name, pictures, tmp_path / str(preset), specialize=preset, settings=tiny(name, weights))
        assert run.finished
        assert run.step == 2
        assert run.settings["name"] == name
        assert run.recipe.specialization == preset
        losses[preset] = run.metrics
        assert np.isfinite(losses[preset]["loss"]).all()
        model = run.model()
        assert not model.training
        assert any(".cls." in key for key in model.state_dict()) == (preset is not None)
    first = [float(losses[preset]["loss"].iloc[0]) for preset in losses]
    assert first[0] == pytest.approx(first[1], rel=1e-5), "they start as the same function"


@pytest.mark.slow
def test_a_recipe_is_one_file(photographs, tmp_path):
    """The worked example of docs/add-a-recipe.md, in a copy of the source tree: its commands and its laws."""
    page = REPOSITORY / "docs" / "add-a-recipe.md"
    for folder in ("tokenlens", "cli", "tests"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(photographs, tmp_path / "photographs")
    [added] = blocks(page, "python")
    assert not (tmp_path / added.path).exists()
    (tmp_path / added.path).write_text(added.text, encoding="utf-8")
    for line in commands(page):
        words = shlex.split(line)
        assert words[0] == "tokenlens"
        exit_code, stdout, stderr = finished(process("-m", "tokenlens_cli", *words[1:], cwd=tmp_path, tree=tmp_path))
        assert exit_code == 0, line + stderr
        assert "minute_dino" in stdout or "emergence.svg" in stdout
    assert (tmp_path / "runs" / "idea" / "MANIFEST.json").is_file()
    running = process(
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/training/recipes/test_recipes.py",
        "-k",
        "minute_dino",
        "-rA",
        cwd=tmp_path,
        tree=tmp_path,
    )
    exit_code, stdout, stderr = finished(running)
    assert exit_code == 0, stdout + stderr
    assert len(re.findall(r"^PASSED .*minute_dino", stdout, re.MULTILINE)) == 6, stdout
