"""``tokenlens report``: draw the figures and the report of a run again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._output import print_json, print_text, say


def command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run folder of `tokenlens analyze`, `compare`, `intervene`, `train`, `probe` or `verify`.",
        ),
    ],
    json: options.Json = False,
) -> None:
    """Draw the figures and the report of a run again.

    Uses the numbers that are saved in the run folder; neither the model nor the images are needed.
    """
    from tokenlens.storage.result import Result

    result = Result.load(run)
    say("drawing the figures")
    result.save(run, overwrite=True)
    page = run / "report.html"
    if json:
        print_json({"kind": result.kind, "run": str(run), "report": str(page)})
    else:
        print_text(f"report: {page}")
