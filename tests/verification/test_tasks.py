"""The order of tasks, and the seeds of probes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.tiny_verification import tiny_scale
from tokenlens.training.recipe import get_recipe
from tokenlens.verification import ScaleProbe
from tokenlens.verification.data import VerificationData
from tokenlens.verification.tasks import command_of, probe_seed, tasks_of

PROBES = (ScaleProbe("segmentation", 32), ScaleProbe("segmentation", 32, draw=1))


def test_pairs_come_before_ablations_which_have_fewer_seeds():
    scale = tiny_scale(probes=PROBES, ablation_seeds=2)
    tasks = tasks_of(scale, Path("out"), ["norms", "standard", "twin", "paper"], [0, 1, 2], masks=True)
    trained = [(task.variant, task.seed) for task in tasks if task.what == "train"]
    assert trained == [
        *((variant, seed) for seed in range(3) for variant in ("standard", "paper")),
        *((variant, seed) for seed in range(2) for variant in ("norms", "twin")),
    ]


def test_draws_of_a_probe_have_seeds_and_folders_of_their_own():
    tasks = [
        task for task in tasks_of(tiny_scale(probes=PROBES), Path("out"), ["standard"], [0, 1], True) if task.probe
    ]
    assert len({(task.seed, probe_seed(task)) for task in tasks}) == len({task.folder for task in tasks}) == 4
    assert {probe_seed(task) for task in tasks if not task.probe.draw} == {0, 1}


def test_pairs_of_other_models_come_before_ablations_too():
    scale = tiny_scale(probes=PROBES, ablation_seeds=1)
    names = ["standard", "bias", "paper", "bias_paper", "mlp"]
    tasks = tasks_of(scale, Path("out"), names, [0, 1], masks=True)
    trained = [(task.variant, task.seed) for task in tasks if task.what == "train"]
    assert trained == [*((variant, seed) for seed in (0, 1) for variant in names[:-1]), ("mlp", 0)]


def test_the_commands_of_other_models_train_them():
    scale = tiny_scale(recipe=get_recipe("tiny_dino"), recipe_name="tiny_dino", train_images=None)
    data = VerificationData("labelled", "masks", "photos")
    commands = {
        task.variant: " ".join(command_of(task, scale, data))
        for task in tasks_of(scale, Path("out"), ["standard", "bias_paper", "registers"], [0], masks=True)
        if task.what == "train"
    }
    assert "--set" not in commands["standard"]
    assert "--specialize paper --set attention_bias=True" in commands["bias_paper"]
    assert "--set model_options.reg_tokens=4" in commands["registers"]


def test_other_models_cannot_start_from_weights_without_their_parts():
    """a variant `bias` or `registers` of a verification that starts from weights"""
    scale = replace(tiny_scale(), start="weights.safetensors")
    for variant in ("bias", "registers_paper"):
        with pytest.raises(ValueError, match=rf"the variant {variant} has weights that the start .* lacks"):
            tasks_of(scale, Path("out"), ["standard", variant], [0], masks=True)
