"""Which modules of one model are to hold two sets of weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from tokenlens.families.base import Family, find_family, image_size_of
from tokenlens.specialization._functions import Positions
from tokenlens.specialization._specialization import Specialization, Wanted, as_specialization, blocks_of
from tokenlens.specialization.base import Component, SpecializedModule, components
from tokenlens.tokens import TokenLayout

_ATTRIBUTE = "_specialization_plan"


@dataclass(frozen=True)
class Replacement:
    """One module that gets two sets of weights.

    Args:
        component: it belongs to.
        path: of the module in the model; it stays.
        block: number of its block; None for the final norm.
        inside: its path inside the block, the same in all blocks; of the final norm the path in the model.
    """

    component: str
    path: str
    block: int | None
    inside: str


@dataclass(frozen=True)
class Plan:
    """What a Specialization comes to in one model.

    Args:
        specialization: what was asked for.
        positions: of the tokens that use the first set, in the sequence; negative ones count from its end.
        groups: the token groups of these tokens.
        blocks: how many blocks the model has.
        replacements: the modules that get two sets, block by block.
        notes: a sentence for each thing that was asked for and is not there (LayerScale, a final norm).
    """

    specialization: Specialization
    positions: Positions
    groups: tuple[str, ...]
    blocks: int
    replacements: tuple[Replacement, ...]
    notes: tuple[str, ...] = ()


def prefix_side(layout: TokenLayout, registers: str) -> tuple[Positions, tuple[str, ...]]:
    """Positions and groups of the tokens that do not use the patches' weights.

    Positions behind the patches are negative, so that they hold for images of any size.

    >>> prefix_side(TokenLayout((4, 4), ("cls", "reg", "reg")), "patch")
    ((0,), ('cls',))
    >>> prefix_side(TokenLayout((4, 4), ("cls",), patch_start=0), "cls")
    ((-1,), ('cls',))
    """
    members = [
        (position - layout.tokens if position >= layout.patch_slice.stop else position, group)
        for position, group in zip(layout.prefix_positions, layout.prefix, strict=True)
        if group != "reg" or registers == "cls"
    ]
    groups = tuple(dict.fromkeys(group for _, group in members))
    return tuple(position for position, _ in members), groups


def plan(model: nn.Module, specialization: Wanted = "paper", *, family: Family | None = None) -> Plan:
    """What ``specialize`` would do; changes nothing.

    Raises:
        LookupError: for an unknown preset, a model that no family owns, a block that it does not have, and a component
            that cannot be specialized in it.
        ValueError: if nothing is asked for, there is nothing to specialize, the model is specialized already, or it has
            no tokens besides the patches.
    """
    wanted = as_specialization(specialization)
    if plan_of(model) is not None or any(isinstance(module, SpecializedModule) for module in model.modules()):
        raise ValueError("the model is specialized already; merge it first, or start from the standard model")
    if not any(getattr(wanted, name) is not None for name in wanted.components()):
        raise ValueError(f"the specialization names no component; there are {', '.join(wanted.components())}")
    family = family or find_family(model)
    layout = family.layout(model, image_size_of(model) or (224, 224))
    positions, groups = prefix_side(layout, wanted.registers)
    if not positions:
        has = "only registers besides the patches, and they go with the patches" if layout.prefix else "only patches"
        raise ValueError(
            f"this {type(model).__qualname__} has {has}: there are no two kinds of tokens to specialize for"
        )
    replacements: list[Replacement] = []
    notes: list[str] = []
    for name in wanted.components():
        found, missing = _find(model, family, name, wanted)
        replacements += found
        notes += missing
    paths = [replacement.path for replacement in replacements]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        both = " and ".join(replacement.component for replacement in replacements if replacement.path == twice)
        raise ValueError(f"{twice} is asked for twice, by {both}")
    if not replacements:
        raise ValueError(f"nothing to specialize: {' '.join(notes)}")
    blocks = len(family.blocks(model))
    replacements.sort(key=lambda replacement: blocks if replacement.block is None else replacement.block)
    return Plan(wanted, positions, groups, blocks, tuple(replacements), tuple(notes))


def _find(model: nn.Module, family: Family, name: str, wanted: Specialization) -> tuple[list[Replacement], list[str]]:
    blocks = family.blocks(model)
    numbers = blocks_of(getattr(wanted, name), len(blocks))
    component: Component = components.get(name)()
    found, without = [], []
    for number in numbers:
        inside = component.paths(family, blocks[number])
        start = _path_of(model, blocks[number])
        found += [Replacement(name, f"{start}.{path}", number, path) for path in inside]
        if not inside:
            without.append(number)
    notes = []
    if without:
        where = "the model has none" if len(without) == len(numbers) else f"not in blocks {without}"
        notes.append(f"{name} is left out: {where}.")
    if component.takes_final_norm and len(blocks) - 1 in numbers:
        norm = family.final_norm(model)
        if norm is None:
            notes.append("There is no norm over all tokens after the last block.")
        else:
            path = _path_of(model, norm)
            found.append(Replacement(name, path, None, path))
    return found, notes


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is wanted)


def plan_of(model: nn.Module) -> Plan | None:
    """What was done to a specialized model; None for a standard one."""
    found: Plan | None = getattr(model, _ATTRIBUTE, None)
    return found


def remember_plan(model: nn.Module, plan: Plan) -> None:
    """The model is specialized from now on."""
    setattr(model, _ATTRIBUTE, plan)


def forget_plan(model: nn.Module) -> None:
    """The model is a standard one again."""
    delattr(model, _ATTRIBUTE)


def owner_of(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that a path's last name is an attribute of, and that name."""
    start, _, name = path.rpartition(".")
    return model.get_submodule(start), name
