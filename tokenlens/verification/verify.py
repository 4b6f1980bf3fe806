"""``verify``: train, analyze and probe what is missing, and judge the findings F1 to F6.

Every training, analysis and probe is a run folder, so the same call resumes an interrupted verification. Verdicts are
always computed from those folders, whether they were made here or given with ``runs``.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch

from tokenlens.analysis.analyze import analyze
from tokenlens.analysis.findings import Finding, judge
from tokenlens.probes import probe
from tokenlens.specialization import compute_costs
from tokenlens.storage.provenance import made_by
from tokenlens.storage.run_folder import MANIFEST, SCHEMA_VERSION
from tokenlens.training.train import train
from tokenlens.verification.data import VerificationData
from tokenlens.verification.findings import judge_over_seeds, judge_trained_models
from tokenlens.verification.numbers import compare_to_start, tabulate_differences, tabulate_effects
from tokenlens.verification.premises import find_unmet_premises
from tokenlens.verification.prepare import Preparation, make_plan, now, prepare
from tokenlens.verification.result import Verification, settings_of
from tokenlens.verification.rules import COSTS
from tokenlens.verification.runs import RunNumbers, read_runs
from tokenlens.verification.scales.base import Scale
from tokenlens.verification.stage_effects import tabulate_stage_effects, tabulate_stages
from tokenlens.verification.tasks import Task, probe_seed, recipe_of_task
from tokenlens.verification.trained_models import collect_emergence, collect_losses
from tokenlens.verification.variants import PAPER, STANDARD, START

COSTED_MODEL = "vit_base_patch16_224"

Progress = Callable[[str, int, int | None, str], None]
"""Called with the current task and stage, how much of it is done, the total (None if unknown), and the unit."""


def verify(
    scale: str | Scale = "tiny",
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

    The same call resumes a verification that was interrupted; finished tasks are not repeated. Seeds and variants can
    be added later.

    Args:
        scale: the name of a scale in ``tokenlens.verification.scales``, or a ``Scale``.
        data: a folder with ``classification``, ``segmentation``, ``photos`` and ``weights``, or the source of each.
        seeds: the number of models per variant, or their seeds; by default the scale's.
        variants: names that ``tokenlens.verification.variants.recipe_of_variant`` takes; by default the scale's.
        runs: judge these run folders (trainings, their analyses and probes, verifications) instead of training any.
        out: the folder; by default ``reports/verify_NAME``.
        start: weights that every training starts from, standard and specialized alike: a file, the run folder of a
            training or the name of a model; by default the scale's, if it has any.
        max_minutes: stop after this time; a training stops at a checkpoint. What is there is judged.
        task: do only the task with this number in the plan, and judge nothing: for arrays of jobs.
        device: where to compute.
        report: draw figures and write the page, also those of each training.
        progress: see ``Progress``.

    Raises:
        LookupError: for an unknown scale, variant or task.
        ValueError: for missing data, or a folder with a verification of another configuration.
        FileExistsError: if the folder holds something else.
    """
    if runs is not None:
        return judge_given_runs(Path(out or "reports/verify"), runs, report)
    preparation = prepare(scale, data, seeds, variants, out, start)
    deadline = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
    tasks = preparation.tasks if task is None else [_chosen_task(preparation, task)]
    preparation.create_folder()
    _run_tasks(preparation, tasks, deadline, device, report, progress)
    folder = preparation.out
    if task is None:
        return judge_runs(folder, [folder], preparation.settings, make_plan(preparation), report)
    if (folder / "findings.json").is_file():
        return Verification.load(folder)
    return Verification(folder, [], RunNumbers().numbers, plan=make_plan(preparation), settings=preparation.settings)


def _chosen_task(preparation: Preparation, number: int) -> Task:
    if not 0 <= number < len(preparation.tasks):
        raise LookupError(f"the plan has tasks 0 to {len(preparation.tasks) - 1}, got {number}")
    task = preparation.tasks[number]
    needs_training = task.what != "train" and task.variant != START  # create_folder writes the start
    if needs_training and not (task.run / MANIFEST).is_file():
        raise ValueError(f"task {number} ({task}) needs the finished training {task.run}")
    return task


def _run_tasks(
    preparation: Preparation,
    tasks: Sequence[Task],
    deadline: float,
    device: str,
    report: bool,
    progress: Progress | None,
) -> None:
    """Do the open tasks one after the other, as long as there is time."""
    open_tasks = [task for task in tasks if not task.done]
    minutes = dict(zip(preparation.tasks, make_plan(preparation)["minutes"], strict=True))
    for number, task in enumerate(open_tasks):
        remaining = (deadline - time.monotonic()) / 60
        # A training stops by itself at the deadline. Other tasks begin only if they are likely to finish in time; the
        # first one always begins, or slots that are too short would never make progress.
        if remaining <= 0 or (task.what != "train" and number > 0 and minutes[task] > remaining):
            return
        if task.done or (task.what != "train" and not (task.run / MANIFEST).is_file()):
            continue  # another process has done it meanwhile, or its training is missing
        title = f"{number + 1} of {len(open_tasks)}: {task}"

        def show(stage: str, done: int, total: int | None, unit: str, title: str = title) -> None:
            if progress is not None:
                progress(f"{title}: {stage}" if stage else title, done, total, unit)

        show("", 0, None, "steps" if task.what == "train" else "images")
        if not _run_task(preparation, task, remaining, device, report, show):
            return


