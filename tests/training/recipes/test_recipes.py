"""Every recipe is complete and described, and runs end to end, standard and specialized."""

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

from tests.support.command_line import REPOSITORY, tokenlens
from tests.support.markdown import add_files, blocks, commands
from tests.support.tiny_training import train
from tokenlens.training.backbone import make_backbone
from tokenlens.training.objectives.base import make_options, objectives
from tokenlens.training.overrides import override
from tokenlens.training.recipe import get_recipe, recipes

NAMES = recipes.names()
FULL = [
    f"{kind}_{size}_{data}"
    for kind, data in (("deit3", "imagenet1k"), ("dinov2", "imagenet22k"))
    for size in ("small", "base", "large")
]
FIELDS = ("Command", "Specialized", "Data", "Hardware", "Time", "Result")


def read_fields(name):
    """Return the fields of a recipe's docstring: command, hardware, time …"""
    text = recipes.module(name).__doc__
    found = re.findall(r"^(\w+): +(.+(?:\n {13}.+)*)", text, re.MULTILINE)
    return {field: re.sub(r"\s*\\?\n\s+", " ", value) for field, value in found}


def test_there_are_recipes_of_all_three_sizes():
    assert {name.partition("_")[0] for name in NAMES} >= {"tiny", "small", "deit3", "dinov2"}
    assert set(FULL) <= set(NAMES)
    for objective in objectives.names():
        assert get_recipe(f"tiny_{objective}").objective == objective
        assert get_recipe(f"small_{objective}").objective == objective


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_a_reader_needs(name):
    fields = read_fields(name)
    assert set(FIELDS) <= set(fields)
    assert recipes.describe(name).endswith(".")
    assert "--specialize paper" in fields["Specialized"]
    result = fields["Result"]
    measured = "n = " in result and "interval" in result
    assert measured or "not measured" in result, "an n and a spread, or that there is none"
    if name in FULL:
        assert "torchrun" in fields["Command"]
        assert "strategy=fsdp2" in fields["FSDP2"]
        assert fields["SLURM"].startswith("srun ")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["Command", "SLURM"])
def test_its_commands_are_commands(name, field):
    fields = read_fields(name)
    if field not in fields:
        pytest.skip("it needs no cluster")
    words = shlex.split(fields[field])
    words = words[next(i for i, word in enumerate(words) if word in ("tokenlens", "tokenlens_cli")) + 1 :]
    assert words[:2] == ["train", name]
    command = get_command(app).commands["train"]
    context = command.make_context("train", words[1:], resilient_parsing=False)
    settings = [text.replace("VALUE", "1") for text in context.params["set"] or ()]
    override(get_recipe(name), settings)
    if field == "SLURM":
        requested = dict(re.findall(r"--(nodes|ntasks-per-node) (\d+)", fields[field]))
        assert int(requested["nodes"]) == context.params["nodes"]
        assert int(requested["ntasks-per-node"]) == context.params["devices"]


@pytest.mark.parametrize("preset", [None, "paper"])
@pytest.mark.parametrize("name", NAMES)
def test_its_model_can_be_made(name, preset):
    recipe = replace(get_recipe(name), specialization=preset)
    with torch.device("meta"):
        model = make_backbone(recipe, classes=10)
    assert model.patch_embed.grid_size[0] * model.patch_embed.patch_size[0] == recipe.image_size
    components = {path.rsplit(".", 1)[-1] for path, module in model.named_modules() if hasattr(module, "patch")}
    expected = {"norm1", "norm2", "norm", "qkv"} | ({"ls1", "ls2"} if "init_values" in recipe.model_options else set())
    assert components == (set() if preset is None else expected)


@pytest.mark.parametrize("name", NAMES)
def test_its_options_are_the_objectives(name):
    recipe = get_recipe(name)
    options = make_options(recipe.objective, recipe.objective_options)
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
def test_a_batch_divides_among_the_gpus(name):
    fields, recipe = read_fields(name), get_recipe(name)
    gpus = int(re.search(r"^(\d+) GPUs", fields["Hardware"])[1])
    requested = {key: int(value) for key, value in re.findall(r"--(nodes|ntasks-per-node) (\d+)", fields["SLURM"])}
    assert requested["nodes"] * requested["ntasks-per-node"] == gpus
    assert recipe.batch_size % (2 * gpus) == 0
    at_a_time = re.search(r"(\d+) images each", fields["Hardware"])
    if at_a_time:
        assert recipe.batch_size == gpus * int(at_a_time[1])


def test_sizes_of_a_family_differ_only_as_documented():
    small, base, large = (get_recipe(f"deit3_{size}_imagenet1k") for size in ("small", "base", "large"))
    assert replace(base, model=small.model, model_options=small.model_options, image_size=224, lr=4e-3) == small
    assert replace(large, model=base.model, model_options=base.model_options) == base
    small, base, large = (get_recipe(f"dinov2_{size}_imagenet22k") for size in ("small", "base", "large"))
    assert replace(base, model=large.model, model_options=large.model_options) == large
    assert replace(small, model=base.model) == base


def tiny(name, weights):
    """Return settings with which two steps of a recipe take a second on a CPU."""
    recipe = get_recipe(name)
    settings = ["steps=2", "batch_size=2", "log_every=1", "workers=0", "precision=32-true", "diagnose_images=2"]
    settings += ["model_options.depth=2", "model_options.embed_dim=48", "model_options.num_heads=3"]
    if recipe.objective in ("dino", "dinov2"):
        settings += [f"objective_options.{name}" for name in ("prototypes=64", "hidden=64", "local_crops=2")]
    if recipe.objective == "distill":
        settings += [
            "objective_options.teacher=test_vit",
            "objective_options.teacher_image_size=64",
            f"objective_options.teacher_checkpoint='{weights}'",
            "objective_options.cache=none",
        ]
    return settings


@pytest.mark.parametrize("name", NAMES)
def test_two_tiny_batches_standard_and_specialized(name, data, weights, tmp_path):
    losses = {}
    for preset in (None, "paper"):
        run = train(name, data, tmp_path / str(preset), specialize=preset, settings=tiny(name, weights))
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


def test_a_recipe_is_one_file(photographs, data, weights, tmp_path, monkeypatch):
    """The example of docs/add-a-recipe.md: its commands run, and it keeps the laws of all recipes."""
    page = REPOSITORY / "docs" / "add-a-recipe.md"
    add_files(blocks(page, "python"), tmp_path / "added", monkeypatch)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photographs, tmp_path / "photographs")
    for line in commands(page):
        words = shlex.split(line)
        assert words[0] == "tokenlens"
        result = tokenlens(*words[1:])
        assert result.exit_code == 0, line + result.stderr
        assert "minute_dino" in result.stdout or "emergence.svg" in result.stdout
    assert (tmp_path / "runs" / "idea" / "MANIFEST.json").is_file()
    test_it_says_what_a_reader_needs("minute_dino")
    test_its_commands_are_commands("minute_dino", "Command")
    for preset in (None, "paper"):
        test_its_model_can_be_made("minute_dino", preset)
    test_its_options_are_the_objectives("minute_dino")
    test_two_tiny_batches_standard_and_specialized("minute_dino", data, weights, tmp_path)
