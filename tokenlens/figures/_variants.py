"""How the variants of a verification look, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from tokenlens.figures._models import model_look

_ORDER = ("standard", "paper", "norms", "qkv_first_third", "qkv_all", "twin", "mlp", "proj", "everything")


def variants_in_order(names: Iterable[str]) -> list[str]:
    """Standard and paper first."""
    there = list(dict.fromkeys(names))
    return [name for name in _ORDER if name in there] + sorted(set(there) - set(_ORDER))


def variant_look(name: str) -> dict[str, Any]:
    """Colour, dashes and marker: the same ones in every figure."""
    return model_look(_ORDER.index(name) if name in _ORDER else len(_ORDER))


def seeds_text(seeds: pd.Series) -> str:
    """ "3 seeds"."""
    count = int(seeds.nunique())
    return f"{count} seed{'s' if count != 1 else ''}"
