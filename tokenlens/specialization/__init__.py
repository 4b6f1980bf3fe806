"""Separate weights for prefix tokens and patches, in any Vision Transformer: the same function at the start.

``specialize`` gives modules of a model a second set of weights, ``merge`` averages the sets again, ``costs`` says what
it takes. What can be specialized is a component, one file of this folder each. See docs/add-a-specialization.md.
"""

from tokenlens.specialization._costs import Cost, costs
from tokenlens.specialization._functions import Positions
from tokenlens.specialization._merge import Merged, merge
from tokenlens.specialization._plan import Plan, Replacement, plan, plan_of, prefix_side
from tokenlens.specialization._save import save
from tokenlens.specialization._specialization import PRESETS, Specialization, as_specialization
from tokenlens.specialization._specialize import specialize
from tokenlens.specialization._state_dict import has_two_sets, in_two_sets
from tokenlens.specialization._timm_config import GENERIC
from tokenlens.specialization.base import Component, SpecializedModule, components

__all__ = [
    "GENERIC",
    "PRESETS",
    "Component",
    "Cost",
    "Merged",
    "Plan",
    "Positions",
    "Replacement",
    "Specialization",
    "SpecializedModule",
    "as_specialization",
    "components",
    "costs",
    "has_two_sets",
    "in_two_sets",
    "merge",
    "plan",
    "plan_of",
    "prefix_side",
    "save",
    "specialize",
]
