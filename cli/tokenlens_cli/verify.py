"""``tokenlens verify``: from nothing, or from runs that exist, to a verdict on each of the paper's findings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli._errors import INTERRUPTED
from tokenlens_cli._output import SECONDS_BETWEEN_LINES, print_json, say

if TYPE_CHECKING:
    import pandas as pd

    from tokenlens.analysis.findings import Finding
    from tokenlens.verification.verify import Verification


def _complete_regimes(incomplete: str) -> list[str]:
    from tokenlens.catalog import Catalog

    return [name for name in Catalog("tokenlens.verification.scales", "regime").names() if name.startswith(incomplete)]


def command(
    recipe: Annotated[
        str,
        typer.Option(
            metavar="tiny|tiny_continued|gpu|paper",
            autocompletion=_complete_regimes,
            help="At what scale: what is trained, on how much, and how it is probed.",
        ),
    ] = "tiny",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder with classification/, segmentation/, photos/ and weights/ (of the teacher).",
        ),
    ] = None,
    labelled: Annotated[
        str | None,
        typer.Option(metavar="DIR|FILE|hfds/…|wds/…", help="Labelled images, in place of classification/."),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images with masks, in place of segmentation/.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(metavar="DIR|FILE|sample|…", help="Images to analyze, in place of photos/.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of the teacher, in place of those in weights/.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Models of each variant, from seed 0 on; by default the recipe's.")
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="standard,paper,…",
            help="Which models: standard, paper, norms, qkv_first_third, qkv_all, everything, mlp, proj; and twin, a "
            "second standard model, as a control.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT|RUN|MODEL",
            help="Weights that every training starts from, standard and specialized alike: a file, a run folder or the "
            "name of a model; by default the recipe's, if it has any.",
        ),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            "--runs",
            metavar="RUN",
            help="Judge run folders that exist, and train nothing: trainings, their analyses and probes, other folders "
            "of verify; may be given again.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder; by default reports/verify_<recipe>.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the tasks, what is done and how long the rest takes, and stop.")
    ] = False,
    task: Annotated[
        int | None, typer.Option(min=0, help="Do the task of this number in the plan only: for arrays of jobs.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after so long, with exit code 0; the same command goes on from there."),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute; auto is cuda, then mps, then cpu.")
    ] = "auto",
    no_report: Annotated[bool, typer.Option("--no-report", help="Save the numbers only, draw nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Check the paper's findings: train standard and specialized models, analyze and probe them, and judge.

    Each finding is supported, not supported or inconclusive, with effect, interval, number of seeds and the scale it
    was seen at. Everything is kept in run folders; the same command goes on where another one ended.
    """
    from tokenlens.verification import verify as verification
    from tokenlens.verification.data import find_data
    from tokenlens.verification.scales.base import regime_of

    if runs:
        if plan or task is not None:
            raise ValueError("--plan and --task are of models that are to be trained; leave them out with --from")
        if start is not None:
            raise ValueError("--start is for models that are to be trained; leave it out with --from")
        found = verification.verify(runs=[*runs], out=out, report=not no_report)
        _print_result(found, json=json)
        return
    where = find_data(
        data,
        labelled=labelled,
        masks=masks,
        images=images,
        teacher=teacher,
        teacher_file=regime_of(recipe).teacher_file,
    )
    chosen: dict[str, Any] = {
        "seeds": seeds,
        "variants": None if variants is None else [name.strip() for name in variants.split(",")],
        "out": out,
        "start": start,
    }
    if plan:
        begun = start or regime_of(recipe).start
        _print_plan(verification.plan(recipe, where, **chosen), begun, json=json)
        return
    try:
        found = verification.verify(
            recipe,
            where,
            **chosen,
            max_minutes=max_minutes,
            task=task,
            device=device,
            report=not no_report,
            progress=_lines(),
        )
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or "interrupted; the same command goes on with what is not done")
        raise typer.Exit(INTERRUPTED) from None
    _print_result(found, json=json)


def _lines() -> Callable[[str, int, int | None], None]:
    what, begun, told = "", 0.0, 0.0

    def update(doing: str, done: int, total: int | None) -> None:
        nonlocal what, begun, told
        now = time.monotonic()
        if doing != what:
            what, begun, told = doing, now, now
            say(doing)
        elif now - told >= SECONDS_BETWEEN_LINES:
            told = now
            of = "" if total is None else f" of {total}"
            say(f"  {done}{of}, {now - begun:.0f} s")

    return update


def _print_plan(plan: pd.DataFrame, start: str | None, *, json: bool) -> None:
    left = float(plan["minutes"].sum())
    if json:
        print_json({"tasks": plan.to_dict("records"), "minutes": left, "start": start})
        return
    if start is not None:
        typer.echo(f"every training starts from {start}, which is probed and analyzed, too")
    seed = " seed " + plan["seed"].astype(str)
    what = plan["what"] + " " + plan["variant"] + seed.where(plan["variant"] != "start", "")
    width = int(what.str.len().max())
    for row, name in zip(plan.to_dict("records"), what, strict=True):
        minutes = "" if row["state"] == "done" else f"{row['minutes']:6.1f} min  ({row['basis']})"
        typer.echo(f"{row['number']:3d}  {name:<{width}}  {row['state']:<8}  {minutes}".rstrip())
        if row["what"] == "train" and row["command"] and row["state"] != "done":
            typer.echo(f"     {row['command']}")
    open_tasks = int((plan["state"] != "done").sum())
    typer.echo(f"{open_tasks} of {len(plan)} tasks left, about {duration(left)}")


def duration(minutes: float) -> str:
    """Minutes as people say them.

    >>> duration(0.4), duration(75.2), duration(3000)
    ('0 min', '1 h 15 min', '2 d 2 h')
    """
    whole = round(minutes)
    if whole >= 1440:
        return f"{whole // 1440} d {whole % 1440 // 60} h"
    return f"{whole // 60} h {whole % 60} min" if whole >= 60 else f"{whole} min"


def _print_result(found: Verification, *, json: bool) -> None:
    page = found.path / "report.html"
    open_tasks = int((found.plan["state"] != "done").sum())
    if open_tasks:
        left = duration(float(found.plan["minutes"].sum()))
        say(f"{open_tasks} of {len(found.plan)} tasks are left, about {left}; the same command goes on")
    for folder, reason in found.left_out:
        say(f"not used: {folder}: {reason}")
    if json:
        print_json(
            {
                "findings": [asdict(finding) for finding in found.findings],
                "finished": found.finished,
                "tasks": len(found.plan),
                "left": open_tasks,
                "run": str(found.path),
                "report": str(page) if page.exists() else None,
                "stages": found.stage_sentences,
                "continued": found.continued.to_dict("records"),
            }
        )
        return
    for finding in found.findings:
        typer.echo(_line(finding))
    for sentence in found.stage_sentences:
        typer.echo(f"Which stage of the norm separates: {sentence}")
    typer.echo(f"report: {page}" if page.exists() else f"run: {found.path}")


def _line(finding: Finding) -> str:
    """A finding in two lines: what and how it comes out, and what was seen."""
    of = f" ({finding.subject})" if finding.subject else ""
    scale = f"\n    Scale: {finding.scale}" if finding.scale else ""
    return f"{finding.name}{of}: {finding.verdict.upper()}. {finding.title}.\n    {finding.sentence}{scale}"
