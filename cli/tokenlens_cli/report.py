"""``tokenlens report``: figures and page of a run once more, from its saved numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenlens_cli._output import print_json, say


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `tokenlens analyze` has written.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Draw the figures and the page of a run again, from its saved numbers; needs neither model nor images."""
    from tokenlens.report import write_report
    from tokenlens.run_folder import load_analysis, save_analysis

    analysis = load_analysis(run)
    say("drawing the figures")
    save_analysis(analysis, run, overwrite=True, report=write_report)
    page = run / "report.html"
    if json:
        print_json({"model": analysis.model, "run": str(run), "report": str(page)})
    else:
        typer.echo(f"report: {page}")
