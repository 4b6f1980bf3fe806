"""A standard state dict in a specialized model: each weight goes into both sets."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from tokenlens.specialization._plan import Plan, plan_of
from tokenlens.specialization.base import SpecializedModule


def standard_names(model: nn.Module, plan: Plan) -> dict[str, tuple[str, str]]:
    """For each name of a standard state dict that a specialized model holds twice, the two names it has there."""
    names: dict[str, tuple[str, str]] = {}
    for replacement in plan.replacements:
        module = model.get_submodule(replacement.path)
        assert isinstance(module, SpecializedModule)
        names |= module.keys(replacement.path)
    return names


def in_two_sets(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Tensors by standard names as a specialized model calls them; for a standard model as they are."""
    found, plan = dict(tensors), plan_of(model)
    if plan is not None:
        _double(found, standard_names(model, plan), "")
    return found


def has_two_sets(tensors: Mapping[str, Any]) -> bool:
    """Whether a state dict is a specialized model's."""
    return any(".cls." in name and name.replace(".cls.", ".patch.") in tensors for name in tensors)


def accept_standard_names(model: nn.Module) -> None:
    """Let ``load_state_dict`` of the model, and of any module around it, take standard names, too."""
    model.register_load_state_dict_pre_hook(_before_loading)


def refuse_standard_names(model: nn.Module) -> None:
    """Take that back."""
    hooks = model._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) is _before_loading]:
        del hooks[key]


def _before_loading(model: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any) -> None:
    plan = plan_of(model)
    assert plan is not None
    _double(state_dict, standard_names(model, plan), prefix)


def _double(tensors: MutableMapping[str, Tensor], names: Mapping[str, tuple[str, str]], prefix: str) -> None:
    for standard, (cls, patch) in names.items():
        if prefix + standard in tensors and not {prefix + cls, prefix + patch} & tensors.keys():
            tensor = tensors.pop(prefix + standard)
            # A copy, because load_state_dict(assign=True) takes the tensors themselves.
            tensors[prefix + cls], tensors[prefix + patch] = tensor.clone(), tensor
