"""The tasks of a verification: trainings, analyses and probes, each with its run folder and its command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenlens.models.names import read_training_settings
from tokenlens.storage.result import SETTINGS
from tokenlens.storage.run_folder import MANIFEST
from tokenlens.training.recipe import Recipe, get_recipe, recipes
from tokenlens.verification.data import VerificationData
from tokenlens.verification.scales.base import Scale, ScaleProbe
from tokenlens.verification.start import start_weights
from tokenlens.verification.variants import (
    PAPER,
    PROBE_SEEDS,
    STANDARD,
    START,
    TWIN,
    TWIN_SEEDS,
    recipe_of_variant,
    split_variant,
)

PLAN = ("number", "what", "variant", "seed", "folder", "state", "minutes", "basis", "command")
"""Columns of a plan, a table of tasks. ``minutes`` is the time left for a task, 0 when it is done; ``basis`` says if
that is measured on finished tasks of the same kind in this folder or guessed from the scale's pace."""


@dataclass(frozen=True)
class Task:
    """One run folder to be made.

    Args:
        what: ``"train"``, ``"analyze"`` or ``"probe"``.
        variant: the model's variant; ``"start"`` for the weights that all trainings start from.
        seed: the seed that matches the models of all variants.
        folder: the run folder of this task.
        run: the folder of the model: a training, or the start.
        probe: the probe to run, for ``"probe"``.
    """

    what: str
    variant: str
    seed: int
    folder: Path
    run: Path
    probe: ScaleProbe | None = None

    @property
    def name(self) -> str:
        """``"train"``, ``"analyze"`` or the name of the probe."""
        return self.what if self.probe is None else self.probe.name

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return (self.folder / MANIFEST).is_file()

    @property
    def started(self) -> bool:
        """Whether there is a training to resume."""
        return self.what == "train" and not self.done and (self.folder / SETTINGS["training"]).is_file()

    @property
    def model(self) -> str:
        """The model's name, as ``analyze`` and ``probe`` take it."""
        return f"local-dir:{self.run}" if self.variant == START else str(self.run)

    @property
    def minutes(self) -> float:
        """Minutes that it took, for a finished task."""
        if self.what == "train":
            return float((read_training_settings(self.folder) or {}).get("seconds", 0)) / 60
        file = self.folder / SETTINGS["analysis" if self.what == "analyze" else "probe"]
        seconds = json.loads(file.read_text(encoding="utf-8"))["provenance"]["seconds"]
        return float(seconds["all"] if isinstance(seconds, dict) else seconds) / 60

    def __str__(self) -> str:
        probe = f" {self.probe.name}" if self.probe else ""
        seed = "" if self.variant == START else f", seed {self.seed}"
        return f"{self.what}{probe}: {self.variant}{seed}"


def tasks_of(scale: Scale, out: Path, variants: Sequence[str], seeds: Sequence[int], masks: bool) -> list[Task]:
    """Return all tasks in order: of the start, of standard and paper (of each kind of model), of the others.

    Each is done seed by seed, so an early end leaves complete seeds, and F3 and F6 come before the ablations.

    Args:
        scale: the scale.
        out: folder of the verification.
        variants: names of the variants.
        seeds: seeds of the trainings.
        masks: whether there are masks for segmentation.

    Raises:
        LookupError: for an unknown variant.
        ValueError: for a variant with registers or attention bias where trainings start from weights without.
    """
    tasks: list[Task] = []

    def measure(variant: str, seed: int, name: str, run: Path) -> None:
        tasks.append(Task("analyze", variant, seed, out / "analyses" / name, run))
        for probe in scale.probes:
            if masks or probe.task != "segmentation":
                tasks.append(Task("probe", variant, seed, out / "probes" / f"{name}_{probe.name}", run, probe))

    for variant in variants:
        recipe_of_variant(scale.recipe, variant)
        if scale.start is not None and split_variant(variant)[0]:
            raise ValueError(
                f"the variant {variant} has weights that the start {scale.start!r} lacks, so it is trained from random "
                "weights; choose a scale without a start, or leave the variant out"
            )
    if scale.start is not None:
        measure(START, 0, START, out / START)
    pair = [variant for variant in variants if split_variant(variant)[1] in (STANDARD, PAPER)]
    others = [variant for variant in variants if variant not in pair]
    for some, their_seeds in ((pair, seeds), (others, seeds[: scale.ablation_seeds])):
        for seed in their_seeds:
            runs = {variant: out / "runs" / f"{variant}_seed{seed}" for variant in some}
            tasks += [Task("train", variant, seed, run, run) for variant, run in runs.items()]
            for variant, run in runs.items():
                measure(variant, seed, run.name, run)
    return tasks


def probe_seed(task: Task) -> int:
    """Return the seed of a probe: models of one seed share its draws."""
    return task.seed + PROBE_SEEDS * (task.probe.draw if task.probe else 0)


def recipe_of_task(recipe: Recipe, task: Task) -> Recipe:
    """Return the recipe of one training."""
    seed = task.seed + (TWIN_SEEDS if split_variant(task.variant)[1] == TWIN else 0)
    return replace(recipe_of_variant(recipe, task.variant), seed=seed)


def command_of(task: Task, scale: Scale, data: VerificationData) -> list[str]:
    """Return the command that does one task; empty for a training that no command with a named recipe repeats."""
    if task.what == "analyze":
        options = {"--images": data.images, "--limit": scale.analyzed_images}
        return _command("analyze", task.model, options, task)
    if task.probe is not None:
        options = {
            "--task": task.probe.task,
            "--data": data.masks if task.probe.task == "segmentation" else data.labelled,
            "--source": task.probe.source,
            "--limit": task.probe.limit,
            "--img-size": task.probe.image_size,
            "--seed": probe_seed(task),
        }
        return _command("probe", task.model, options, task)
    named = scale.recipe_name in recipes.names() and scale.recipe == get_recipe(scale.recipe_name)
    if scale.train_images is not None or not named:
        return []
    recipe = recipe_of_task(scale.recipe, task)
    preset = recipe.specialization
    settings = {
        "specialization": None if isinstance(preset, str) else preset,
        "attention_bias": recipe.attention_bias or None,
        "model_options.reg_tokens": recipe.model_options.get("reg_tokens") if recipe != scale.recipe else None,
    }
    options = {
        "--data": data.labelled,
        "--specialize": preset if isinstance(preset, str) else None,
        "--set": [f"{name}={value}" for name, value in settings.items() if value is not None],
        "--seed": recipe.seed,
        "--checkpoint": None if scale.start is None else start_weights(task.folder.parent.parent / START),
    }
    return _command("train", scale.recipe_name, options, task)


def _command(name: str, argument: str, options: dict[str, object], task: Task) -> list[str]:
    lists = {option: value if isinstance(value, list) else [value] for option, value in options.items()}
    given = [
        (option, str(one)) for option, several in lists.items() for one in several if one is not None and one != ""
    ]
    return ["tokenlens", name, argument, *(word for pair in given for word in pair), "--out", str(task.folder)]
