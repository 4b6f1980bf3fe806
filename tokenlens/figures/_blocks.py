"""Which blocks a figure shows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.figures.base import NothingToDraw

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis
    from tokenlens.comparison.comparison import Comparison
    from tokenlens.training.run import TrainedRun
    from tokenlens.verification.result import Verification


def chosen_blocks(blocks: Any, count: int) -> list[int]:
    """The blocks that are meant, in order, of a model that has ``count``; those that it does not have are left out.

    Args:
        blocks: a number, a list, a range, a slice, or text: ``"0-5,11"``. Negative numbers count from the end.
        count: how many blocks the model has.

    Raises:
        ValueError: for anything else.

    >>> chosen_blocks("0-2,11", 12), chosen_blocks(slice(None, None, 5), 12), chosen_blocks([-1], 12)
    ([0, 1, 2, 11], [0, 5, 10], [11])
    """
    if isinstance(blocks, slice):
        return list(range(count))[blocks]
    numbers: Iterable[Any]
    if isinstance(blocks, str):
        numbers = _numbers_in(blocks)
    elif isinstance(blocks, Iterable):
        numbers = blocks
    else:
        numbers = [blocks]
    found = set()
    for number in numbers:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            raise _unreadable(blocks)
        index = number.__index__()
        found.add(index + count if index < 0 else index)
    return sorted(index for index in found if 0 <= index < count)


def _numbers_in(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise _unreadable(text)
        first, last = int(match[1]), int(match[2] or match[1])
        if match[2] and first > last:
            raise _unreadable(text)
        numbers += range(first, last + 1)
    return numbers


def _unreadable(blocks: Any) -> ValueError:
    return ValueError(f"blocks are a number, a list, a range, a slice or text like '0-5,11', got {blocks!r}")


def only_blocks(
    frame: pd.DataFrame, blocks: Any, subject: Analysis | Comparison | TrainedRun | Verification, name: str
) -> pd.DataFrame:
    """The rows of a figure's frame that are of the chosen blocks, or of no block at all.

    The final norm, which frames put behind the last block, is shown with the last block.

    Raises:
        ValueError: if the figure shows no blocks, or the choice cannot be read.
        NothingToDraw: if no model has such a block.
    """
    columns = [column for column in ("block", "block_1", "block_2") if column in frame]
    if not columns:
        raise ValueError(f"the figure {name} does not show blocks one by one: leave out blocks")
    kept = frame[columns].isna().all(axis=1)
    models = _models(subject)
    for label, (_, count) in models.items():
        wanted = chosen_blocks(blocks, count)
        if count - 1 in wanted:
            wanted.append(count)
        own = pd.Series(True, index=frame.index) if label is None else frame["label"] == label
        for column in columns:
            own &= frame[column].isin(wanted) | frame[column].isna()
        kept |= own
    found = frame[kept].reset_index(drop=True)
    if not found[columns].notna().any().any():
        counts = ", ".join(f"{model} has 0 to {count - 1}" for model, count in models.values())
        raise NothingToDraw(f"there is no block {blocks!r} to draw: {counts}")
    return found


def _models(subject: Any) -> dict[str | None, tuple[str, int]]:
    """Name and number of blocks of each model that a figure is of, by its label; None where there is one model."""
    if hasattr(subject, "diagnostics"):
        return {None: (subject.recipe.model, int(subject.diagnostics["block"].max()) + 1)}
    analyses = subject.analyses if hasattr(subject, "analyses") else {None: subject}
    return {label: (analysis.model, analysis.blocks) for label, analysis in analyses.items()}
