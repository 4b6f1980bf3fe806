"""``tokenlens list``: what there is to choose from, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from tokenlens_cli._output import print_json, say


class Kind(StrEnum):
    """What can be listed."""

    models = "models"
    metrics = "metrics"
    figures = "figures"
    families = "families"
    components = "components"
    objectives = "objectives"
    recipes = "recipes"
    probes = "probes"


def command(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    pattern: Annotated[
        str | None,
        typer.Argument(metavar="PATTERN", help="Only names that contain this, or match it where it has * or ? in it."),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Show this many; 0 shows all. How many there are is always said.")
    ] = 60,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """List models, metrics, figures, families, components of a specialization, objectives, recipes or probes.

    Models are those that come with tokenlens, which need no download, and timm's names that tokenlens can look into,
    with their weights tags. Besides those, hf-hub:owner/name, local-dir:PATH and, in Python, any module of a known
    family can be analyzed.
    """
    everything = _LISTS[kind]()
    found = [item for item in everything if pattern is None or matches(item["name"], pattern)]
    shown = found[:limit] if limit else found
    if json:
        print_json({"kind": kind.value, "pattern": pattern, "count": len(found), "shown": len(shown), "items": shown})
        return
    width = max((len(item["name"]) for item in shown), default=0)
    for item in shown:
        typer.echo(f"{item['name']:<{width}}  {_text(item)}".rstrip())
    if not found:
        from tokenlens.catalog import nearest

        close = nearest(pattern or "", (item["name"] for item in everything))
        hint = f"; near it: {', '.join(close)}" if close else ""
        say(f"none of the {len(everything)} {kind.value} matches {pattern!r}{hint}")
    elif len(shown) < len(found):
        say(f"{len(shown)} of {len(found)} {kind.value}; a PATTERN narrows them down, --limit 0 shows all")


def matches(name: str, pattern: str) -> bool:
    """Whether a name contains the pattern or, where that has wildcards, matches it as a whole.

    >>> matches("vit_base_patch16_224", "base"), matches("vit_base_patch16_224", "base*")
    (True, False)
    """
    return fnmatchcase(name, pattern) if set(pattern) & set("*?[") else pattern in name


def _text(item: dict[str, Any]) -> str:
    cost = f" ({'opt-in: ' if item.get('opt_in') else ''}{item['cost']})" if item.get("cost") else ""
    of = f"of {'an' if item['of'] == 'analysis' else 'a'} {item['of']}: " if item.get("of") else ""
    return f"{of}{item['description']}{cost}"


def _models() -> list[dict[str, Any]]:
    import timm

    from tokenlens.models import shipped

    tags: dict[str, list[str]] = {}
    for name in timm.list_pretrained():
        tags.setdefault(name.partition(".")[0], []).append(name)
    architectures = sorted(name for module in _timm_modules() for name in timm.list_models(module=module))
    return [{"name": name, "description": shipped.describe(name)} for name in shipped.names()] + [
        {"name": name, "description": "" if name in tags.get(architecture, ()) else "no published weights"}
        for architecture in architectures
        for name in tags.get(architecture, [architecture])
    ]


def _timm_modules() -> Iterable[str]:
    """timm's modules that define or build on a class that one of the families owns."""
    import timm

    from tokenlens.families.base import families

    owned = {getattr(families.get(name), "timm_class", None) for name in families.names()}
    for module in timm.models.list_modules():
        values = vars(sys.modules.get(f"timm.models.{module}", object)).values()
        classes = [cls for value in values if isinstance(value, type) for cls in value.__mro__]
        if any(f"{cls.__module__}.{cls.__qualname__}" in owned for cls in classes):
            yield module


def _metrics() -> list[dict[str, Any]]:
    from tokenlens.metrics.base import metrics

    return [
        {
            "name": name,
            "description": metrics.describe(name),
            "opt_in": metric.opt_in,
            "cost": metric.cost,
            "sites": list(metric.sites),
            "named_sites": list(metric.named_sites),
            "requires": list(metric.requires),
        }
        for name in metrics.names()
        for metric in [metrics.get(name)]
    ]


def _figures() -> list[dict[str, Any]]:
    from tokenlens.figures.base import KINDS, figures, figures_of

    return [
        {"name": name, "description": figures.describe(name), "of": kind} for kind in KINDS for name in figures_of(kind)
    ]


def _families() -> list[dict[str, Any]]:
    from tokenlens.families.base import families

    return [{"name": name, "description": families.describe(name)} for name in families.names()]


def _components() -> list[dict[str, Any]]:
    from tokenlens.specialization import PRESETS, Specialization, components

    return [
        {
            "name": name,
            "description": components.describe(name),
            "presets": {preset: getattr(PRESETS[preset], name) for preset in PRESETS},
        }
        for name in Specialization.components()
    ]


def _objectives() -> list[dict[str, Any]]:
    from dataclasses import fields

    from tokenlens.training.objectives.base import objectives

    return [
        {
            "name": name,
            "description": objectives.describe(name),
            "labelled": objectives.get(name).labelled,
            "options": {field.name: field.default for field in fields(objectives.get(name).Options)},
        }
        for name in objectives.names()
    ]


def _recipes() -> list[dict[str, Any]]:
    from tokenlens.training.recipe import recipe_of, recipes

    return [
        {
            "name": name,
            "description": recipes.describe(name),
            "about": (recipes.module(name).__doc__ or "").strip(),
            "recipe": recipe_of(name).to_dict(),
        }
        for name in recipes.names()
    ]


def _probes() -> list[dict[str, Any]]:
    from tokenlens.probes import probes

    return [{"name": name, "description": probes.describe(name)} for name in probes.names()]


_LISTS: dict[Kind, Callable[[], list[dict[str, Any]]]] = {
    Kind.models: _models,
    Kind.metrics: _metrics,
    Kind.figures: _figures,
    Kind.families: _families,
    Kind.components: _components,
    Kind.objectives: _objectives,
    Kind.recipes: _recipes,
    Kind.probes: _probes,
}
