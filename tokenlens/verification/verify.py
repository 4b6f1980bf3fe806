"""``verify``: trains what is missing, analyzes and probes it, and judges the findings F1 to F6.

Everything is a run folder of its own, so that a verification that was stopped or killed goes on with the same call, and
everything that is judged is read back from those folders: what was computed here and what was given with ``runs``
goes the same way.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch

from tokenlens.analysis.analyze import analyze
from tokenlens.analysis.findings import Finding, judge
from tokenlens.images.labelled.classes import LabelledImages
from tokenlens.images.labelled.masks import open_masks
from tokenlens.models.checkpoints import Checkpoint
from tokenlens.probes import probe
from tokenlens.specialization import costs
from tokenlens.storage.files import write_json
from tokenlens.storage.provenance import made_by
from tokenlens.storage.run_folder import MANIFEST, SCHEMA_VERSION
from tokenlens.training.train import train
from tokenlens.verification.data import VerificationData, find_data, training_images
from tokenlens.verification.findings import COSTS, judge_pairs, over_seeds
from tokenlens.verification.numbers import PAPER, STANDARD, continued, differences, effects
from tokenlens.verification.plan import PLAN, Task, checked_seeds, plan_table, recipe_of_task, tasks_of
from tokenlens.verification.result import Verification, settings_of
from tokenlens.verification.runs import VERIFICATION, Gathered, curves, emergence, gather
from tokenlens.verification.scales.base import Regime, regime_of
from tokenlens.verification.stage_effects import stage_effects, stages_by_seed
from tokenlens.verification.start import find_start, is_kept, keep_start, kept_start, started_model
from tokenlens.verification.variants import START

__all__ = ["Progress", "Verification", "plan", "verify"]

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, and how many of its steps or images are done and there are in all."""

COSTED = "vit_base_patch16_224"


def verify(
    recipe: str | Regime = "tiny",
    data: str | os.PathLike[str] | VerificationData | None = None,
    *,
    seeds: int | Iterable[int] | None = None,
    variants: Sequence[str] | None = None,
    runs: Sequence[str | os.PathLike[str]] | None = None,
    out: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
    max_minutes: float | None = None,
    task: int | None = None,
    device: str = "auto",
    report: bool = True,
    progress: Progress | None = None,
) -> Verification:
    """Train standard and specialized models over several seeds, analyze and probe them, and judge the findings.

    The same call goes on where another one ended, however it ended; what is done is not done again. More seeds or
    variants may be asked for later.

    Args:
        recipe: a regime: a name of ``tokenlens.verification.scales``, or one of your own.
        data: a folder with ``classification``, ``segmentation``, ``photos`` and ``weights``, or where each of them is.
        seeds: how many models of each variant, or which; by default the regime's.
        variants: names as ``tokenlens.verification.variants.specialization_of`` takes them; by default the regime's.
        runs: judge these run folders (trainings, their analyses and probes, verifications) instead of training any.
        out: the folder; by default ``reports/verify_NAME``.
        start: weights that every training starts from, standard and specialized alike: a file, the run folder of a
            training or the name of a model; by default the regime's, if it has any.
        max_minutes: stop after this time, inside a training at a checkpoint. What is there is judged.
        task: do only the task of this number in the plan, and judge nothing: for arrays of jobs.
        device: where to compute.
        report: whether to draw figures and page.
        progress: see ``Progress``.

    Raises:
        LookupError: for an unknown regime, variant or task.
        ValueError: for data that are not there, or a folder with a verification of another configuration.
        FileExistsError: if the folder holds something else.
    """
    if runs is not None:
        return _judged(Path(out or "reports/verify"), runs, None, report, {"given": [os.fspath(run) for run in runs]})
    work = _prepare(recipe, data, seeds, variants, out, start)
    until = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
    tasks = work.tasks
    if task is not None:
        if not 0 <= task < len(tasks):
            raise LookupError(f"the plan has tasks 0 to {len(tasks) - 1}, got {task}")
        tasks = [tasks[task]]
        trained = tasks[0].what != "train" and tasks[0].variant != START  # the start is made by `begin`
        if trained and not (tasks[0].run / MANIFEST).is_file():
            raise ValueError(f"task {task} ({tasks[0]}) needs the finished training {tasks[0].run}")
    work.begin()
    _work(work, tasks, until, device, progress)
    if task is not None:
        return Verification.load(work.out) if (work.out / "findings.json").is_file() else _empty(work)
    return _judged(work.out, [work.out], work, report, work.settings)


def plan(
    recipe: str | Regime = "tiny",
    data: str | os.PathLike[str] | VerificationData | None = None,
    *,
    seeds: int | Iterable[int] | None = None,
    variants: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    start: str | os.PathLike[str] | None = None,
) -> pd.DataFrame:
    """The tasks of ``verify`` with these arguments; nothing is written.

    Returns:
        The columns of ``tokenlens.verification.plan.PLAN``, among them ``state``, ``minutes`` (what is left) and
        ``command``.

    Raises:
        LookupError, ValueError, FileExistsError: as ``verify``.
    """
    return _prepare(recipe, data, seeds, variants, out, start).plan()


