"""Prepare a verification: resolve its scale, data, tasks and folder, and compare them with what the folder holds."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tokenlens.images.labelled.classes import LabelledImages
from tokenlens.images.labelled.masks import open_masks
from tokenlens.models.checkpoints import Checkpoint
from tokenlens.models.names import read_training_settings
from tokenlens.storage.files import write_json
from tokenlens.storage.provenance import made_by
from tokenlens.storage.run_folder import MANIFEST, SCHEMA_VERSION
from tokenlens.training.recipe import Recipe
from tokenlens.verification.data import VerificationData, find_data, training_images
from tokenlens.verification.result import SETTINGS_FILE, settings_of
from tokenlens.verification.scales.base import Scale, scale_of
from tokenlens.verification.start import find_start, make_start_model, read_start, save_start
from tokenlens.verification.tasks import PLAN, Task, command_of, tasks_of
from tokenlens.verification.variants import START, TWIN_SEEDS


@dataclass(frozen=True)
class Preparation:
    """Everything that is known before the first task runs.

    Attributes:
        scale: the scale, with the given start and teacher.
        data: sources of images.
        images: the training images; None in a plan without data.
        tasks: all tasks, in order.
        out: folder of the verification.
        settings: content of its ``verify.json``.
        start: the weights that trainings start from; None for random ones.
    """

    scale: Scale
    data: VerificationData
    images: LabelledImages | None
    tasks: list[Task]
    out: Path
    settings: dict[str, Any]
    start: Checkpoint | None

    def create_folder(self) -> None:
        """Write the settings and the start; a start that does not fit is an error before there is a folder."""
        model = None
        assert self.images is not None, "a plan without data cannot be run"
        if self.start is not None and not (self.out / START / MANIFEST).is_file():
            model = make_start_model(self.scale.recipe, self.images.classes, self.start, str(self.scale.start))
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / MANIFEST).unlink(missing_ok=True)
        write_json(self.out / SETTINGS_FILE, self.settings)
        if model is not None:
            save_start(model, self.out / START, self.settings["start"])

    def read_start(self) -> Checkpoint | None:
        """Return the weights that a training starts from."""
        return None if self.start is None else read_start(self.out / START, str(self.scale.start))


def prepare(
    scale: str | Scale,
    data: str | os.PathLike[str] | VerificationData | None,
    seeds: int | Iterable[int] | None,
    variants: Sequence[str] | None,
    out: str | os.PathLike[str] | None,
    start: str | os.PathLike[str] | None,
) -> Preparation:
    """Resolve the arguments of ``verify`` without writing anything.

    Raises:
        LookupError, ValueError, FileExistsError: see ``verify``.
    """
    name = scale if isinstance(scale, str) else scale.recipe_name
    scale = scale_of(scale) if isinstance(scale, str) else scale
    if start is not None:
        scale = replace(scale, start=os.fspath(start))
    sources = data if isinstance(data, VerificationData) else find_data(data, teacher_file=scale.teacher_file)
    if sources.teacher is not None and scale.recipe.objective == "distill":
        options = {**scale.recipe.objective_options, "teacher_checkpoint": sources.teacher}
        scale = replace(scale, recipe=replace(scale.recipe, objective_options=options))
    if scale.start == "teacher":
        teacher = scale.recipe.objective_options
        scale = replace(scale, start=teacher.get("teacher_checkpoint") or teacher["teacher"])
    folder = Path(out or f"reports/verify_{name}")
    wanted_seeds = check_seeds(scale.seeds if seeds is None else seeds)
    wanted_variants = scale.variants if variants is None else variants
    if sources.masks is None and all(probe.task == "segmentation" for probe in scale.probes):
        raise ValueError("there is nothing to segment: the data have no folder segmentation (--masks)")
    images = training_images(sources.labelled, scale.train_images)
    checkpoint = None if scale.start is None else find_start(scale.start, scale.start_blocks)
    configuration = {
        "scale": scale.to_dict(),
        "train_images": images.description,
        "masks": None if sources.masks is None else open_masks(sources.masks, "test").description,
        "analyzed": sources.images,
        "start": checkpoint and {"given": scale.start, "source": checkpoint.source, "sha256": checkpoint.sha256},
    }
    before = settings_of(folder)
    _check_folder(folder, before)
    if before:
        _check_configuration(folder, before, json.loads(json.dumps(configuration, default=str)))
    settings = {
        "schema_version": SCHEMA_VERSION,
        "kind": "verification",
        "name": name,
        "seeds": sorted({*wanted_seeds, *before.get("seeds", [])}),
        "variants": list(dict.fromkeys([*before.get("variants", []), *wanted_variants])),
        "data": asdict(sources),
        **configuration,
        "started": before.get("started", now()),
        **made_by("verify"),
    }
    tasks = tasks_of(scale, folder, settings["variants"], settings["seeds"], sources.masks is not None)
    return Preparation(scale, sources, images, tasks, folder, settings, checkpoint)


def check_seeds(seeds: int | Iterable[int]) -> list[int]:
    """Return the seeds as a sorted list; a single number means that many seeds from 0.

    Raises:
        ValueError: for no seed, or seeds out of range.
    """
    found = list(range(seeds)) if isinstance(seeds, int) else sorted(set(seeds))
    if not found or found[0] < 0 or found[-1] >= TWIN_SEEDS:
        raise ValueError(f"expected at least one seed, each from 0 to {TWIN_SEEDS - 1}, got {seeds}")
    return found


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _check_folder(folder: Path, before: dict[str, Any]) -> None:
    if not before and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
        raise FileExistsError(f"{folder} exists and is not a verification; choose another --out")
    if before and "scale" not in before:
        raise FileExistsError(f"{folder} holds a verdict on existing runs; choose another --out")


def _check_configuration(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = []
    for name, new in now.items():
        old = before.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            changed += _differences(name, old, new, ignore=("recipe", "source", "given"))
            changed += _differences(f"{name}.recipe", _whole_recipe(old), _whole_recipe(new))
        elif old != new:
            changed.append(f"{name} was {old!r} and is now {new!r}")
    if changed:
        raise ValueError(f"{folder} holds another verification: {'; '.join(changed)}. Choose another --out")


def _whole_recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a scale's recipe with the fields that older versions did not have; empty for other settings."""
    return Recipe.from_dict(settings["recipe"]).to_dict() if "recipe" in settings else {}


