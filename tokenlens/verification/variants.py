"""Names of the variants in a verification: ``standard``, a preset, or a component and its blocks.

A variant of another model than the recipe's, with registers or an attention bias, has that in front of its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tokenlens.catalog import check_known
from tokenlens.specialization import PRESETS, Specialization, as_specialization
from tokenlens.training.recipe import Recipe

STANDARD, PAPER, TWIN = "standard", "paper", "twin"
"""``twin`` is a control: a second standard model, with another seed, in place of the specialized one."""

KINDS = ("registers", "bias")
"""Other models than the recipe's: with four registers, and with an attention bias (a learned key and value per block).
Each is a setting of its own, in which standard and specialized models are compared."""

REGISTERS = 4

START = "start"
"""Label of the weights that trainings start from; it is shown next to the variants and is not one of them."""

TWIN_SEEDS = 1000
"""A twin's seed is its matched standard model's plus this."""

PROBE_SEEDS = 1000
"""The seed of a probe's further draw is the model's plus a multiple of this."""


def split_variant(variant: str) -> tuple[str, str]:
    """Return the kind of model, empty for the recipe's own, and the name of the specialization.

    >>> split_variant("bias_paper"), split_variant("registers"), split_variant("qkv_all")
    (('bias', 'paper'), ('registers', 'standard'), ('', 'qkv_all'))
    """
    kind, _, rest = variant.partition("_")
    return (kind, rest or STANDARD) if kind in KINDS and rest not in KINDS else ("", variant)


def recipe_of_variant(recipe: Recipe, variant: str) -> Recipe:
    """Return the recipe of a variant: its specialization, and four registers or the attention bias.

    Raises:
        LookupError: for an unknown variant, with the known ones.
    """
    kind, name = split_variant(variant)
    if kind == "registers":
        recipe = replace(recipe, model_options={**recipe.model_options, "reg_tokens": REGISTERS})
    elif kind == "bias":
        recipe = replace(recipe, attention_bias=True)
    return replace(recipe, specialization=specialization_of(name))


def specialization_of(variant: str) -> str | dict[str, Any] | None:
    """Return the specialization of a variant in the form that a recipe holds; None for a standard model.

    Args:
        variant: ``"standard"``, ``"twin"``, a preset, a component (``"mlp"``: in all blocks), or a component and a
            range of blocks (``"qkv_first_third"``).

    Raises:
        LookupError: for any other name, with the known ones.

    >>> specialization_of("qkv_first_third")
    {'qkv': 'first_third', 'registers': 'cls'}
    """
    if variant in (STANDARD, TWIN):
        return None
    if variant in PRESETS:
        return variant
    single: dict[str, dict[str, Any]] = {
        component if blocks == "all" else f"{component}_{blocks}": {component: blocks}
        for component in Specialization.components()
        for blocks in ("all", "first_third", "first_half", "last_third")
    }
    check_known(variant, [STANDARD, TWIN, *PRESETS, *single, *KINDS], "variant")
    return Specialization(**single[variant]).to_dict()


def variant_of(specialization: str | Mapping[str, Any] | None) -> str:
    """Return the name of a recipe's specialization, the inverse of ``specialization_of``.

    >>> variant_of({"mlp": "all", "proj": [0, 1], "registers": "cls"}), variant_of(None)
    ('proj_0,1+mlp', 'standard')
    """
    if specialization is None:
        return STANDARD
    wanted = as_specialization(specialization)
    for name, preset in PRESETS.items():
        if wanted == preset:
            return name
    parts = []
    for component in Specialization.components():
        blocks = getattr(wanted, component)
        if blocks is not None:
            where = blocks if isinstance(blocks, str) else ",".join(map(str, blocks))
            parts.append(component if where == "all" else f"{component}_{where}")
    return "+".join(parts) + ("" if wanted.registers == "cls" else f" (registers {wanted.registers})")
