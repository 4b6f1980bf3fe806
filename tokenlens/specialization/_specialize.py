"""Replacing modules of a model by ones with two sets of weights."""

from __future__ import annotations

from torch import nn

from tokenlens.families.base import Family
from tokenlens.specialization._plan import owner_of, plan, remember_plan
from tokenlens.specialization._specialization import Wanted
from tokenlens.specialization._state_dict import accept_standard_names
from tokenlens.specialization._timm_config import describe_for_timm
from tokenlens.specialization.base import SpecializedModule, components


def specialize(model: nn.Module, specialization: Wanted = "paper", *, family: Family | None = None) -> nn.Module:
    """Give modules of a Vision Transformer a second set of weights: one for the prefix tokens, one for the patches.

    The model is changed and returned. Both sets start as the standard weights, so it computes what it did before, bit
    by bit. Modules keep their names: ``blocks.3.norm1.weight`` becomes ``blocks.3.norm1.cls.weight`` and
    ``blocks.3.norm1.patch.weight``. A standard state dict still loads (each weight into both sets), and so does a
    specialized one. Modules of the standard model that are replaced are never called again: put hooks on afterwards.

    Make the optimizer afterwards: half of the parameters are new. Sequences of several images joined into one (nested
    tensors) are not told apart.

    Args:
        model: of any family with CLS, distillation token or registers.
        specialization: ``"norms"``, ``"paper"``, ``"qkv_all"``, ``"everything"``, or a Specialization of your own.
        family: what knows the inside of a model that tokenlens does not know.

    Raises:
        LookupError, ValueError: as ``plan``; the model is then as it was.

    >>> import timm
    >>> model = timm.create_model("test_vit", num_classes=0)
    >>> [name for name, _ in specialize(model, "norms").blocks[0].norm1.named_parameters()]
    ['cls.weight', 'cls.bias', 'patch.weight', 'patch.bias']
    """
    chosen = plan(model, specialization, family=family)
    new: list[tuple[nn.Module, str, SpecializedModule]] = []
    for replacement in chosen.replacements:
        owner, name = owner_of(model, replacement.path)
        module = components.get(replacement.component)().specialized(owner, name, chosen.positions)
        new.append((owner, name, module))
    for owner, name, module in new:
        module.install(owner, name)
    remember_plan(model, chosen)
    accept_standard_names(model)
    describe_for_timm(model, chosen.specialization)
    return model
