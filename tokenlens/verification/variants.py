"""Names of the variants in a verification: ``standard``, a preset, or a component and its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenlens.catalog import check_known
from tokenlens.specialization import PRESETS, Specialization, as_specialization

STANDARD, PAPER, TWIN = "standard", "paper", "twin"
"""``twin`` is a control: a second standard model, with another seed, in place of the specialized one."""

START = "start"
"""Label of the weights that trainings start from; it is shown next to the variants and is not one of them."""

TWIN_SEEDS = 1000
"""A twin's seed is its matched standard model's plus this."""

PROBE_SEEDS = 1000
"""The seed of a probe's further draw is the model's plus a multiple of this."""


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
    check_known(variant, [STANDARD, TWIN, *PRESETS, *single], "variant")
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
