"""Describe the model and the images of a result for its provenance."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from tokenlens.images import ImageSource, ImageWarning
from tokenlens.images.sources import SAMPLE_NOTE
from tokenlens.images.webdataset import is_break
from tokenlens.models.loading import LoadedModel
from tokenlens.specialization import get_plan

Seen = list[tuple[int, str, str]]
"""Position in the source, name and SHA-256 of each image that the model saw."""

Skipped = list[dict[str, str]]
"""``{"name", "reason"}`` of each unreadable image."""


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """Return name, family, weights and specialization; ``prefix`` are the groups of the first set of weights."""
    plan = get_plan(loaded.module)
    return {
        "model": loaded.name,
        "family": loaded.family.name or type(loaded.family).__name__,
        "untrained": loaded.untrained,
        "weights": loaded.weights,
        **({"model_args": loaded.model_args} if loaded.model_args else {}),
        **({} if plan is None else {"specialization": plan.specialization.to_dict() | {"prefix": list(plan.groups)}}),
    }


def describe_images(
    source: ImageSource, given: Any, limit: int | None, seen: Sequence[tuple[int, str, str]], skipped: Skipped
) -> dict[str, Any]:
    """Return source, remarks, names, hashes, copies and skipped images.

    Args:
        source: where the images came from, after they were read.
        given: the images as the user gave them.
        limit: the largest number of images.
        seen: the images that the model saw, of all processes.
        skipped: the unreadable ones, of all processes.
    """
    broken = [f"{item['name']}: {item['reason']}." for item in skipped if is_break(item["reason"])]
    return {
        "source": source.description,
        "notes": source.notes + broken + source.remarks,
        "given": os.fspath(given) if isinstance(given, str | os.PathLike) else None,
        "limit": limit,
        "count": len(seen),
        "skipped": [item for item in skipped if not is_break(item["reason"])],
        "copies": source.copies,
        "names": [name for _, name, _ in seen],
        "hashes": [digest for *_, digest in seen],
    }


def warn_about_images(described: dict[str, Any]) -> None:
    """Warn of every remark on the images, except on the sample photographs."""
    for note in described["notes"]:
        if note != SAMPLE_NOTE:
            warnings.warn(note, ImageWarning, stacklevel=3)