# -- what is to be done


@dataclass
class _Work:
    """A verification on its way."""

    regime: Regime
    data: VerificationData
    images: LabelledImages
    tasks: list[Task]
    out: Path
    settings: dict[str, Any]
    start: Checkpoint | None

    def plan(self) -> pd.DataFrame:
        recipe = self.regime.recipe
        steps = recipe.steps or max(1, round((recipe.epochs or 0) * len(self.images) / recipe.batch_size))
        return plan_table(self.tasks, self.regime, self.data, steps, recipe.batch_size)

    def begin(self) -> None:
        model, given = None, str(self.regime.start)
        if self.start is not None and not is_kept(self.out / START):
            # What does not fit is said before there is a folder.
            model = started_model(self.regime.recipe, self.images.classes, self.start, given)
        self.out.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            (self.out / MANIFEST).unlink()
        write_json(self.out / VERIFICATION, self.settings)
        if model is not None:
            keep_start(model, self.out / START, self.settings["start"])

    def starting(self) -> Checkpoint | None:
        """What a training starts from."""
        return None if self.start is None else kept_start(self.out / START, str(self.regime.start))


def _prepare(
    recipe: str | Regime,
    data: str | os.PathLike[str] | VerificationData | None,
    seeds: int | Iterable[int] | None,
    variants: Sequence[str] | None,
    out: str | os.PathLike[str] | None,
    start: str | os.PathLike[str] | None,
) -> _Work:
    name = recipe if isinstance(recipe, str) else recipe.recipe_name
    regime = regime_of(recipe) if isinstance(recipe, str) else recipe
    if start is not None:
        regime = replace(regime, start=os.fspath(start))
    where = data if isinstance(data, VerificationData) else find_data(data, teacher_file=regime.teacher_file)
    if where.teacher is not None and regime.recipe.objective == "distill":
        options = {**regime.recipe.objective_options, "teacher_checkpoint": where.teacher}
        regime = replace(regime, recipe=replace(regime.recipe, objective_options=options))
    folder = Path(out or f"reports/verify_{name}")
    numbers = checked_seeds(regime.seeds if seeds is None else seeds)
    names = list(dict.fromkeys(regime.variants if variants is None else variants))
    if where.masks is None and not any(probe.task != "segmentation" for probe in regime.probes):
        raise ValueError("there is nothing to segment: the data have no folder segmentation (--masks)")
    images = training_images(where.labelled, regime.train_images)
    begun = None if regime.start is None else find_start(regime.start)
    decides = {
        "regime": regime.to_dict(),
        "train_images": images.description,
        "masks": None if where.masks is None else open_masks(where.masks, "test").description,
        "analyzed": where.images,
        "start": begun and {"given": regime.start, "source": begun.source, "sha256": begun.sha256},
    }
    before = settings_of(folder)
    _check(folder, before, json.loads(json.dumps(decides, default=str)))
    settings = {
        "schema_version": SCHEMA_VERSION,
        "kind": "verification",
        "name": name,
        "seeds": sorted({*numbers, *before.get("seeds", [])}),
        "variants": list(dict.fromkeys([*before.get("variants", []), *names])),
        "data": asdict(where),
        **decides,
        "started": before.get("started", _now()),
        **made_by("verify"),
    }
    tasks = tasks_of(regime, folder, settings["variants"], settings["seeds"], where.masks is not None)
    return _Work(regime, where, images, tasks, folder, settings, begun)


