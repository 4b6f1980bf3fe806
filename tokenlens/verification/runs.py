"""Run folders of trainings, analyses and probes, read into one table of numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.probes import ProbeResult
from tokenlens.storage.hashing import file_sha256
from tokenlens.storage.result import SETTINGS, kind_of
from tokenlens.storage.run_folder import MANIFEST
from tokenlens.training.run import FREE, TrainedRun
from tokenlens.verification.numbers import CLASSES, DENSE, LOSS, NUMBERS, STANDARD
from tokenlens.verification.variants import START, TWIN, TWIN_SEEDS, variant_of

VERIFICATION = SETTINGS["verification"]
"""What a verification says of itself, in its folder."""

PARTS = ("runs", "analyses", "probes")
"""Folders of a verification, with a run folder for each model and thing."""

LAST_SHARE = 0.1
"""Of the steps: a training's loss is the mean of the rows of metrics.csv in these."""

_MEASURES = {"mean IoU": DENSE, "top-1 accuracy": CLASSES}
_NO_LOSS = {"step", "epoch", "lr", "weight_decay", "grad_norm", "images_per_second"}


@dataclass(frozen=True)
class TrainedModel:
    """Which model of a verification a training is.

    Attributes:
        run: its folder.
        setting: all that it has in common with those that it may be set against.
        variant: name of its specialization.
        seed: of its pair.
        sha256: of its weights, by which analyses and probes are known.
    """

    run: TrainedRun
    setting: str
    variant: str
    seed: int
    sha256: str


@dataclass
class Gathered:
    """What some run folders hold.

    Attributes:
        models: finished trainings.
        numbers: with the columns of ``tokenlens.verification.numbers.NUMBERS``.
        analyses: by setting, variant and seed; of models that are no training given here, the setting is empty, the
            variant is the model's name and the seed −1.
        start: numbers of the weights that trainings started from, once for each setting; the variant is ``"start"``.
        started: analyses of such weights, by setting, ``"start"`` and 0. They are beside what is judged, not in it.
        left_out: folders that are not used, and why.
    """

    models: list[TrainedModel] = field(default_factory=list)
    numbers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(NUMBERS)))
    analyses: dict[tuple[str, str, int], Analysis] = field(default_factory=dict)
    start: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(NUMBERS)))
    started: dict[tuple[str, str, int], Analysis] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def gather(folders: Iterable[str | os.PathLike[str]]) -> Gathered:
    """Read run folders of trainings, analyses and probes, and folders of verifications, which hold some of each.

    Analyses and probes belong to the training whose weights they are of, or that has started from these weights.

    Raises:
        FileNotFoundError: if one of the folders is none of these.
        ValueError: for a damaged one.
    """
    found = Gathered()
    trainings: list[Path] = []
    analyses: list[Path] = []
    probes: list[Path] = []
    starts: dict[str, list[TrainedModel]] = {}
    for folder in map(Path, folders):
        if (folder / VERIFICATION).is_file():
            if (folder / START / MANIFEST).is_file():
                starts[file_sha256(folder / START / "model.safetensors")] = []  # also before any training is finished
            inside = [one for part in PARTS for one in sorted((folder / part).glob("[!.]*")) if one.is_dir()]
        else:
            inside = [folder]
        for one in inside:
            _sort(one, one is folder, trainings, analyses, probes, found)
    found.models = _models(trainings, found)
    of = {model.sha256: model for model in found.models}
    starts |= _starts(found.models)
    rows = [row for model in found.models for row in _loss_rows(model)]
    started = []
    for path in probes:
        result = ProbeResult.load(path)
        weights = str(result.provenance["identity"].get("weights"))
        if weights not in of and weights not in starts:
            found.left_out.append((str(path), "its model is none of the trainings"))
        elif result.unit not in _MEASURES:
            reason = f"its number is a {result.unit!r}; expected one of {', '.join(_MEASURES)}"
            found.left_out.append((str(path), reason))
        else:
            rows += [_probe_row(of[weights], result)] if weights in of else []
            started += [_probe_row(one, result) for one in starts.get(weights, [])]
    found.numbers = pd.DataFrame(rows, columns=list(NUMBERS))
    found.start = pd.DataFrame(started, columns=list(NUMBERS))
    for path in analyses:
        analysis = Analysis.load(path)
        weights = str(analysis.provenance["weights"].get("sha256"))
        found.started |= {(one.setting, START, 0): analysis for one in starts.get(weights, [])}
        owner = of.get(weights)
        if owner is None and weights in starts:
            continue
        key = (owner.setting, owner.variant, owner.seed) if owner else ("", analysis.model, -1)
        if key in found.analyses:
            found.left_out.append((str(path), "another analysis of this model is used"))
        else:
            found.analyses[key] = analysis
    return found