def _run_task(
    preparation: Preparation, task: Task, minutes: float, device: str, report: bool, progress: Progress
) -> bool:
    """Do one task; return False for a training that was stopped by the deadline."""
    scale, data = preparation.scale, preparation.data
    if task.what == "train":
        assert preparation.images is not None
        return train(
            recipe_of_task(scale.recipe, task),
            preparation.images,
            task.folder,
            name=scale.recipe_name,
            device=device,
            checkpoint=preparation.read_start(),
            max_minutes=None if math.isinf(minutes) else minutes,
            report=report,
            progress=lambda done, steps, _: progress("", done, steps, "steps"),
        ).finished
    if task.probe is None:
        limit = scale.analyzed_images
        analysis = analyze(
            task.model,
            data.images,
            limit=limit,
            batch_size=32,
            device=device,
            progress=lambda done, total: progress("", done, total, "images"),
        )
        analysis.save(task.folder, overwrite=True, report=False)
        return True
    segments = task.probe.task == "segmentation"
    # Models of one seed share the probe's random draws, as they share the training's. Patch features are large and used
    # once, so they are not cached; features of images serve several probes.
    probe(
        task.model,
        task.probe.task,
        data.masks if segments else data.labelled,
        source=task.probe.source,
        img_size=task.probe.image_size,
        limit=task.probe.limit,
        seed=probe_seed(task),
        device=device,
        cache=not segments,
        progress=progress,
    ).save(task.folder, overwrite=True, report=False)
    return True


def judge_given_runs(out: Path, runs: Sequence[str | os.PathLike[str]], report: bool) -> Verification:
    """Judge existing run folders, without training anything.

    Raises:
        ValueError: if ``out`` is one of the runs.
        FileExistsError: if ``out`` holds something else than an earlier verdict on existing runs.
    """
    if any(Path(run).resolve() == out.resolve() for run in runs):
        raise ValueError(f"--out {out} is one of the runs to judge; choose another --out")
    if out.exists() and any(out.iterdir()) and "given" not in settings_of(out):
        raise FileExistsError(f"{out} exists and is not a verdict on existing runs; choose another --out")
    settings = {
        "schema_version": SCHEMA_VERSION,
        "kind": "verification",
        "name": "",
        "started": now(),
        "given": [os.fspath(run) for run in runs],
        **made_by("verify"),
    }
    return judge_runs(out, runs, settings, None, report)


def judge_runs(
    out: Path,
    runs: Sequence[str | os.PathLike[str]],
    settings: dict[str, Any],
    plan: pd.DataFrame | None,
    report: bool,
) -> Verification:
    """Judge all findings on run folders, and save the verification in ``out``."""
    found = read_runs(runs)
    stages = tabulate_stages(found.analyses | found.start_analyses)
    verification = Verification(
        out,
        _judge_findings(found),
        found.numbers,
        tabulate_effects(found.numbers, found.drawn),
        tabulate_differences(found.numbers),
        collect_losses(found.models),
        collect_emergence(found.models),
        costs_of_base(),
        **({} if plan is None else {"plan": plan}),
        left_out=found.left_out,
        settings=settings | {"runs": [model.to_dict() for model in found.models], "ended": now()},
        continued=compare_to_start(found.numbers, found.start_numbers),
        stages=tabulate_stage_effects(stages),
        stages_by_seed=stages,
    )
    verification.save(out, report=report)
    return verification


def _judge_findings(found: RunNumbers) -> list[Finding]:
    judged: dict[str, dict[tuple[str, str], dict[int, Finding]]] = {}  # by name, then setting and variant, then seed
    order = {STANDARD: 0, PAPER: 1}
    for setting, variant, seed in sorted(found.analyses, key=lambda key: (key[0], order.get(key[1], 2), key[1:])):
        for finding in judge(found.analyses[setting, variant, seed]):
            judged.setdefault(finding.name, {}).setdefault((setting, variant), {})[seed] = finding
    findings = []
    for name, by_variant in judged.items():
        for (setting, variant), by_seed in by_variant.items():
            if setting:
                findings.append(judge_over_seeds(name, by_seed, variant, setting))
            else:
                [alone] = by_seed.values()
                findings.append(replace(alone, subject=variant, scale="this model"))
    unmet = find_unmet_premises(found)
    return findings + judge_trained_models(found.numbers, costs_of_base(), found.drawn, unmet)


@cache
def costs_of_base() -> pd.DataFrame:
    """Return what each preset costs in ViT-B/16, with the columns of ``COSTS``; the numbers of F4."""
    with torch.device("meta"):
        model = timm.create_model(COSTED_MODEL)
    rows = []
    for preset in ("norms", "paper", "qkv_all", "everything"):
        whole = compute_costs(model, preset)[1][-1]
        rows.append((COSTED_MODEL, preset, whole.parameters, whole.added_parameters, whole.flops, whole.added_flops))
    return pd.DataFrame(rows, columns=list(COSTS))
