"""Find the one Vision Transformer of a module that may be a wrapper around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokenlens.families._preprocessing import stored_preprocessing
from tokenlens.families.base import SHARDED, TRANSPARENT, Family, explain_no_family, find_family, find_vits, is_a


@dataclass(frozen=True)
class FoundViT:
    """A Vision Transformer, and where it was found.

    Args:
        module: the model.
        family: its family.
        preprocessing: the preprocessing that the model states, or a wrapper of open_clip around it.
        note: where in which wrapper the model was found; empty if it is the module itself.
    """

    module: nn.Module
    family: Family
    preprocessing: Mapping[str, Any]
    note: str = ""


def find_vit(model: nn.Module, family: Family | None = None) -> FoundViT:
    """Find the Vision Transformer of a module: the module itself, or the only one inside it, at any depth.

    Images go straight to the model inside. What its wrappers do with images before (resizing, normalizing) or after it
    does not happen, and ``note`` says so, unless they are known to pass images on as they are (``DataParallel``,
    ``DistributedDataParallel``, ``torch.compile``, whose compiled code does not run).

    Args:
        model: the module.
        family: the family of the module itself, which is then not searched.

    Raises:
        LookupError: if there is none, there are several (with their paths), the model inside is compiled, or FSDP has
            distributed its weights.
    """
    if family is not None:
        return FoundViT(model, family, family.preprocessing(model))
    found = find_vits(model)
    if len(found) != 1 or any(is_a(part, SHARDED) for part in model.modules()):
        raise explain_no_family(model)
    [(path, (module, _))] = found.items()
    family = find_family(module)
    stated = [stored_preprocessing(model.get_submodule(owner)) for owner in _owners(path)]
    preprocessing = next((each for each in stated if each), family.preprocessing(module))
    return FoundViT(module, family, preprocessing, _describe_place(model, path, module, family))


def _owners(path: str) -> list[str]:
    """Return the paths of the wrappers around a path, innermost first."""
    names = path.split(".") if path else []
    return [".".join(names[:count]) for count in reversed(range(len(names)))]


def _describe_place(model: nn.Module, path: str, module: nn.Module, family: Family) -> str:
    if not path:
        return ""
    wrapper, inner = type(model).__qualname__, type(module).__qualname__
    where = f"The analyzed model is {path} ({inner}, {family.name}), the one Vision Transformer inside this {wrapper}."
    if all(is_a(model.get_submodule(owner), *TRANSPARENT) for owner in _owners(path)):
        return where
    return f"{where} Images go directly to it: any resizing or normalizing of the {wrapper} does not happen."