def _differences(name: str, old: dict[str, Any], new: dict[str, Any], ignore: Sequence[str] = ()) -> list[str]:
    return [
        f"{name}.{key} was {old.get(key)!r} and is now {value!r}"
        for key, value in new.items()
        if key not in ignore and old.get(key) != value
    ]


def plan(
    scale: str | Scale = "tiny",
    data: str | os.PathLike[str] | VerificationData | None = None,
    *,
    seeds: int | Iterable[int] | None = None,
    variants: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """Return the tasks that ``verify`` would do with the same arguments, without writing anything.

    Without data, the commands name the parts of a folder DATA, and the times of trainings are missing (NaN) where the
    scale does not fix the number of images.

    Returns:
        A row per task, with the columns of ``PLAN``.

    Raises:
        LookupError, ValueError, FileExistsError: see ``verify``.
    """
    if data is not None:
        return make_plan(prepare(scale, data, seeds, variants, out, start))
    name = scale if isinstance(scale, str) else scale.recipe_name
    chosen = scale_of(scale) if isinstance(scale, str) else scale
    if start is not None:
        chosen = replace(chosen, start=os.fspath(start))
    parts = VerificationData("DATA/classification", "DATA/segmentation", "DATA/photos")
    folder = Path(out or f"reports/verify_{name}")
    wanted = (chosen.variants if variants is None else variants, check_seeds(chosen.seeds if seeds is None else seeds))
    return make_plan(Preparation(chosen, parts, None, tasks_of(chosen, folder, *wanted, True), folder, {}, None))


def make_plan(preparation: Preparation) -> pd.DataFrame:
    """Return the tasks of a prepared verification, with the columns of ``PLAN``."""
    tasks, scale = preparation.tasks, preparation.scale
    measured: dict[str, list[float]] = {}
    for task in tasks:
        if task.done:
            measured.setdefault(task.name, []).append(task.minutes)
    rows = []
    first_minutes = 0.0 if measured.get("train") else scale.pace.first
    for number, task in enumerate(tasks):
        if task.name in measured:
            minutes, basis = float(np.median(measured[task.name])), "measured"
        else:
            minutes, basis = _guess(task, preparation), f"guess: {scale.pace.hardware}"
        state = "done" if task.done else "open"
        if task.done:
            minutes, basis = 0.0, ""
        elif task.what == "train":
            minutes, first_minutes = minutes + first_minutes, 0.0
            progress = read_training_settings(task.folder) if task.started else None
            if progress is not None:
                state = f"at step {progress['step']} of {progress['steps']}"
                minutes *= 1 - progress["step"] / progress["steps"]
        what = task.what if task.probe is None else f"probe {task.probe.name}"
        command = shlex.join(command_of(task, scale, preparation.data))
        rows.append((number, what, task.variant, task.seed, str(task.folder), state, minutes, basis, command))
    return pd.DataFrame(rows, columns=list(PLAN))


def _guess(task: Task, preparation: Preparation) -> float:
    pace, recipe = preparation.scale.pace, preparation.scale.recipe
    if task.what == "train":
        count = preparation.scale.train_images if preparation.images is None else len(preparation.images)
        return math.nan if count is None else recipe.count_steps(count) * recipe.batch_size / pace.train / 60
    return pace.analyze if task.probe is None else pace.probes.get(task.probe.task, 1.0)
