"""Compare the numbers of several models with those of a baseline."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from tokenlens.analysis.analysis import Analysis, number_keys
from tokenlens.analysis.analyze import analyze
from tokenlens.comparison.comparison import Comparison
from tokenlens.models.names import find_model_source, read_training_settings
from tokenlens.storage.provenance import made_by
from tokenlens.storage.result import Result, kind_of
from tokenlens.storage.run_folder import MANIFEST
from tokenlens.storage.tables import COLUMNS


def compare(
    *subjects: Result | str | os.PathLike[str] | nn.Module,
    baseline: int | str = 0,
    labels: Sequence[str] | None = None,
    pair: bool | None = None,
    images: Any = None,
    **analyze_options: Any,
) -> Comparison:
    """Compare the numbers of several models with those of a baseline, with intervals and tests.

    Args:
        subjects: at least two of: an ``Analysis`` or ``Intervention``, a run folder of one, the name of a model, a
            module. Runs are loaded, which needs neither model nor images; models are analyzed first.
        baseline: position (from 0) or label of the model that the others are compared with.
        labels: a label per subject; by default the names of the models, with a suffix where names are equal.
            "(untrained)" is added to models with random weights.
        pair: None pairs by image if both saw the same images in the same order; True matches the common images by hash;
            False never pairs.
        images: images for models that are analyzed, as in ``analyze``; by default those of the first run, with its
            limit, seed and size, or ``"sample"`` if there is no run.
        analyze_options: other options of ``analyze`` for models that are analyzed.

    Raises:
        LookupError: for a subject that is neither a run folder nor a model, or an unknown baseline.
        ValueError: for fewer than two subjects, labels that do not fit, images or options without a model to analyze, a
            damaged or newer run, no number in common, and whatever ``analyze`` raises.
    """
    started, clock = dt.datetime.now(dt.UTC), time.perf_counter()
    if len(subjects) < 2:
        raise ValueError(f"a comparison needs at least two runs or models, got {len(subjects)}")
    if labels is not None:
        _check_labels(labels, len(subjects))
        _baseline_position(baseline, list(labels))
    loaded = [_load_or_check(subject) for subject in subjects]
    interventions = [_is_intervention(subject) for subject in subjects]
    if len(set(interventions)) > 1:
        one, other = (subjects[interventions.index(which)] for which in (True, False))
        raise ValueError(
            "an intervention can be compared with other interventions only: "
            f"{_shown(one)} is one, {_shown(other)} is not"
        )
    given = analyze_options if images is None else {"images": images, **analyze_options}
    if given and None not in loaded:
        raise ValueError(
            f"{', '.join(given)} only applies to models that are analyzed, but all {len(subjects)} "
            "subjects are saved runs"
        )
    if images is None and None in loaded:
        given = _images_of(next((run for run in loaded if run is not None), None)) | given
    analyses = [
        run if run is not None else analyze(subject, **given)  # type: ignore[arg-type]
        for subject, run in zip(subjects, loaded, strict=True)
    ]
    folders = [_folder_name(subject) for subject in subjects]
    names = list(labels) if labels is not None else _default_labels(analyses, folders)
    position = _baseline_position(baseline, names)
    # Random weights are marked whatever label the user chose.
    names = [
        f"{name} (untrained)" if each.untrained and "untrained" not in name else name
        for name, each in zip(names, analyses, strict=True)
    ]
    comparison = Comparison(dict(zip(names, analyses, strict=True)), baseline=names[position], pair=pair)
    comparison.provenance = {
        **made_by("compare"),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
    }
    return comparison


def is_run(subject: Any) -> bool:
    """Return whether a subject of ``compare`` is an analysis or a run folder, rather than a model."""
    if isinstance(subject, nn.Module):
        return False
    if isinstance(subject, str):
        folder = Path(subject).expanduser()
        return (folder / MANIFEST).is_file() and read_training_settings(folder) is None
    return True


def effects_as_numbers(result: Any) -> Analysis:
    """Return the effects of an intervention as the numbers of an analysis, with ``replace by … part`` as their part."""
    table = result.table
    parts = (table["replace"] + " by " + table["by"] + " " + table["part"]).str.strip()
    numbers = table.assign(part=parts)[list(COLUMNS)]
    per_image = result.per_image.set_axis(pd.MultiIndex.from_frame(number_keys(numbers)), axis=1)
    per_image = per_image.dropna(axis=1, how="all")  # a mean IoU has no value per image
    provenance, not_applicable = dict(result.provenance), dict(result.not_applicable)
    return Analysis(result.model, result.layout, result.blocks, numbers, {}, per_image, provenance, not_applicable)


def _load_or_check(subject: Any) -> Analysis | None:
    """Return the analysis that a subject is or holds, or None for a model after checking its name."""
    if isinstance(subject, Analysis):
        return subject
    if _is_intervention(subject):
        return effects_as_numbers(subject if isinstance(subject, Result) else Result.load(Path(subject).expanduser()))
    if not isinstance(subject, str | os.PathLike | nn.Module):
        raise ValueError(
            f"expected an Analysis, a run folder, a model's name or a module, got {type(subject).__qualname__}"
        )
    if not isinstance(subject, nn.Module) and is_run(subject):
        return Analysis.load(Path(subject).expanduser())
    if isinstance(subject, str):
        try:
            find_model_source(subject)
        except (LookupError, ValueError) as error:
            if Path(subject).is_dir():
                raise FileNotFoundError(f"{subject} has no {MANIFEST}: it is not a finished run folder") from error
            if isinstance(error, LookupError):
                raise LookupError(f"{subject!r} is neither a run folder nor a model: {error}") from error
            raise
    return None


def _is_intervention(subject: Any) -> bool:
    """Return whether a subject is an intervention or a run folder of one."""
    if isinstance(subject, str | os.PathLike) and is_run(subject):
        return kind_of(Path(subject).expanduser()) == "intervention"
    return isinstance(subject, Result) and subject.kind == "intervention"


def _shown(subject: Any) -> str:
    """Return the name of a subject for a message."""
    return type(subject).__name__ if isinstance(subject, nn.Module) else str(subject)


def _images_of(run: Analysis | None) -> dict[str, Any]:
    """Return the options of ``analyze`` that give the images of a run again."""
    if run is None:
        return {}
    source = run.provenance["images"]
    if not source.get("given"):
        raise ValueError(
            f"the images of the run of {run.model} cannot be found again ({source['source']}); pass images"
        )
    return {
        "images": source["given"],
        "limit": source["limit"],
        "seed": run.provenance["seed"],
        "img_size": tuple(run.provenance["image_size"]),
    }


def _folder_name(subject: Any) -> str:
    """Return the name of a run's folder, or an empty string if the subject is no folder."""
    if isinstance(subject, Result | nn.Module) or not is_run(subject):
        return ""
    return Path(subject).expanduser().resolve().name