def _sort(
    folder: Path, must: bool, trainings: list[Path], analyses: list[Path], probes: list[Path], found: Gathered
) -> None:
    try:
        kind = kind_of(folder)
    except FileNotFoundError:
        if must:
            raise
        found.left_out.append((str(folder), f"not finished: it has no {MANIFEST}"))
        return
    places = {"training": trainings, "analysis": analyses, "probe": probes}
    if kind not in places:
        raise ValueError(f"{folder} is a run folder of kind {kind!r}, expected one of {', '.join(places)}")
    places[kind].append(folder)


def _models(trainings: Iterable[Path], found: Gathered) -> list[TrainedModel]:
    runs = []
    for path in trainings:
        run = TrainedRun.load(path)
        if run.finished:
            runs.append(run)
        else:
            found.left_out.append((str(path), f"{run.state} at step {run.step} of {run.settings['steps']}"))
    names: dict[str, str] = {}  # by what decides it, which a text need not tell, and of which it may tell more
    texts: list[str] = []
    for run in runs:
        digest, text = _digest(_common(run.settings)), setting_text(run.settings)
        if digest not in names:
            texts.append(text)
            same = texts.count(text)
            names[digest] = text + (f" [{same}]" if same > 1 else "")
    models: list[TrainedModel] = []
    for run in runs:
        setting = names[_digest(_common(run.settings))]
        variant, seed = variant_and_seed(run)
        twice = next((m for m in models if (m.setting, m.variant, m.seed) == (setting, variant, seed)), None)
        if twice is not None:
            found.left_out.append((str(run.path), f"the same training as {twice.run.path}"))
            continue
        models.append(TrainedModel(run, setting, variant, seed, file_sha256(run.path / "model.safetensors")))
    return models


def variant_and_seed(run: TrainedRun) -> tuple[str, int]:
    """Of a training; a standard model in a folder called ``twin_seed…`` is one, of a seed that is lower."""
    variant, seed = variant_of(run.recipe.specialization), int(run.recipe.seed)
    if run.path.name == f"{TWIN}_seed{seed - TWIN_SEEDS}":
        return TWIN, seed - TWIN_SEEDS
    return variant, seed


def setting_text(settings: Mapping[str, Any]) -> str:
    """Objective, model, image size, data, steps and start of a training, in words.

    Args:
        settings: of its run.json.
    """
    recipe = settings["recipe"]
    options = ", ".join(f"{name} {value}" for name, value in recipe["model_options"].items())
    model = f"{recipe['model']} ({options})" if options else recipe["model"]
    start = settings.get("start")
    # Of a path the last two parts: all of it says more of the machine than of the weights.
    begun = f", continued from {'/'.join(Path(start['given']).parts[-2:])}" if start else ""
    return (
        f"{recipe['objective']}, {model}, {recipe['image_size']} px, {settings['data']['count']:,} images, "
        f"{settings['steps']:,} steps of {recipe['batch_size']}{begun}"
    )


