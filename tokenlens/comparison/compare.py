"""TODO."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.analyze import analyze
from tokenlens.comparison.comparison import Comparison
from tokenlens.models.names import find_origin, training_of
from tokenlens.storage.provenance import made_by
from tokenlens.storage.run_folder import MANIFEST


def compare(
    *subjects: Analysis | str | os.PathLike[str] | nn.Module,
    baseline: int | str = 0,
    labels: Sequence[str] | None = None,
    pair: bool | None = None,
    images: Any = None,
    **analyze_options: Any,
) -> Comparison:
    """Set the numbers of several models against one of them, with intervals and tests.

    Args:
        subjects: at least two of: an ``Analysis``, a run folder, a model's name, a module. Names and modules are
            analyzed first, runs are loaded; neither model nor images are needed for those.
        baseline: position (from 0) or label of the model that the others are set against.
        labels: what to call the models; by default their names, and what tells equal names apart. "(untrained)" is
            added to those of random weights.
        pair: None pairs by image where both saw the same images in the same order; True aligns the common images by
            their hash; False never pairs.
        images: what models are analyzed on, as for ``analyze``; by default the images of the first run that is given,
            at its limit, seed and size, and ``"sample"`` without one.
        analyze_options: other options of ``analyze`` for the models.

    Raises:
        LookupError: for a subject that is neither a run folder nor a model, or an unknown baseline.
        ValueError: for fewer than two subjects, labels that do not fit, images or options without a model to analyze, a
            damaged or newer run, nothing in common, or whatever ``analyze`` refuses.
    """
    started, clock = dt.datetime.now(dt.UTC), time.perf_counter()
    if len(subjects) < 2:
        raise ValueError(f"a comparison is of at least two runs or models, got {len(subjects)}")
    if labels is not None:
        _check_labels(labels, len(subjects))
        _position(baseline, list(labels))
    loaded = [_loaded(subject) for subject in subjects]
    given = analyze_options if images is None else {"images": images, **analyze_options}
    if given and None not in loaded:
        raise ValueError(f"{', '.join(given)}: for models that are analyzed, but all {len(subjects)} are runs already")
    if images is None and None in loaded:
        given = _images_of(next((run for run in loaded if run is not None), None)) | given
    analyses = [
        run if run is not None else analyze(subject, **given)  # type: ignore[arg-type]
        for subject, run in zip(subjects, loaded, strict=True)
    ]
    folders = [_folder_name(subject) for subject in subjects]
    names = list(labels) if labels is not None else _default_labels(analyses, folders)
    position = _position(baseline, names)
    # Whatever a model is called, random weights are said everywhere.
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
    """Whether ``compare`` takes a subject for an analysis or a run folder, not for a model."""
    if isinstance(subject, nn.Module):
        return False
    if isinstance(subject, str):
        folder = Path(subject).expanduser()
        return (folder / MANIFEST).is_file() and training_of(folder) is None
    return True


def _loaded(subject: Any) -> Analysis | None:
    """The analysis that a subject is or holds; None for a model, whose name is checked."""
    if isinstance(subject, Analysis):
        return subject
    if not isinstance(subject, str | os.PathLike | nn.Module):
        raise ValueError(
            f"expected an Analysis, a run folder, a model's name or a module, got {type(subject).__qualname__}"
        )
    if not isinstance(subject, nn.Module) and is_run(subject):
        return Analysis.load(subject)
    if isinstance(subject, str):
        try:
            find_origin(subject)
        except (LookupError, ValueError) as error:
            if Path(subject).is_dir():
                raise FileNotFoundError(f"{subject} has no {MANIFEST}: it is not a finished run folder") from error
            if isinstance(error, LookupError):
                raise LookupError(f"{subject!r} is neither a run folder nor a model: {error}") from error
            raise
    return None


def _images_of(run: Analysis | None) -> dict[str, Any]:
    """Options of ``analyze`` for the images of a run."""
    if run is None:
        return {}
    told = run.provenance["images"]
    if not told.get("given"):
        raise ValueError(
            f"the run of {run.model} does not say how to get its images again ({told['source']}); choose images"
        )
    return {
        "images": told["given"],
        "limit": told["limit"],
        "seed": run.provenance["seed"],
        "img_size": tuple(run.provenance["image_size"]),
    }


def _folder_name(subject: Any) -> str:
    """The name of a run's folder; empty for all that is no folder."""
    if isinstance(subject, Analysis | nn.Module) or not is_run(subject):
        return ""
    return Path(subject).expanduser().resolve().name


def _default_labels(analyses: Sequence[Analysis], folders: Sequence[str]) -> list[str]:
    """Model names; equal ones are told apart by their run folders, and by numbers where that does not do."""
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
        raise ValueError(f"expected a label for each of the {count} subjects, got {labels!r}")
    if len(set(labels)) != count or not all(labels):
        raise ValueError(f"expected labels that differ and are not empty, got {', '.join(map(repr, labels))}")


def _position(baseline: int | str, labels: Sequence[str]) -> int:
    if isinstance(baseline, str):
        if baseline not in labels:
            raise LookupError(f"no model is labelled {baseline!r}; the labels are {', '.join(map(repr, labels))}")
        return labels.index(baseline)
    if not 0 <= baseline < len(labels):
        raise LookupError(f"the baseline is a label or a position from 0 to {len(labels) - 1}, got {baseline}")
    return baseline
