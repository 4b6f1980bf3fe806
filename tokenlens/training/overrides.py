"""Change single values of a recipe by name, as ``--set NAME=VALUE`` does."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from tokenlens.catalog import check_known
from tokenlens.specialization import Specialization, as_specialization
from tokenlens.training.objectives.base import make_options, objectives
from tokenlens.training.recipe import Recipe


def override(
    recipe: Recipe,
    settings: Iterable[str] = (),
    specialize: str | Specialization | None = None,
    seed: int | None = None,
) -> Recipe:
    """Return a recipe with some values changed, another specialization and another seed.

    Args:
        recipe: the recipe.
        settings: changes, each ``name=value``. ``model_options.depth=6`` and ``objective_options.koleo=0`` change one
            option; the value is a Python literal or a bare word, ``none`` for None. Setting epochs unsets steps, and
            the other way round.
        specialize: preset or specialization; None keeps the recipe's.
        seed: None keeps the recipe's.

    Raises:
        LookupError: for an unknown setting, option, objective or preset; names the nearest ones.
        ValueError: for a value of another type or out of range.
    """
    settings = list(settings)
    # The objective first, as it decides which options there are.
    recipe = with_settings(recipe, [one for one in settings if one.partition("=")[0].strip() == "objective"])
    recipe = with_settings(recipe, settings, objectives.get(recipe.objective).Options)
    make_options(recipe.objective, recipe.objective_options)
    if specialize is not None:
        wanted = specialize.to_dict() if isinstance(specialize, Specialization) else specialize
        recipe = dataclasses.replace(recipe, specialization=wanted)
    if recipe.specialization is not None:
        as_specialization(recipe.specialization)  # an unknown preset is reported before a folder is made
    return recipe if seed is None else dataclasses.replace(recipe, seed=seed)


def with_settings(recipe: Recipe, settings: Iterable[str], options: type | None = None) -> Recipe:
    """Return a recipe with some values changed; see ``override``.

    Args:
        recipe: the recipe.
        settings: changes, each ``name=value``.
        options: dataclass of the objective's options, to check their names and types.
    """
    changes: dict[str, Any] = {}
    inner_changes: dict[str, dict[str, Any]] = {}
    types = {one.name: one.type for one in dataclasses.fields(recipe)}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"a setting is name=value, got {setting!r}")
        outer, dot, inner = name.strip().partition(".")
        check_known(outer, types, "setting")
        value = _parse(text.strip())
        if not dot:
            changes[outer] = _convert(name, value, types[outer])
            continue
        if outer not in ("model_options", "objective_options"):
            raise LookupError(
                f"{outer!r} has nothing inside; the settings with a dot are model_options.… and objective_options.…"
            )
        if outer == "objective_options" and options is not None:
            option_types = {one.name: one.type for one in dataclasses.fields(options)}
            check_known(inner, option_types, f"option of the objective {recipe.objective}")
            value = _convert(name, value, option_types[inner])
        inner_changes.setdefault(outer, {})[inner] = value
    for outer, values in inner_changes.items():
        changes[outer] = {**changes.get(outer, getattr(recipe, outer)), **values}
    for given, other in (("epochs", "steps"), ("steps", "epochs")):
        if changes.get(given) is not None and other not in changes:
            changes[other] = None
    return dataclasses.replace(recipe, **changes)


def _parse(text: str) -> Any:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _convert(name: str, value: Any, annotation: Any) -> Any:
    """Return the value as the declared type, e.g. ``"float | None"``; ValueError if it has another."""
    declared = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    kinds = {
        "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        "bool": lambda v: isinstance(v, bool),
        "str": lambda v: isinstance(v, str),
        "None": lambda v: v is None,
    }
    for one in (part.strip() for part in declared.split("|")):
        if one in kinds:
            if kinds[one](value):
                return float(value) if one == "float" else value
        elif one.startswith("Literal"):
            if value in ast.literal_eval(one.removeprefix("Literal")):
                return value
        elif one.startswith("Mapping") and isinstance(value, Mapping):
            return value
        elif one.startswith("tuple") and isinstance(value, tuple | list):
            return tuple(value)
    raise ValueError(f"{name} must be {_in_words(declared)}, got {value!r}")


_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a word", "None": "none"}


def _in_words(declared: str) -> str:
    """Return a declared type in words.

    >>> _in_words("float | None"), _in_words("Literal['cosine', 'linear']"), _in_words("tuple[float, float]")
    ('a number or none', 'one of cosine, linear', 'a list (1, 2, …)')
    """
    words = []
    for one in (part.strip() for part in declared.split("|")):
        if one.startswith("Literal"):
            words.append(f"one of {', '.join(map(str, ast.literal_eval(one.removeprefix('Literal'))))}")
        else:
            other = "a list (1, 2, …)" if one.startswith("tuple") else "a mapping {'name': value}"
            words.append(_WORDS.get(one, other if one.startswith(("tuple", "Mapping", "dict")) else one))
    return " or ".join(words)
