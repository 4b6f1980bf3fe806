"""Standard state dicts in specialized models: each weight is loaded twice, for special tokens and for patches."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from tokenlens.specialization._plan import SpecializationPlan, get_plan
from tokenlens.specialization.base import SpecializedModule


def map_standard_names(model: nn.Module, plan: SpecializationPlan) -> dict[str, tuple[str, str]]:
    """Map each standard name whose weight a specialized model holds twice to its two names in that model."""
    names: dict[str, tuple[str, str]] = {}
    for planned in plan.modules:
        module = model.get_submodule(planned.path)
        assert isinstance(module, SpecializedModule)
        names |= module.map_names(planned.path)
    return names


def expand_standard_weights(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return tensors under the names of ``model``: for a specialized one, each standard weight under both names."""
    expanded, plan = dict(tensors), get_plan(model)
    if plan is not None:
        _expand(expanded, map_standard_names(model, plan), "")
    return expanded


def has_specialized_weights(tensors: Mapping[str, Any]) -> bool:
    """Return whether a state dict is one of a specialized model."""
    return any(".cls." in name and name.replace(".cls.", ".patch.") in tensors for name in tensors)


def accept_standard_names(model: nn.Module) -> None:
    """Let ``load_state_dict`` of the model, and of any module around it, accept standard names too."""
    model.register_load_state_dict_pre_hook(_before_loading)


def refuse_standard_names(model: nn.Module) -> None:
    """Undo ``accept_standard_names``."""
    hooks = model._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) is _before_loading]:
        del hooks[key]


def _before_loading(model: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any) -> None:
    plan = get_plan(model)
    assert plan is not None
    _expand(state_dict, map_standard_names(model, plan), prefix)


def _expand(tensors: MutableMapping[str, Tensor], names: Mapping[str, tuple[str, str]], prefix: str) -> None:
    for standard, (cls, patch) in names.items():
        if prefix + standard in tensors and not {prefix + cls, prefix + patch} & tensors.keys():
            tensor = tensors.pop(prefix + standard)
            # A copy, because load_state_dict(assign=True) takes the tensors themselves.
            tensors[prefix + cls], tensors[prefix + patch] = tensor.clone(), tensor
