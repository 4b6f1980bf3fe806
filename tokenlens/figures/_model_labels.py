"""Label the models of a comparison with their names or, where these are too long, with letters."""

from __future__ import annotations

import string
from dataclasses import dataclass

import pandas as pd
from matplotlib.lines import Line2D

from tokenlens.figures.page import BOLD, characters, wrapped
from tokenlens.figures.style import model_colour, model_look

MOST_LINES = 3
"""Names that need more lines than this in a panel's title are replaced by letters, explained in the legend."""


def letter_of(number: int) -> str:
    """Return a model's letter, A for the first."""
    return string.ascii_uppercase[number % 26] + (str(number // 26 + 1) if number >= 26 else "")


@dataclass(frozen=True)
class ModelLabels:
    """Labels of the models in a figure.

    Attributes:
        full: full label of each model, by its index in the comparison.
        lettered: whether panels use letters instead.
    """

    full: dict[int, str]
    lettered: bool = False

    def short(self, number: int) -> str:
        """Return the label for a panel's title or an axis."""
        return letter_of(number) if self.lettered else self.full[number]

    def handles(self, lines: bool = True) -> list[Line2D]:
        """Return legend entries; without ``lines`` they only explain the letters, so full names need none."""
        if not lines and not self.lettered:
            return []
        look = (
            model_look if lines else lambda number: {"linestyle": "none", "color": model_colour(number), "marker": ""}
        )
        return [
            Line2D([], [], label=f"{letter_of(number)}: {text}" if self.lettered else text, **look(number))
            for number, text in self.full.items()
        ]


def model_labels(frame: pd.DataFrame, width_mm: float | None = None, lettered: bool = False) -> ModelLabels:
    """Return the labels of the models in a frame with the columns ``label`` and ``model_number``.

    Args:
        frame: the frame of a comparison's figure.
        width_mm: width available for a name; letters are used if a name would need more than three lines.
        lettered: always use letters.
    """
    named = frame[["model_number", "label"]].dropna().drop_duplicates("model_number").sort_values("model_number")
    full = {int(number): str(label) for number, label in named.itertuples(index=False)}
    if width_mm is not None:
        room = int(characters(width_mm) * BOLD)
        lettered |= any(wrapped(text, room).count("\n") >= MOST_LINES for text in full.values())
    return ModelLabels(full, lettered)
