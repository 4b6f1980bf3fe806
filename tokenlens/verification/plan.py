"""The tasks of a verification: what is to be trained, analyzed and probed, in which folder, and how long it takes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tokenlens.models.names import training_of
from tokenlens.storage.run_folder import MANIFEST
from tokenlens.training.recipe import Recipe, recipe_of, recipes
from tokenlens.verification.data import VerificationData
from tokenlens.verification.scales.base import Regime, RegimeProbe
from tokenlens.verification.start import weights_of
from tokenlens.verification.variants import START, TWIN, TWIN_SEEDS, specialization_of

PLAN = ("number", "what", "variant", "seed", "folder", "state", "minutes", "basis", "command")


@dataclass(frozen=True)
class Task:
    """One run folder to be made.

    Args:
        what: ``"train"``, ``"analyze"`` or ``"probe"``.
        variant: of the model; ``"start"`` for the weights that all trainings start from.
        seed: of its pair.
        folder: where to.
        run: the training, or the start, whose model it is of.
        probe: for a probe.
    """

    what: str
    variant: str
    seed: int
    folder: Path
    run: Path
    probe: RegimeProbe | None = None

    @property
    def done(self) -> bool:
        """Whether it is finished."""
        return (self.folder / MANIFEST).is_file()

    @property
    def started(self) -> bool:
        """Whether there is a training to go on with."""
        return self.what == "train" and not self.done and (self.folder / "run.json").is_file()

    @property
    def model(self) -> str:
        """The name of its model."""
        return f"local-dir:{self.run}" if self.variant == START else str(self.run)

    def __str__(self) -> str:
        which = f" {self.probe.name}" if self.probe else ""
        seed = "" if self.variant == START else f", seed {self.seed}"
        return f"{self.what}{which}: {self.variant}{seed}"


def tasks_of(regime: Regime, out: Path, variants: Sequence[str], seeds: Sequence[int], masks: bool) -> list[Task]:
    """All tasks in order: what the start is first, then pair by pair, so that an early end leaves whole pairs.

    Args:
        masks: whether there is anything to segment.

    Raises:
        LookupError: for an unknown variant.
    """
    tasks: list[Task] = []

    def look(variant: str, seed: int, name: str, run: Path) -> None:
        tasks.append(Task("analyze", variant, seed, out / "analyses" / name, run))
        for probe in regime.probes:
            if masks or probe.task != "segmentation":
                tasks.append(Task("probe", variant, seed, out / "probes" / f"{name}_{probe.name}", run, probe))

    for variant in variants:
        specialization_of(variant)
    if regime.start is not None:
        look(START, 0, START, out / START)
    for seed in seeds:
        for variant in variants:
            name = f"{variant}_seed{seed}"
            run = out / "runs" / name
            tasks.append(Task("train", variant, seed, run, run))
        for variant in variants:
            name = f"{variant}_seed{seed}"
            look(variant, seed, name, out / "runs" / name)
    return tasks


def recipe_of_task(recipe: Recipe, task: Task) -> Recipe:
    """The recipe of one model."""
    seed = task.seed + (TWIN_SEEDS if task.variant == TWIN else 0)
    return replace(recipe, seed=seed, specialization=specialization_of(task.variant))


def plan_table(
    tasks: Sequence[Task], regime: Regime, data: VerificationData, steps: int, batch_size: int
) -> pd.DataFrame:
    """What is done and what is left, with the minutes that it takes.

    Args:
        steps: of a training.
        batch_size: its images per step.

    Returns:
        The columns of ``PLAN``; ``minutes`` is what is left of a task, 0 when it is done. ``basis`` says whether that
        is measured on tasks of this kind that are done in this folder, or the regime's own guess.
    """
    measured: dict[str, list[float]] = {}
    for task in tasks:
        if task.done:
            measured.setdefault(_kind(task), []).append(_minutes_taken(task.folder, task.what))
    rows = []
    first = not measured.get("train")
    for number, task in enumerate(tasks):
        known = measured.get(_kind(task))
        if known:
            minutes, basis = float(np.median(known)), "measured"
        else:
            minutes, basis = _guess(task, regime, steps * batch_size), f"guess: {regime.pace.hardware}"
        state = "done" if task.done else "open"
        if task.done:
            minutes = 0.0
        elif task.what == "train":
            if first:
                minutes += regime.pace.first
                first = False
            told = training_of(task.folder) if task.started else None
            if told is not None:
                state = f"at step {told['step']} of {told['steps']}"
                minutes *= 1 - told["step"] / told["steps"]
        rows.append(
            (
                number,
                task.what if task.probe is None else f"probe {task.probe.name}",
                task.variant,
                task.seed,
                str(task.folder),
                state,
                minutes,
                "" if task.done else basis,
                shlex.join(command_of(task, regime, data)),
            )
        )
    return pd.DataFrame(rows, columns=list(PLAN))


def command_of(task: Task, regime: Regime, data: VerificationData) -> list[str]:
    """The command that does a task by itself; empty for trainings that are not simply those of a named recipe."""
    if task.what == "analyze":
        return [
            "tokenlens",
            "analyze",
            task.model,
            "--images",
            data.images,
            "--limit",
            str(regime.analyzed_images),
            "--out",
            str(task.folder),
        ]
    if task.probe is not None:
        source = ["--source", task.probe.source] if task.probe.source else []
        limit = ["--limit", str(task.probe.limit)] if task.probe.limit else []
        of = data.masks if task.probe.task == "segmentation" else data.labelled
        return [
            "tokenlens",
            "probe",
            task.model,
            "--task",
            task.probe.task,
            "--data",
            str(of),
            *source,
            *limit,
            "--img-size",
            str(task.probe.image_size),
            "--seed",
            str(task.seed),
            "--out",
            str(task.folder),
        ]
    if regime.train_images is not None or not _is_named(regime):
        return []
    recipe = recipe_of_task(regime.recipe, task)
    preset = recipe.specialization
    specialize = (
        []
        if preset is None
        else ["--specialize", preset]
        if isinstance(preset, str)
        else ["--set", f"specialization={preset}"]
    )
    start = [] if regime.start is None else ["--checkpoint", str(weights_of(task.folder.parent.parent / START))]
    return [
        "tokenlens",
        "train",
        regime.recipe_name,
        "--data",
        data.labelled,
        *specialize,
        "--seed",
        str(recipe.seed),
        *start,
        "--out",
        str(task.folder),
    ]


def _is_named(regime: Regime) -> bool:
    return regime.recipe_name in recipes.names() and regime.recipe == recipe_of(regime.recipe_name)


def minutes_left(plan: pd.DataFrame) -> float:
    """Of all tasks together."""
    return float(plan["minutes"].sum())


def _kind(task: Task) -> str:
    return task.what if task.probe is None else task.probe.name


def _guess(task: Task, regime: Regime, images: int) -> float:
    pace = regime.pace
    if task.what == "train":
        return images / pace.train / 60
    return pace.analyze if task.probe is None else pace.probes.get(task.probe.task, 1.0)


def _minutes_taken(folder: Path, what: str) -> float:
    if what == "train":
        told: dict[str, Any] = training_of(folder) or {}
        return float(told.get("seconds", 0)) / 60
    file = folder / ("analysis.json" if what == "analyze" else "result.json")
    seconds = json.loads(file.read_text(encoding="utf-8"))["provenance"]["seconds"]
    return float(seconds["all"] if isinstance(seconds, dict) else seconds) / 60


def checked_seeds(seeds: int | Iterable[int]) -> list[int]:
    """So many seeds from 0, or these.

    Raises:
        ValueError: for none, or negative ones.
    """
    found = list(range(seeds)) if isinstance(seeds, int) else sorted(set(seeds))
    if not found or found[0] < 0 or found[-1] >= TWIN_SEEDS:
        raise ValueError(f"expected seeds from 0 to {TWIN_SEEDS - 1}, at least one, got {seeds}")
    return found
