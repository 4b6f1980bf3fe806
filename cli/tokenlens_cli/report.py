"""``tokenlens report``: figures and page of a run once more, from its saved numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenlens_cli._output import print_json, say


def command(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run folder that `tokenlens analyze` or `tokenlens compare` has written."),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Draw the figures and the page of a run again, from its saved numbers; needs neither model nor images."""
    from tokenlens.analysis import Analysis
    from tokenlens.comparison import load_run
    from tokenlens.report import write_report
    from tokenlens.run_folder import save_run

    found = load_run(run)
    say("drawing the figures")
    save_run(found, run, overwrite=True, report=write_report)
    page = run / "report.html"
    if json:
        of = {"model": found.model} if isinstance(found, Analysis) else {"labels": found.labels}
        print_json({**of, "run": str(run), "report": str(page)})
    else:
        typer.echo(f"report: {page}")
