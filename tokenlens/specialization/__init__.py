"""Separate weights for special tokens and patches in any Vision Transformer, equal at the start.

``specialize`` gives modules of a model a second copy of their weights, ``merge`` averages the copies again, and
``compute_costs`` counts the added parameters and FLOPs. Each file of this folder without a leading underscore defines
a component, a kind of module that can be specialized. See docs/add-a-specialization.md.
"""

from tokenlens.specialization._costs import SpecializationCost, compute_costs
from tokenlens.specialization._functions import Positions
from tokenlens.specialization._merge import MergeResult, merge
from tokenlens.specialization._plan import PlannedModule, SpecializationPlan, get_plan, plan_specialization
from tokenlens.specialization._save import TIMM_ENTRY_POINT, save, save_timm_folder
from tokenlens.specialization._specialization import PRESETS, Specialization, SpecializationLike, as_specialization
from tokenlens.specialization._specialize import specialize
from tokenlens.specialization._state_dict import expand_standard_weights, has_specialized_weights
from tokenlens.specialization.base import Component, SpecializedModule, components

__all__ = [
    "PRESETS",
    "TIMM_ENTRY_POINT",
    "Component",
    "MergeResult",
    "PlannedModule",
    "Positions",
    "Specialization",
    "SpecializationCost",
    "SpecializationLike",
    "SpecializationPlan",
    "SpecializedModule",
    "as_specialization",
    "components",
    "compute_costs",
    "expand_standard_weights",
    "get_plan",
    "has_specialized_weights",
    "merge",
    "plan_specialization",
    "save",
    "save_timm_folder",
    "specialize",
]
