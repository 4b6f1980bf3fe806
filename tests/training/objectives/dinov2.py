"""The options of ``dino``: one local crop in addition to the two global ones, small heads; half of the crops masked.

Sinkhorn–Knopp and KoLeo compare the images of a part with each other, so its loss does not split either.
"""

from tests.training.objectives.dino import MOVES, SPLITS, options

__all__ = ["MOVES", "SPLITS", "options"]
