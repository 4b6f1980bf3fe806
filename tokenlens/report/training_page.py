"""The content of a training's page."""

from __future__ import annotations

from html import escape
from typing import Any

from tokenlens.report.downloads import download
from tokenlens.report.number_format import with_decimals
from tokenlens.report.provenance import commands, provenance_rows
from tokenlens.report.tables import Table, number_column, table_of
from tokenlens.training.trained_run import TrainedRun


def content(run: TrainedRun) -> dict[str, Any]:
    """Return the variables of ``templates/training.html``, except those that ``write_report`` adds."""
    settings = run.settings
    title = f"{settings['name']}, seed {settings['seed']}"
    skipped = run.skipped.drop_duplicates("name")
    return {
        "title": title,
        "unfinished": "" if run.finished else f"{run.state} at step {run.step} of {settings['steps']}",
        "facts": _facts(run),
        "notes": settings["data"].get("notes", []),
        "skipped": list(zip(skipped["name"], skipped["reason"], strict=True)),
        "losses": _losses(run, title),
        "diagnostics": download(run.diagnostics, "diagnostics", title) if len(run.diagnostics) else None,
        "commands": commands(settings["sessions"][0]["command"]),
        "recipe": provenance_rows(settings["recipe"]),
        "provenance": provenance_rows({k: v for k, v in settings.items() if k not in ("sessions", "recipe")}),
    }


def _facts(run: TrainedRun) -> list[tuple[str, str]]:
    settings, recipe = run.settings, run.recipe
    speed = settings.get("images_per_second")
    facts = {
        "State": run.state,
        "Steps": f"{run.step} of {settings['steps']}",
        "Model": recipe.model,
        "Objective": recipe.objective,
        "Specialization": "none" if recipe.specialization is None else recipe.specialization,
        "Attention bias": "a learned key and value per block" if recipe.attention_bias else "none",
        "Images": settings["data"]["count"],
        "Batch size": recipe.batch_size,
        "Images per second": "unknown" if speed is None else with_decimals(speed, 1),
    }
    return [(name, str(value)) for name, value in facts.items()]


def _losses(run: TrainedRun, title: str) -> Table | None:
    """Return a table of the logged steps; None if there are none."""
    frame = run.metrics
    columns = {name: number_column(name, 9 if name == "step" else 4) for name in frame.columns}
    return None if frame.empty else table_of(frame, "losses", title, columns, tuple(columns))


def summary(run: TrainedRun) -> str:
    """Return a short summary as HTML: the recipe and the state of the training."""
    facts = "; ".join(f"{name}: {escape(value)}" for name, value in _facts(run))
    return f"<div><strong>{escape(str(run.path))}</strong><br>{facts}</div>"
