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
    from tokenlens.model_names import training_of
    from tokenlens.report import write_report
    from tokenlens.run_folder import save_run
    from tokenlens.verification_result import Verification
    from tokenlens.verification_runs import VERIFICATION

    if training_of(run) is not None:
        raise ValueError(
            f"{run} is the run folder of a training, which has no report: `tokenlens analyze {run}` makes one of the "
            f"trained model, `tokenlens figure {run} emergence` draws how it came about"
        )
    page = run / "report.html"
    if (run / VERIFICATION).is_file():
        say("drawing the figures")
        Verification.load(run).save()
        if json:
            print_json({"run": str(run), "report": str(page)})
        else:
            typer.echo(f"report: {page}")
        return
    found = load_run(run)
    say("drawing the figures")
    save_run(found, run, overwrite=True, report=write_report)
    if json:
        of = {"model": found.model} if isinstance(found, Analysis) else {"labels": found.labels}
        print_json({**of, "run": str(run), "report": str(page)})
    else:
        typer.echo(f"report: {page}")
