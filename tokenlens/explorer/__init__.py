"""The Jupyter view behind ``tokenlens.explore``."""

from tokenlens.explorer.explore import explore

__all__ = [
    "explore",
]
