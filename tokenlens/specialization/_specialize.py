"""Replace modules of a model by specialized ones."""

from __future__ import annotations

from torch import nn

from tokenlens.families.base import Family
from tokenlens.specialization._plan import find_owner, plan_specialization, set_plan
from tokenlens.specialization._save import describe_for_timm
from tokenlens.specialization._specialization import SpecializationLike
from tokenlens.specialization._state_dict import accept_standard_names
from tokenlens.specialization.base import SpecializedModule, components


def specialize(
    model: nn.Module, specialization: SpecializationLike = "paper", *, family: Family | None = None
) -> nn.Module:
    """Give modules of a Vision Transformer separate weights for special tokens and patches, in place.

    Both weights start as copies of the standard ones, so the model's output does not change, bit by bit. Modules keep
    their names: ``blocks.3.norm1.weight`` becomes ``blocks.3.norm1.cls.weight`` and ``blocks.3.norm1.patch.weight``.
    Standard and specialized state dicts both load; a standard weight is copied to both names.

    Create the optimizer and register hooks afterwards: the model has new parameters, and the replaced modules are never
    called again. Sequences of several images joined into one (nested tensors) are not supported.

    Args:
        model: a model of any family with a CLS token, distillation token or registers.
        specialization: ``"norms"``, ``"paper"``, ``"qkv_all"``, ``"everything"`` or a ``Specialization``.
        family: the family of a model that tokenlens does not know.

    Returns:
        The model.

    Raises:
        LookupError, ValueError: as ``plan_specialization``; the model is then unchanged.

    >>> import timm
    >>> model = timm.create_model("test_vit", num_classes=0)
    >>> [name for name, _ in specialize(model, "norms").blocks[0].norm1.named_parameters()]
    ['cls.weight', 'cls.bias', 'patch.weight', 'patch.bias']
    """
    plan = plan_specialization(model, specialization, family=family)
    new: list[tuple[nn.Module, str, SpecializedModule]] = []
    for planned in plan.modules:
        owner, name = find_owner(model, planned.path)
        module = components.get(planned.component)().specialize(owner, name, plan.positions)
        new.append((owner, name, module))
    for owner, name, module in new:
        module.install(owner, name)
    set_plan(model, plan)
    accept_standard_names(model)
    describe_for_timm(model, plan.specialization)
    return model
