"""Find the modules of a model that a Specialization selects."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tokenlens.families import SplitNorm
from tokenlens.families.base import Family, find_family, image_size_of
from tokenlens.specialization._functions import Positions
from tokenlens.specialization._specialization import Specialization, SpecializationLike, as_specialization, blocks_of
from tokenlens.specialization.base import Component, SpecializedModule, components
from tokenlens.tokens import TokenLayout

_ATTRIBUTE = "_specialization_plan"


@dataclass(frozen=True)
class PlannedModule:
    """A module to specialize.

    Args:
        component: name of its component.
        path: its path in the model, which stays the same.
        block: index of its block; None for the final norm.
        path_in_block: its path in the block, the same in all blocks; for the final norm the path in the model.
    """

    component: str
    path: str
    block: int | None
    path_in_block: str


@dataclass(frozen=True)
class SpecializationPlan:
    """A Specialization applied to one model.

    Args:
        specialization: the Specialization.
        positions: positions of the special tokens that get weights of their own; negative ones count from the end.
        groups: the token groups of these tokens.
        blocks: number of blocks of the model.
        modules: the modules to specialize, block by block.
        notes: a sentence for each thing that was asked for and that the model lacks (LayerScale, a final norm).
    """

    specialization: Specialization
    positions: Positions
    groups: tuple[str, ...]
    blocks: int
    modules: tuple[PlannedModule, ...]
    notes: tuple[str, ...] = ()


def find_special_tokens(layout: TokenLayout, registers: str) -> tuple[Positions, tuple[str, ...]]:
    """Return positions and groups of the tokens that do not use the patches' weights.

    Positions behind the patches are negative, so that they are valid for images of any size.

    Raises:
        ValueError: for a token between patches, whose position depends on the size of the image.

    >>> find_special_tokens(TokenLayout((4, 4), ("cls", "reg", "reg")), "patch")
    ((0,), ('cls',))
    >>> find_special_tokens(TokenLayout((4, 4), ("cls",), patch_start=0), "cls")
    ((-1,), ('cls',))
    """
    if not layout.contiguous:
        raise ValueError(
            "special tokens stand between the patches of this model, at positions that depend on the image size; a "
            "specialization needs them in front of the patches or behind them"
        )
    tokens = [
        (position - layout.tokens if position >= layout.patch_slice.stop else position, group)
        for position, group in zip(layout.prefix_positions, layout.prefix, strict=True)
        if group != "reg" or registers == "cls"
    ]
    return tuple(position for position, _ in tokens), tuple(dict.fromkeys(group for _, group in tokens))


def plan_specialization(
    model: nn.Module, specialization: SpecializationLike = "paper", *, family: Family | None = None
) -> SpecializationPlan:
    """Return what ``specialize`` would do, without changing the model.

    Raises:
        LookupError: for an unknown preset, a model of no known family, a block that the model does not have, and a
            component that cannot be specialized in this model.
        ValueError: if the specialization is empty, the model has nothing to specialize, is specialized already, or has
            only patch tokens.
    """
    wanted = as_specialization(specialization)
    if get_plan(model) is not None or any(isinstance(module, SpecializedModule) for module in model.modules()):
        raise ValueError("the model is specialized already; merge it first, or start from the standard model")
    if not any(getattr(wanted, name) is not None for name in wanted.components()):
        raise ValueError(f"the specialization names no component; there are {', '.join(wanted.components())}")
    family = family or find_family(model)
    layout = family.layout(model, image_size_of(model) or (224, 224))
    positions, groups = find_special_tokens(layout, wanted.registers)
    if not positions:
        has = "only registers and patches, which share their weights" if layout.prefix else "only patches"
        raise ValueError(f"this {type(model).__qualname__} has {has}, so there is nothing to specialize")
    modules: list[PlannedModule] = []
    notes: list[str] = []
    for name in wanted.components():
        found, missing = _find_modules(model, family, name, wanted)
        modules += found
        notes += missing
    paths = [module.path for module in modules]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        both = " and ".join(module.component for module in modules if module.path == twice)
        raise ValueError(f"{twice} is selected twice, by {both}")
    if not modules:
        raise ValueError(f"nothing to specialize: {' '.join(notes)}")
    blocks = len(family.blocks(model))
    modules.sort(key=lambda module: blocks if module.block is None else module.block)
    return SpecializationPlan(wanted, positions, groups, blocks, tuple(modules), tuple(notes))


def _find_modules(
    model: nn.Module, family: Family, name: str, wanted: Specialization
) -> tuple[list[PlannedModule], list[str]]:
    """Return one component's modules, and notes on what the model lacks."""
    blocks = family.blocks(model)
    numbers = blocks_of(getattr(wanted, name), len(blocks))
    component: Component = components.get(name)()
    found, without = [], []
    for number in numbers:
        paths = component.paths(family, blocks[number])
        block_path = _path_of(model, blocks[number])
        found += [PlannedModule(name, f"{block_path}.{path}", number, path) for path in paths]
        if not paths:
            without.append(number)
    notes = []
    if without:
        where = "the model has none" if len(without) == len(numbers) else f"not in blocks {without}"
        notes.append(f"{name} is left out: {where}.")
    if component.takes_final_norm and wanted.final_norm and len(blocks) - 1 in numbers:
        norm = family.final_norm(model)
        if norm is None:
            notes.append("There is no norm over all tokens after the last block.")
        elif isinstance(norm, SplitNorm):
            notes.append("The model itself norms special tokens and patches apart after the last block; left as it is.")
        elif next(norm.parameters(), None) is None:
            notes.append("The norm after the last block has no weights; left as it is.")
        else:
            path = _path_of(model, norm)
            found.append(PlannedModule(name, path, None, path))
    return found, notes


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is wanted)


def get_plan(model: nn.Module) -> SpecializationPlan | None:
    """Return the plan by which a model was specialized; None for a standard model."""
    plan: SpecializationPlan | None = getattr(model, _ATTRIBUTE, None)
    return plan


def set_plan(model: nn.Module, plan: SpecializationPlan) -> None:
    """Mark a model as specialized."""
    setattr(model, _ATTRIBUTE, plan)


def remove_plan(model: nn.Module) -> None:
    """Mark a model as a standard one."""
    delattr(model, _ATTRIBUTE)


def find_owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Return the module that holds the attribute at ``path``, and the attribute's name."""
    owner, _, name = path.rpartition(".")
    return model.get_submodule(owner), name
