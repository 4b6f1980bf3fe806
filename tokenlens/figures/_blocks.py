"""Select the blocks that a figure shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from tokenlens.figures.base import NothingToDraw
from tokenlens.overlays.selection import numbers_in


def parse_blocks(blocks: Any, count: int) -> list[int]:
    """Return the chosen block numbers in ascending order, without those that a model of ``count`` blocks lacks.

    Args:
        blocks: a number, a list, a range, a slice, or text: ``"0-5,11"``. Negative numbers count from the end.
        count: number of blocks in the model.

    Raises:
        ValueError: for anything else.

    >>> parse_blocks("0-2,11", 12), parse_blocks(slice(None, None, 5), 12), parse_blocks([-1], 12)
    ([0, 1, 2, 11], [0, 5, 10], [11])
    """
    if isinstance(blocks, slice):
        return list(range(count))[blocks]
    numbers: Iterable[Any]
    if isinstance(blocks, str):
        try:
            numbers = numbers_in(blocks)
        except ValueError:
            raise _unreadable(blocks) from None
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


def _unreadable(blocks: Any) -> ValueError:
    return ValueError(f"blocks must be a number, a list, a range, a slice or text like '0-5,11', got {blocks!r}")


def select_blocks(frame: pd.DataFrame, blocks: Any, result: Any, name: str) -> pd.DataFrame:
    """Return the rows of a figure's frame that belong to the chosen blocks or to no block.

    The final norm, which frames number after the last block, is kept with the last block.

    Raises:
        ValueError: if the figure does not show single blocks, or the choice cannot be parsed.
        NothingToDraw: if no model has any of the blocks.
    """
    columns = [column for column in ("block", "block_1", "block_2") if column in frame]
    if not columns:
        raise ValueError(f"the figure {name} does not show single blocks; leave out blocks")
    kept = frame[columns].isna().all(axis=1)
    models = _models(result)
    for label, (_, count) in models.items():
        wanted = parse_blocks(blocks, count)
        if count - 1 in wanted:
            wanted.append(count)
        of_model = pd.Series(True, index=frame.index) if label is None else frame["label"] == label
        for column in columns:
            of_model &= frame[column].isin(wanted) | frame[column].isna()
        kept |= of_model
    found = frame[kept].reset_index(drop=True)
    if not found[columns].notna().any().any():
        counts = ", ".join(f"{model} has 0 to {count - 1}" for model, count in models.values())
        raise NothingToDraw(f"there is no block {blocks!r} to draw: {counts}")
    return found


def _models(result: Any) -> dict[str | None, tuple[str, int]]:
    """Return the name and number of blocks of each model in a result, by label (None if there is only one model)."""
    if hasattr(result, "diagnostics"):
        return {None: (result.recipe.model, int(result.diagnostics["block"].max()) + 1)}
    analyses = result.analyses if hasattr(result, "analyses") else {None: result}
    return {label: (analysis.model, analysis.blocks) for label, analysis in analyses.items()}
