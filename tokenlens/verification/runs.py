"""Read the run folders of trainings, analyses and probes into one table of numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.probes import ProbeResult
from tokenlens.storage.hashing import file_sha256
from tokenlens.storage.result import SETTINGS, kind_of
from tokenlens.storage.run_folder import MANIFEST
from tokenlens.storage.tables import read_table
from tokenlens.verification.image_draws import MODEL, draw_scores
from tokenlens.verification.numbers import CLASSES, DENSE, LOSS, MEASUREMENT, NUMBERS, average_draws
from tokenlens.verification.start import start_weights
from tokenlens.verification.trained_models import NOT_LOSSES, TrainedModel, digest_of, read_trainings, starts_of
from tokenlens.verification.variants import STANDARD, START, variant_of

PARTS = ("runs", "analyses", "probes")
"""Subfolders of a verification that hold its run folders."""

NUMBERS_FILE = "numbers.csv"

DRAWN = (*MODEL, *MEASUREMENT)
"""Index of the table of bootstrap draws."""

LAST_SHARE = 0.1
"""The loss of a training is its mean over the rows of metrics.csv in this last share of the steps."""

_MEASURES = {"mean IoU": DENSE, "top-1 accuracy": CLASSES}


@dataclass
class RunNumbers:
    """Everything that run folders say about trained models.

    Attributes:
        models: finished trainings.
        numbers: with the columns of ``tokenlens.verification.numbers.NUMBERS``.
        analyses: by setting, variant and seed; for a model that is none of the trainings, the setting is empty, the
            variant is the model's name and the seed −1.
        drawn: bootstrap draws of the scores, a row per trained model and measurement; see
            ``tokenlens.verification.image_draws``.
        start_numbers: numbers of the weights that trainings started from, once per setting, with variant ``"start"``.
        start_analyses: analyses of such weights, by setting, ``"start"`` and 0. They are shown and not judged.
        left_out: folders that are not used, with the reason.
    """

    models: list[TrainedModel] = field(default_factory=list)
    numbers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(NUMBERS)))
    analyses: dict[tuple[str, str, int], Analysis] = field(default_factory=dict)
    drawn: pd.DataFrame = field(default_factory=pd.DataFrame)
    start_numbers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(NUMBERS)))
    start_analyses: dict[tuple[str, str, int], Analysis] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def read_runs(folders: Iterable[str | os.PathLike[str]]) -> RunNumbers:
    """Read run folders of trainings, analyses and probes, and of verifications, which contain them.

    Analyses and probes belong to the training that has their weights or started from them. Of a verification whose run
    folders are gone, its table of numbers is read.

    Raises:
        FileNotFoundError: if one of the folders is none of these.
        ValueError: for a damaged one.
    """
    found = RunNumbers()
    by_kind: dict[str, list[Path]] = {"training": [], "analysis": [], "probe": []}
    starts: dict[str, list[TrainedModel]] = {}
    tables: list[pd.DataFrame] = []
    for folder in map(Path, folders):
        if (folder / SETTINGS["verification"]).is_file():
            if (folder / START / MANIFEST).is_file():
                starts[file_sha256(start_weights(folder / START))] = []  # even before any training is finished
            if not any((folder / part).is_dir() for part in PARTS) and (folder / NUMBERS_FILE).is_file():
                tables.append(_read_numbers(folder / NUMBERS_FILE))
                found.left_out.append((str(folder), "its run folders are gone; only its numbers are used"))
            for part in PARTS:
                for inside in sorted((folder / part).glob("[!.]*")):
                    if inside.is_dir():
                        _sort_by_kind(inside, by_kind, found.left_out)
        else:
            _sort_by_kind(folder, by_kind, None)
    found.models, unused = read_trainings(by_kind["training"])
    found.left_out += unused
    trained = {model.sha256: model for model in found.models}
    starts |= starts_of(found.models)
    rows, start_rows = [row for model in found.models for row in _loss_rows(model)], []
    draws: list[dict[Any, Any]] = []
    for path in by_kind["probe"]:
        result = ProbeResult.load(path)
        weights = str(result.provenance["identity"].get("weights"))
        if weights not in trained and weights not in starts:
            found.left_out.append((str(path), "its model is none of the trainings"))
        elif result.unit not in _MEASURES:
            reason = f"its number is of {result.unit!r}; expected one of {', '.join(_MEASURES)}"
            found.left_out.append((str(path), reason))
        else:
            if weights in trained:
                rows.append(_probe_row(trained[weights], result))
                scores = draw_scores(result)
                if scores is not None:
                    draws.append({**{name: rows[-1][name] for name in DRAWN}, **dict(enumerate(scores))})
            start_rows += [_probe_row(start, result) for start in starts.get(weights, [])]
    found.numbers = pd.concat([average_draws(pd.DataFrame(rows, columns=list(NUMBERS))), *tables], ignore_index=True)
    found.drawn = pd.DataFrame(draws).groupby(list(DRAWN)).mean() if draws else found.drawn
    found.start_numbers = average_draws(pd.DataFrame(start_rows, columns=list(NUMBERS)))
    for path in by_kind["analysis"]:
        analysis = Analysis.load(path)
        weights = str(analysis.provenance["weights"].get("sha256"))
        found.start_analyses |= {(start.setting, START, 0): analysis for start in starts.get(weights, [])}
        model = trained.get(weights)
        if model is None and weights in starts:
            continue
        key = (model.setting, model.variant, model.seed) if model else ("", analysis.model, -1)
        if key in found.analyses:
            found.left_out.append((str(path), "another analysis of this model is used"))
        else:
            found.analyses[key] = analysis
    return found


def _read_numbers(file: Path) -> pd.DataFrame:
    """Return the table of numbers of a verification; folders of earlier versions have one draw of each probe."""
    table = read_table(file, texts=("setting", "variant", "preset", "objective", "model", *MEASUREMENT), counts=())
    return table.assign(draws=table.get("draws", 1), resolution=table["resolution"].astype(int))


def _sort_by_kind(folder: Path, by_kind: dict[str, list[Path]], left_out: list[tuple[str, str]] | None) -> None:
    """Append a run folder to those of its kind; an unfinished one to ``left_out``, or an error if that is None."""
    try:
        kind = kind_of(folder)
    except FileNotFoundError:
        if left_out is None:
            raise
        left_out.append((str(folder), f"not finished: it has no {MANIFEST}"))
        return
    if kind not in by_kind:
        raise ValueError(f"{folder} is a run folder of kind {kind!r}, expected one of {', '.join(by_kind)}")
    by_kind[kind].append(folder)


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
            draws=1,
        )
        for name in metrics.columns
        if name not in NOT_LOSSES
    ]


def _probe_row(model: TrainedModel, result: ProbeResult) -> dict[str, Any]:
    identity = result.provenance["identity"]
    compared = {
        "data": [split["sha256"] for split in result.provenance["data"]],
        "limit": result.provenance["limit"],
        "blocks": identity["blocks"],
        "amp": identity["amp"],
    }
    source = str(result.protocol.get("source", "patches"))
    names = {"CLS token": "cls", "mean of the patch tokens": "patch_mean"}
    return _row(
        model,
        task=result.task,
        source=names.get(source, "both" if "‖" in source else source),
        resolution=int(identity["image_size"][0]),
        data=digest_of(compared),
        measure=_MEASURES[result.unit],
        value=100 * result.value,
        n=result.n,
        ci_low=100 * result.ci_low,
        ci_high=100 * result.ci_high,
        draws=1,
    )
