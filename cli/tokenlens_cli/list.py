"""``tokenlens list``: list what can be chosen by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._output import print_json, print_text, say


class Kind(StrEnum):
    """Kinds of entries to list; all but models have a catalogue of the same name."""

    models = "models"
    metrics = "metrics"
    figures = "figures"
    families = "families"
    components = "components"
    objectives = "objectives"
    recipes = "recipes"
    probes = "probes"
    replacements = "replacements"
    scales = "scales"


CATALOGS = {
    Kind.metrics: "tokenlens.metrics",
    Kind.figures: "tokenlens.figures",
    Kind.families: "tokenlens.families",
    Kind.components: "tokenlens.specialization",
    Kind.objectives: "tokenlens.training.objectives.base",
    Kind.recipes: "tokenlens.training.recipe",
    Kind.probes: "tokenlens.probes",
    Kind.replacements: "tokenlens.interventions",
    Kind.scales: "tokenlens.verification.scales.base",
}
"""The module that holds each catalogue."""


def command(
    kind: Annotated[Kind, typer.Argument(metavar="WHAT", help="What to list.")],
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="Only names that contain PATTERN, or match it if it has * or ? in it."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, metavar="N", help="Show at most N names, or all with 0. The total is always printed.")
    ] = 60,
    brief: Annotated[
        bool,
        typer.Option("--brief", help="Models: only names and whether weights are published, without 0.05 s for each."),
    ] = False,
    json: options.Json = False,
) -> None:
    """List the available models, metrics, figures or other parts.

    Models are those that come with tokenlens and those of timm that tokenlens supports, with their weights tags, the
    size of their images and patches, registers, parameters (with the classifier), and whether the weights must be
    downloaded. Models on the Hugging Face Hub (hf-hub:owner/name) and in folders (local-dir:PATH) are not listed.
    """
    entries = _models() if kind is Kind.models else _catalog_entries(kind)
    found = [entry for entry in entries if pattern is None or matches(entry["name"], pattern)]
    shown = found[:limit] if limit else found
    if kind is Kind.models and not brief:
        shown = [entry | _model_details(entry["name"]) for entry in shown]
    if json:
        print_json({"kind": kind.value, "pattern": pattern, "count": len(found), "shown": len(shown), "items": shown})
        return
    width = max((len(entry["name"]) for entry in shown), default=0)
    for entry in shown:
        print_text(f"{entry['name']:<{width}}  {_describe(entry)}".rstrip(), indent=min(width + 2, 40))
    if not found:
        from tokenlens.catalog import did_you_mean

        hint = did_you_mean(pattern or "", (entry["name"] for entry in entries))
        say(f"none of the {len(entries)} {kind.value} matches {pattern!r}.{hint}")
    elif len(shown) < len(found):
        say(f"{len(shown)} of {len(found)} {kind.value}; add a PATTERN to narrow them down, or --limit 0 to show all")


def matches(name: str, pattern: str) -> bool:
    """Return whether a name contains the pattern or, if the pattern has wildcards, matches it as a whole.

    >>> matches("vit_base_patch16_224", "base"), matches("vit_base_patch16_224", "base*")
    (True, False)
    """
    return fnmatchcase(name, pattern) if set(pattern) & set("*?[") else pattern in name


def _describe(entry: dict[str, Any]) -> str:
    if "weights" in entry:
        return describe_in_columns(entry)
    cost = f" ({'opt-in: ' if entry.get('opt_in') else ''}{entry['cost']})" if entry.get("cost") else ""
    of = f"of {'an' if entry['of'][0] in 'ai' else 'a'} {entry['of']}: " if entry.get("of") else ""
    return f"{of}{entry['description']}{cost}"


def _catalog_entries(kind: Kind) -> list[dict[str, Any]]:
    catalog = getattr(importlib.import_module(CATALOGS[kind]), kind.value)
    names = _SORTED[kind]() if kind in _SORTED else catalog.names()
    details = _DETAILS.get(kind, lambda name: {})
    return [{"name": name, "description": catalog.describe(name), **details(name)} for name in names]


def _models() -> list[dict[str, Any]]:
    import timm

    from tokenlens.models import list_architectures, shipped

    tags: dict[str, list[str]] = {}
    for name in timm.list_pretrained():
        tags.setdefault(name.partition(".")[0], []).append(name)
    return [{"name": name, "description": shipped.describe(name)} for name in shipped.list_names()] + [
        {"name": name, "description": "" if name in tags.get(architecture, ()) else "no published weights"}
        for architecture in list_architectures()
        for name in tags.get(architecture, [architecture])
    ]


def _model_details(name: str) -> dict[str, Any]:
    from tokenlens.models import describe_model

    model, weights = describe_model(name)
    if model is None:
        return {"weights": weights}
    (height, width), (rows, columns) = model.image_size, model.grid
    return {
        "image_size": [height, width],
        "patch": [height // rows, width // columns],
        "tokens": model.tokens,
        "blocks": model.blocks,
        "parameters": model.parameters,
        "weights": weights,
    }


def describe_in_columns(entry: dict[str, Any]) -> str:
    """Return size, patch, registers, parameters and weights of a model in columns of one width.

    >>> describe_in_columns({"image_size": [224, 224], "patch": [14, 14], "tokens": {"cls": 1, "reg": 4, "patch": 256},
    ...     "parameters": 22_100_000, "weights": "download"})
    '224 px  patch 14  4 registers    22.1 M  download'
    """
    if "parameters" not in entry:
        return f"tokenlens cannot read it  {entry['weights']}"
    registers = entry["tokens"].get("reg", 0)
    sides = ["×".join(str(side) for side in dict.fromkeys(entry[name])) for name in ("image_size", "patch")]
    plural = "s" if registers != 1 else ""
    text = f"{sides[0]:>3} px  patch {sides[1]:<2}  " + (f"{registers} register{plural}" if registers else "")
    return f"{text:<30}{entry['parameters'] / 1e6:>7.1f} M  {entry['weights']}"


def _sort_figures() -> list[str]:
    from tokenlens.figures.base import KINDS, figures_of

    return [name for kind in KINDS for name in figures_of(kind)]


def _sort_components() -> list[str]:
    from tokenlens.specialization import Specialization

    return list(Specialization.components())


def _metric_details(name: str) -> dict[str, Any]:
    from tokenlens.metrics import metrics

    metric = metrics.get(name)
    return {
        "opt_in": metric.is_opt_in(),
        "cost": metric.cost,
        "sites": list(metric.sites),
        "expensive_sites": list(metric.expensive_sites),
        "needs": sorted(metric.needs),
    }


def _figure_details(name: str) -> dict[str, Any]:
    from tokenlens.figures import figures

    return {"of": figures.get(name).KIND}


def _component_details(name: str) -> dict[str, Any]:
    from tokenlens.specialization import PRESETS

    return {"presets": {preset: getattr(PRESETS[preset], name) for preset in PRESETS}}


def _objective_details(name: str) -> dict[str, Any]:
    from dataclasses import fields

    from tokenlens.training.objectives.base import objectives

    objective = objectives.get(name)
    return {
        "labelled": objective.labelled,
        "options": {field.name: field.default for field in fields(objective.Options)},
    }


def _recipe_details(name: str) -> dict[str, Any]:
    from tokenlens.training.recipe import get_recipe, recipes

    return {"about": (recipes.module(name).__doc__ or "").strip(), "recipe": get_recipe(name).to_dict()}


_SORTED: dict[Kind, Callable[[], list[str]]] = {Kind.figures: _sort_figures, Kind.components: _sort_components}
_DETAILS: dict[Kind, Callable[[str], dict[str, Any]]] = {
    Kind.metrics: _metric_details,
    Kind.figures: _figure_details,
    Kind.components: _component_details,
    Kind.objectives: _objective_details,
    Kind.recipes: _recipe_details,
}