def _default_labels(analyses: Sequence[Analysis], folders: Sequence[str]) -> list[str]:
    """Return the names of the models; equal ones get the name of their run folder, then a number, as a suffix."""
    names = [f"{each.model} (untrained)" if each.untrained else each.model for each in analyses]
    names = [
        f"{name} · {folder}" if folder and names.count(name) > 1 else name
        for name, folder in zip(names, folders, strict=True)
    ]
    labels: list[str] = []
    for name in names:
        number = 1
        while (label := name if number == 1 else f"{name} #{number}") in labels:
            number += 1
        labels.append(label)
    return labels


def _check_labels(labels: Sequence[str], count: int) -> None:
    if isinstance(labels, str) or len(labels) != count:
        raise ValueError(f"expected one label per subject ({count}), got {labels!r}")
    if len(set(labels)) != count or not all(labels):
        raise ValueError(f"labels must differ and not be empty, got {', '.join(map(repr, labels))}")


def _baseline_position(baseline: int | str, labels: Sequence[str]) -> int:
    if isinstance(baseline, str):
        if baseline not in labels:
            raise LookupError(f"no model is labelled {baseline!r}; the labels are {', '.join(map(repr, labels))}")
        return labels.index(baseline)
    if not 0 <= baseline < len(labels):
        raise LookupError(f"baseline must be a label or a position from 0 to {len(labels) - 1}, got {baseline}")
    return baseline
