"""What a specialization costs: parameters and FLOPs, component by component."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokenlens.families.base import Family, find_family, image_size_of
from tokenlens.specialization._plan import Plan, plan
from tokenlens.specialization._specialization import Wanted
from tokenlens.specialization._specialize import specialize
from tokenlens.specialization.base import SpecializedModule


@dataclass(frozen=True)
class Cost:
    """Of the modules of one component, or of the whole model.

    Args:
        component: its name, or ``"model"``.
        modules: how many are specialized.
        parameters: of these modules in the standard model.
        added_parameters: by the second set.
        flops: of these modules for one image in the standard model: floating point operations of matrix products and
            convolutions (a multiplication and an addition are two), as ``torch.utils.flop_counter`` counts them. Norms
            and LayerScale count nothing.
        added_flops: the prefix tokens' rows are computed with both sets.
    """

    component: str
    modules: int
    parameters: int
    added_parameters: int
    flops: int
    added_flops: int


def costs(
    model: nn.Module, specialization: Wanted = "paper", *, family: Family | None = None
) -> tuple[Plan, list[Cost]]:
    """What specializing a standard model comes to: the plan, a cost for each component, and last the whole model's.

    Works on a copy without memory for weights; the model is left as it is.

    Raises:
        LookupError, ValueError: as ``plan``.
    """
    standard = copy.deepcopy(model).to("meta").eval()
    family = family or find_family(standard)
    chosen = plan(standard, specialization, family=family)
    before = _flops(standard, family)
    total = sum(parameter.numel() for parameter in standard.parameters())
    twin = specialize(standard, specialization, family=family)
    after = _flops(twin, family)
    found = []
    for component in chosen.specialization.components():
        paths = [replacement.path for replacement in chosen.replacements if replacement.component == component]
        if paths:
            flops = sum(before.get(path, 0) for path in paths)
            one_set = sum(_one_set(twin, path) for path in paths)
            added = sum(after.get(path, 0) for path in paths) - flops
            found.append(Cost(component, len(paths), one_set, one_set, flops, added))
    added = sum(parameter.numel() for parameter in twin.parameters()) - total
    whole = Cost("model", len(chosen.replacements), total, added, before[""], after[""] - before[""])
    return chosen, [*found, whole]


def _one_set(twin: nn.Module, path: str) -> int:
    module = twin.get_submodule(path)
    assert isinstance(module, SpecializedModule)
    return sum(parameter.numel() for parameter in module.patch.parameters())


@torch.no_grad()
def _flops(model: nn.Module, family: Family) -> dict[str, int]:
    """FLOPs of every module by its path, for one image; the model's own under the empty path."""
    image = torch.zeros(1, 3, *(image_size_of(model) or (224, 224)), device="meta")
    # Attention written out as two matrix products. Fused kernels compute the same, but whether the counter knows them
    # depends on the device and the version of torch: it misses the CPU's up to 2.14, at least.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        family.forward(model, image)
    counts = {name.partition(".")[2]: sum(of_module.values()) for name, of_module in counter.get_flop_counts().items()}
    return counts | {"": counter.get_total_flops()}