def _common(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a training, but seed and specialization."""
    recipe = {
        name: value
        for name, value in settings["recipe"].items()
        if name not in ("seed", "specialization", "diagnose_every", "diagnose_images", *FREE)
    }
    start = settings.get("start")
    return {
        "recipe": recipe,
        "data": settings["data"]["sha256"],
        "steps": settings["steps"],
        "start": start and start["sha256"],
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _row(model: TrainedModel, **values: Any) -> dict[str, Any]:
    recipe = model.run.recipe
    return {
        "setting": model.setting,
        "variant": model.variant,
        "preset": STANDARD if model.variant == START else variant_of(recipe.specialization),
        "objective": recipe.objective,
        "model": recipe.model,
        "seed": model.seed,
        **values,
    }


def _loss_rows(model: TrainedModel) -> list[dict[str, Any]]:
    metrics, settings = model.run.metrics, model.run.settings
    last = metrics[metrics["step"] > (1 - LAST_SHARE) * settings["steps"]]
    return [
        _row(
            model,
            task="training",
            source=name,
            resolution=model.run.recipe.image_size,
            data=str(settings["data"]["sha256"])[:8],
            measure=LOSS,
            value=float(last[name].mean()),
            n=int(settings["data"]["count"]),
            ci_low=float("nan"),
            ci_high=float("nan"),
        )
        for name in metrics.columns
        if name not in _NO_LOSS
    ]


def _starts(models: Iterable[TrainedModel]) -> dict[str, list[TrainedModel]]:
    """What trainings started from, by SHA-256, one stand-in for each setting."""
    found: dict[str, dict[str, TrainedModel]] = {}
    for model in models:
        start = model.run.settings.get("start")
        if start:
            # A standard model: what is specialized, is so after it has these weights.
            standing = replace(model, variant=START, seed=0, sha256=start["sha256"])
            found.setdefault(start["sha256"], {}).setdefault(model.setting, standing)
    return {sha256: list(settings.values()) for sha256, settings in found.items()}


def _probe_row(model: TrainedModel, result: ProbeResult) -> dict[str, Any]:
    identity = result.provenance["identity"]
    same = {
        "data": [split["sha256"] for split in result.provenance["data"]],
        "limit": result.provenance["limit"],
        "blocks": identity["blocks"],
        "amp": identity["amp"],
    }
    source = {"CLS token": "cls", "mean of the patch tokens": "patch_mean"}
    said = str(result.protocol.get("source", "patches"))
    return _row(
        model,
        task=result.task,
        source=source.get(said, "both" if "‖" in said else said),
        resolution=int(identity["image_size"][0]),
        data=_digest(same),
        measure=_MEASURES[result.unit],
        value=100 * result.value,
        n=result.n,
        ci_low=100 * result.ci_low,
        ci_high=100 * result.ci_high,
    )


def curves(models: Iterable[TrainedModel]) -> pd.DataFrame:
    """The losses on the way: ``setting variant seed step epoch source value``, a row for each row of metrics.csv."""
    frames = []
    for model in models:
        metrics = model.run.metrics
        for name in metrics.columns:
            if name not in _NO_LOSS:
                frames.append(_of(model, metrics[["step", "epoch"]].assign(source=name, value=metrics[name])))
    return _joined(frames, ["setting", "variant", "seed", "step", "epoch", "source", "value"])


def emergence(models: Iterable[TrainedModel]) -> pd.DataFrame:
    """How far norm1 lowers the CLS–patch cosine of a fixed batch, on average over blocks, while a model is trained.

    Returns:
        The columns ``setting variant seed step value n``.
    """
    frames = []
    for model in models:
        told = model.run.diagnostics
        rows = told[
            (told["metric"] == "norm_differentiation")
            & (told["part"] == "total")
            & (told["site"] == "norm1")
            & (told["group"] == "cls-patch")
        ]
        means = rows.groupby("step", as_index=False).agg(value=("value", "mean"), n=("n", "max"))
        frames.append(_of(model, means))
    return _joined(frames, ["setting", "variant", "seed", "step", "value", "n"])


def _of(model: TrainedModel, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(setting=model.setting, variant=model.variant, seed=model.seed)


def _joined(frames: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    some = [frame for frame in frames if len(frame)]
    return pd.concat(some, ignore_index=True)[columns] if some else pd.DataFrame(columns=columns)
