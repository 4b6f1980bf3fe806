"""``tokenlens.explore``: record images and show them in the Jupyter widget (see docs/exploring.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from tokenlens.analysis.record import record
from tokenlens.recording.recording import Recording

if TYPE_CHECKING:
    from tokenlens.explorer.explorer import Explorer

INSTALL = 'pip install "tokenlens-vit[notebook]"'


def explore(
    model: str | nn.Module | Recording,
    images: Any = "sample",
    *,
    other: str | nn.Module | Recording | None = None,
    limit: int | None = None,
    **options: Any,
) -> Explorer:
    """Inspect single tokens in Jupyter: cosine map and attention of the selected token, attention of CLS, and numbers.

    The model runs once over all images. Maps are computed when they are shown, and attention is computed from the
    recorded q and k, one row at a time.

    Args:
        model: as for ``record``, or an existing Recording.
        images: as for ``record``; ignored if only Recordings are given.
        other: a second model or its Recording, shown below the first with the same images, the block at the same
            relative depth and the patch at the same position.
        limit: largest number of images; by default 4 from a named source, all of a tensor or data set.
        **options: options of ``record`` for both models: ``sites``, ``blocks``, ``max_bytes`` (the budget of each
            model, 1 GiB by default), ``device``, ``checkpoint``, … To use other options for the second model, pass its
            Recording.

    Returns:
        The widget, which displays itself. Its ``selection`` is what it shows; ``select(…)`` changes it.

    Raises:
        ImportError: if the extra ``[notebook]`` is not installed.
        LookupError: if there is no such model, site or block.
        ValueError: if images or weights are unusable, the recording exceeds ``max_bytes``, or two recordings have
            different images.
    """
    try:
        from tokenlens.explorer.explorer import Explorer
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tokenlens"):
            raise
        raise ImportError(f"explore needs {error.name}, which is not installed: {INSTALL}") from error

    def recorded(subject: str | nn.Module | Recording) -> Recording:
        if isinstance(subject, Recording):
            return subject
        return record(subject, images, limit=limit, **{"patterns": None, **_with_attention(options)})

    return Explorer([recorded(subject) for subject in (model, other) if subject is not None])


def _with_attention(options: dict[str, Any]) -> dict[str, Any]:
    """Add q and k, from which attention is computed, to the sites in the options of ``record``."""
    if options.get("sites") is None:
        return options
    return options | {"sites": list(dict.fromkeys([*options["sites"], "q", "k"]))}


__all__ = ["explore"]
