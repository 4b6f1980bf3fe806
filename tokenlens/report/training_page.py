"""The page of a training: how far it is, its losses and how it can be repeated."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from tokenlens.report.downloads import download
from tokenlens.report.numerals import fixed
from tokenlens.report.origin import commands, provenance_rows
from tokenlens.report.tables import Cell, Table, number_of, table_of

if TYPE_CHECKING:
    from tokenlens.training.run import TrainedRun


def content(run: TrainedRun) -> dict[str, Any]:
    """Return all that ``templates/training.html`` writes, except the figures."""
    settings = run.settings
    title = f"{settings['name']}, seed {settings['seed']}"
    sessions = settings["sessions"]
    skipped = run.skipped.drop_duplicates("name")
    return {
        "title": title,
        "mark": "",
        "facts": _facts(run),
        "notes": [],
        "skipped": list(zip(skipped["name"], skipped["reason"], strict=True)),
        "not_applicable": [],
        "losses": _losses(run, title),
        "diagnostics": download(run.diagnostics, "diagnostics", title) if len(run.diagnostics) else None,
        "metrics": [],
        "commands": commands({"command": sessions[0]["command"]}, "training"),
        "provenance": provenance_rows({key: value for key, value in settings.items() if key != "sessions"}),
    }


def _facts(run: TrainedRun) -> list[tuple[str, str]]:
    settings = run.settings
    recipe = run.recipe
    facts = {
        "State": run.state,
        "Steps": f"{run.step} of {settings['steps']}",
        "Model": recipe.model,
        "Objective": recipe.objective,
        "Specialization": "none" if recipe.specialization is None else str(recipe.specialization),
        "Images": settings["data"]["count"],
        "Batch size": recipe.batch_size,
        "Images per second": fixed(settings["images_per_second"], 1),
    }
    return [(name, str(value)) for name, value in facts.items()]


def _losses(run: TrainedRun, title: str) -> Table | None:
    frame = run.metrics
    if frame.empty:
        return None
    columns = {"step": lambda row: Cell(str(row.step))} | {
        name: number_of(name) for name in frame.columns if name != "step"
    }
    return table_of(frame, "losses", title, columns, tuple(columns))


def summary(run: TrainedRun) -> str:
    """Return a few lines of HTML: what is trained and how far it is."""
    facts = "; ".join(f"{name}: {escape(value)}" for name, value in _facts(run))
    return f"<div><strong>{escape(str(run.path))}</strong><br>{facts}</div>"
