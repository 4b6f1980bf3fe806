"""Parameters and FLOPs that a specialization adds, component by component."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokenlens.families.base import Family, find_family, image_size_of
from tokenlens.specialization._plan import SpecializationPlan, plan_specialization
from tokenlens.specialization._specialization import SpecializationLike
from tokenlens.specialization._specialize import specialize
from tokenlens.specialization.base import SpecializedModule


@dataclass(frozen=True)
class SpecializationCost:
    """Parameters and FLOPs of one component, or of the whole model.

    Args:
        component: name of the component, or ``"model"``.
        modules: number of modules that are specialized.
        parameters: parameters of these modules in the standard model.
        added_parameters: parameters that specialization adds.
        flops: FLOPs of these modules for one image in the standard model: operations of matrix products and
            convolutions (a multiplication and an addition are two), as ``torch.utils.flop_counter`` counts them. Norms
            and LayerScale count nothing.
        added_flops: FLOPs that specialization adds, for the second product on the rows of the special tokens.
    """

    component: str
    modules: int
    parameters: int
    added_parameters: int
    flops: int
    added_flops: int


def compute_costs(
    model: nn.Module, specialization: SpecializationLike = "paper", *, family: Family | None = None
) -> tuple[SpecializationPlan, list[SpecializationCost]]:
    """Compute what specializing a standard model adds, on a copy of it on the meta device.

    Returns:
        The plan, and a cost for each component that is specialized; the last cost is that of the whole model.

    Raises:
        LookupError, ValueError: as ``plan_specialization``.
    """
    standard = copy.deepcopy(model).to("meta").eval()
    family = family or find_family(standard)
    plan = plan_specialization(standard, specialization, family=family)
    before = _count_flops(standard, family)
    parameters = sum(parameter.numel() for parameter in standard.parameters())
    specialized = specialize(standard, specialization, family=family)
    after = _count_flops(specialized, family)
    costs = []
    for component in plan.specialization.components():
        paths = [module.path for module in plan.modules if module.component == component]
        if paths:
            flops = sum(before.get(path, 0) for path in paths)
            added_flops = sum(after.get(path, 0) for path in paths) - flops
            # The second weights have as many parameters as the standard ones.
            added = sum(_count_patch_parameters(specialized, path) for path in paths)
            costs.append(SpecializationCost(component, len(paths), added, added, flops, added_flops))
    added = sum(parameter.numel() for parameter in specialized.parameters()) - parameters
    whole = SpecializationCost("model", len(plan.modules), parameters, added, before[""], after[""] - before[""])
    return plan, [*costs, whole]


def _count_patch_parameters(specialized: nn.Module, path: str) -> int:
    module = specialized.get_submodule(path)
    assert isinstance(module, SpecializedModule)
    return sum(parameter.numel() for parameter in module.patch.parameters())


@torch.no_grad()
def _count_flops(model: nn.Module, family: Family) -> dict[str, int]:
    """Return the FLOPs of every module by its path, for one image; those of the model under the empty path."""
    image = torch.zeros(1, 3, *(image_size_of(model) or (224, 224)), device="meta")
    # Attention as two matrix products: whether the counter knows a fused kernel depends on device and version of
    # torch (that of the CPU it does not know up to 2.14, at least).
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        family.forward(model, image)
    counts = {name.partition(".")[2]: sum(of_module.values()) for name, of_module in counter.get_flop_counts().items()}
    return counts | {"": counter.get_total_flops()}
