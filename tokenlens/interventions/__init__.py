"""Replace the tokens of a group at a site, and measure what the others lose. One file per replacement."""

from tokenlens.interventions._intervene import intervene
from tokenlens.interventions._intervention import EFFECT_COLUMNS, Intervention
from tokenlens.interventions._photographs import ReplacedPhotographs
from tokenlens.interventions._targets import CONTROL, TARGETS
from tokenlens.interventions.base import Given, Replacement, TokenReplacement, replacements

__all__ = [
    "CONTROL",
    "EFFECT_COLUMNS",
    "TARGETS",
    "Given",
    "Intervention",
    "ReplacedPhotographs",
    "Replacement",
    "TokenReplacement",
    "intervene",
    "replacements",
]
