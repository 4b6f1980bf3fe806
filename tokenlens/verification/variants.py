"""What the models of a verification are called: ``standard``, a preset, or a component and its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenlens.catalog import nearest
from tokenlens.specialization import PRESETS, Specialization, as_specialization

STANDARD, TWIN = "standard", "twin"

START = "start"
"""Under this name stand the weights that trainings started from: no variant, but beside them."""

TWIN_SEEDS = 1000
"""A twin is a standard model whose seed is higher by this."""

_SPANS = ("first_third", "first_half", "last_third")


def specialization_of(variant: str) -> str | dict[str, Any] | None:
    """The specialization of a variant, as a recipe has it; None for a standard model.

    Args:
        variant: ``"standard"``, ``"twin"`` (a second standard model, as a control), a preset, a component (``"mlp"``:
            in all blocks), or a component and a span (``"qkv_first_third"``).

    Raises:
        LookupError: for another name, with the known ones.

    >>> specialization_of("qkv_first_third")
    {'qkv': 'first_third', 'registers': 'cls'}
    """
    if variant in (STANDARD, TWIN):
        return None
    if variant in PRESETS:
        return variant
    for component in Specialization.components():
        for span in ("all", *_SPANS):
            if variant == (component if span == "all" else f"{component}_{span}"):
                chosen: dict[str, Any] = {component: span}
                return Specialization(**chosen).to_dict()
    known = [STANDARD, TWIN, *PRESETS, *Specialization.components(), *(f"qkv_{span}" for span in _SPANS)]
    close = nearest(variant, known)
    hint = f" Did you mean {', '.join(close)}?" if close else ""
    raise LookupError(f"no variant is called {variant!r}.{hint} Available: {', '.join(known)}.")


def variant_of(specialization: str | Mapping[str, Any] | None) -> str:
    """The name of a recipe's specialization; the other way round than ``specialization_of``.

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
