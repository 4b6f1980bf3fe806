"""The Jupyter view behind ``tokenlens.explore``: ``exploration`` computes, ``explorer`` shows (docs/exploring.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from tokenlens.analysis.record import record
from tokenlens.recording.recording import Recording

if TYPE_CHECKING:
    from tokenlens.explorer.explorer import Explorer

EXTRA = 'pip install "tokenlens-vit[notebook]"'


def explore(
    model: str | nn.Module | Recording,
    images: Any = "sample",
    *,
    other: str | nn.Module | Recording | None = None,
    limit: int | None = None,
    **options: Any,
) -> Explorer:
    """Look at single tokens in Jupyter: click a patch and see its cosine map, its attention, CLS's, and its numbers.

    The model runs once over all images; after that only what is looked at is computed, and attention comes from the
    recorded q and k, one row at a time.

    Args:
        model: as for ``record``, or a Recording that there is already.
        images: as for ``record``; not used where only Recordings are handed over.
        other: a second model, or its Recording, shown under the first on the same images: its block at the same
            relative depth and its patch at the same place.
        limit: at most this many images; by default 4 of what is named, and all of what is handed over.
        **options: of ``record``, for both models: ``sites``, ``blocks``, ``max_bytes`` (the budget of each model, by
            default 1 GiB), ``device``, ``checkpoint``, … For a second model with options of its own hand over its
            Recording.

    Returns:
        The view, which shows itself as a cell's result; ``selection`` is what it shows, ``select(…)`` changes it.

    Raises:
        ImportError: if the extra ``[notebook]`` is not installed.
        LookupError: for an unknown model, site or block.
        ValueError: for images or weights that cannot be used, a recording beyond ``max_bytes``, and recordings of
            other images.
    """
    try:
        from tokenlens.explorer.explorer import Explorer
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tokenlens"):
            raise
        raise ImportError(f"explore needs {error.name}, which is not installed: {EXTRA}") from error

    def recorded(subject: str | nn.Module | Recording) -> Recording:
        if isinstance(subject, Recording):
            return subject
        return record(subject, images, limit=limit, **{"patterns": None, **_with_attention(options)})

    return Explorer([recorded(subject) for subject in (model, other) if subject is not None])


def _with_attention(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``record``, with q and k among the sites: attention is computed from them."""
    if options.get("sites") is None:
        return options
    return options | {"sites": list(dict.fromkeys([*options["sites"], "q", "k"]))}


__all__ = ["explore"]
