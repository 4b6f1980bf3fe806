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
    from tokenlens.storage.result import Result

    result = Result.load(run)
    say("drawing the figures")
    result.save(run, overwrite=True)
    page = run / "report.html"
    if json:
        print_json({"kind": result.kind, "run": str(run), "report": str(page)})
    else:
        typer.echo(f"report: {page}")