def _check(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """ValueError if another configuration is being verified in a folder."""
    if not before:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists and holds no verification; choose another --out")
        return
    if "regime" not in before:
        raise FileExistsError(f"{folder} holds a verdict on given runs; choose another --out")
    changed = []
    for name in now:
        old, new = before.get(name), now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            recipes = old.pop("recipe", {}), new.get("recipe", {})
            changed += [
                f"{name}.recipe.{key} is {recipes[0].get(key)!r} there and {recipes[1].get(key)!r} now"
                for key in recipes[1]
                if recipes[0].get(key) != recipes[1].get(key)
            ]
            changed += [
                f"{name}.{key} is {old.get(key)!r} there and {new[key]!r} now"
                for key in new
                if key not in ("recipe", "source", "given") and old.get(key) != new[key]
            ]
        elif old != new:
            changed.append(f"{name} is {old!r} there and {new!r} now")
    if changed:
        raise ValueError(f"{folder} holds another verification: {'; '.join(changed)}. Choose another --out")


# -- doing it


def _work(
    work: _Work,
    tasks: Sequence[Task],
    until: float,
    device: str,
    progress: Progress | None,
) -> None:
    """Do the tasks that are left, one after the other, as long as there is time."""
    left = [task for task in tasks if not task.done]
    minutes = dict(zip(work.tasks, work.plan()["minutes"], strict=True))
    for number, task in enumerate(left):
        remaining = (until - time.monotonic()) / 60
        # A training stops by itself. Anything else is begun only if it is likely to be done in time; the first one
        # always, or a slot that is too short would never get anywhere.
        if remaining <= 0 or (task.what != "train" and number > 0 and minutes[task] > remaining):
            return
        if task.done or (task.what != "train" and not (task.run / MANIFEST).is_file()):
            continue  # done by another process meanwhile, or not trained
        told = f"{number + 1} of {len(left)}: {task}"
        if progress is not None:
            progress(told, 0, None)

        def report(done: int, total: int | None, *_: object, told: str = told) -> None:
            if progress is not None:
                progress(told, done, total)

        if task.what == "train":
            recipe = recipe_of_task(work.regime.recipe, task)
            run = train(
                recipe,
                work.images,
                task.folder,
                name=work.regime.recipe_name,
                device=device,
                checkpoint=work.starting(),
                max_minutes=None if math.isinf(remaining) else remaining,
                progress=report,
            )
            if not run.finished:
                return
        elif task.probe is None:
            analysis = analyze(
                task.model,
                work.data.images,
                limit=work.regime.analyzed_images,
                batch_size=32,
                device=device,
                progress=report,
            )
            analysis.save(task.folder, overwrite=True, report=False)
        else:
            wanted = task.probe
            source = work.data.masks if wanted.task == "segmentation" else work.data.labelled
            # The pair shares the probe's draws as it shares the training's. Features of patches are large and used
            # once; those of images serve two probes.
            probe(
                task.model,
                wanted.task,
                source,
                source=wanted.source,
                img_size=wanted.image_size,
                limit=wanted.limit,
                seed=task.seed,
                device=device,
                cache=wanted.task != "segmentation",
                progress=report,
            ).save(task.folder, overwrite=True, report=False)


# -- judging


def _judged(
    out: Path, folders: Sequence[str | os.PathLike[str]], work: _Work | None, report: bool, settings: dict[str, Any]
) -> Verification:
    if work is None:
        if any(Path(folder).resolve() == out.resolve() for folder in folders):
            raise ValueError(f"--out {out} is one of the runs that are judged; choose another --out")
        if out.exists() and any(out.iterdir()) and "given" not in settings_of(out):
            raise FileExistsError(f"{out} exists and is no verdict on given runs; choose another --out")
        settings = {
            "schema_version": SCHEMA_VERSION,
            "kind": "verification",
            "name": "",
            "started": _now(),
            **settings,
            **made_by("verify"),
        }
    found = gather(folders)
    cost = costs_of_base()
    stages = stages_by_seed(found.analyses | found.started)
    verification = Verification(
        out,
        _findings(found, cost),
        found.numbers,
        effects(found.numbers),
        differences(found.numbers),
        curves(found.models),
        emergence(found.models),
        cost,
        work.plan() if work is not None else pd.DataFrame(columns=list(PLAN)),
        found.left_out,
        settings | {"runs": _told(found), "ended": _now()},
        continued=continued(found.numbers, found.start),
        stages=stage_effects(stages),
        stages_by_seed=stages,
    )
    verification.save(out, report=report)
    return verification


def _empty(work: _Work) -> Verification:
    nothing = Gathered()
    return Verification(
        work.out,
        [],
        nothing.numbers,
        effects(nothing.numbers),
        differences(nothing.numbers),
        curves([]),
        emergence([]),
        pd.DataFrame(columns=list(COSTS)),
        work.plan(),
        settings=work.settings,
    )


def _findings(found: Gathered, cost: pd.DataFrame) -> list[Finding]:
    of: dict[tuple[str, str], dict[int, list[Finding]]] = {}
    pair = {STANDARD: 0, PAPER: 1}
    first = sorted(found.analyses.items(), key=lambda one: (one[0][0], pair.get(one[0][1], 2), one[0][1:]))
    for (setting, variant, seed), analysis in first:
        of.setdefault((setting, variant), {})[seed] = judge(analysis)
    findings = []
    for place, name in enumerate(("F1", "F2")):
        for (setting, variant), judged in of.items():
            if setting:
                each = {seed: judged[seed][place] for seed in sorted(judged)}
                findings.append(over_seeds(name, each, variant, setting))
            else:
                findings.append(replace(judged[-1][place], subject=variant, scale="this model"))
    return findings + judge_pairs(found.numbers, cost)


def costs_of_base() -> pd.DataFrame:
    """What the presets cost in ViT-B/16, with the columns of ``tokenlens.verification.findings.COSTS``; F4's numbers."""
    with torch.device("meta"):
        model = timm.create_model(COSTED)
    rows = []
    for preset in ("norms", "paper", "qkv_all", "everything"):
        whole = costs(model, preset)[1][-1]
        rows.append((COSTED, preset, whole.parameters, whole.added_parameters, whole.flops, whole.added_flops))
    return pd.DataFrame(rows, columns=list(COSTS))


def _told(found: Gathered) -> list[dict[str, Any]]:
    """Every model that was judged, for verify.json."""
    return [
        {
            "folder": str(model.run.path),
            "variant": model.variant,
            "seed": model.seed,
            "sha256": model.sha256,
            "setting": model.setting,
            "parameters": model.run.settings["parameters"]["model"],
            "seconds": model.run.settings["seconds"],
        }
        for model in found.models
    ]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
