"""The Jupyter widget behind ``tokenlens.explore``."""

from tokenlens.explorer.explore import explore

__all__ = [
    "explore",
]
