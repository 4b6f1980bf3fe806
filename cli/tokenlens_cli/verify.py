"""``tokenlens verify``: reach a verdict on each of the paper's findings, by training or from existing runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._errors import INTERRUPTED
from tokenlens_cli._output import SECONDS_BETWEEN_LINES, format_duration, print_json, say

if TYPE_CHECKING:
    import pandas as pd

    from tokenlens.analysis.findings import Finding
    from tokenlens.verification.result import Verification


def command(
    scale: Annotated[
        str,
        typer.Option(
            metavar="tiny|tiny_continued|truncated|truncated_gpu|gpu|paper",
            autocompletion=options.complete_entries("tokenlens.verification.scales"),
            help="Scale: the models to train, on how many images, and their probes.",
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
        typer.Option(metavar="DIR|FILE|hfds/…|wds/…", help="Labelled images, instead of classification/."),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images with masks, instead of segmentation/.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(metavar="DIR|FILE|sample|…", help="Images to analyze, instead of photos/.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights of the teacher, instead of those in weights/.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Models per variant, with seeds from 0; by default the scale's number.")
    ] = None,
    variants: Annotated[
        str | None,
        typer.Option(
            metavar="standard,paper,…",
            help="Variants to train: standard, paper, norms, qkv_first_third, qkv_all, everything, mlp, proj; and "
            "twin, a second standard model, as a control.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT|RUN|MODEL",
            help="Weights that every training starts from, standard and specialized alike: a file, a run folder or the "
            "name of a model; by default the scale's, if it has any.",
        ),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            "--runs",
            metavar="RUN",
            help="Judge existing run folders instead of training: trainings, their analyses and probes, or folders of "
            "verify. Can be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder; by default reports/verify_<scale>.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the tasks, their state and the time that is left, and stop.")
    ] = False,
    task: Annotated[
        int | None, typer.Option(min=0, help="Do only the task with this number in the plan: for arrays of jobs.")
    ] = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after this time, with exit code 0. Run the same command again to resume."),
    ] = None,
    device: options.Device[str] = "auto",
    no_report: options.NoReport = False,
    json: options.Json = False,
) -> None:
    """Check the paper's findings: train standard and specialized models, analyze and probe them, and judge.

    Each finding is supported, not supported, inconclusive or not applicable, with its effect, interval, number of seeds
    and scale. Everything is kept in run folders; run the same command again to resume.
    """
    from tokenlens.verification import plan as make_plan
    from tokenlens.verification import scale_of
    from tokenlens.verification.data import find_data
    from tokenlens.verification.verify import verify

    if runs:
        if plan or task is not None or start is not None:
            raise ValueError("--plan, --task and --start are about models to train; leave them out with --from")
        _print_result(verify(runs=[*runs], out=out, report=not no_report), json=json)
        return
    chosen_scale = scale_of(scale)
    sources = find_data(
        data,
        labelled=labelled,
        masks=masks,
        images=images,
        teacher=teacher,
        teacher_file=chosen_scale.teacher_file,
    )
    chosen: dict[str, Any] = {
        "seeds": seeds,
        "variants": None if variants is None else [name.strip() for name in variants.split(",")],
        "out": out,
        "start": start,
    }
    if plan:
        _print_plan(make_plan(scale, sources, **chosen), start or chosen_scale.start, json=json)
        return
    try:
        verification = verify(
            scale,
            sources,
            **chosen,
            max_minutes=max_minutes,
            task=task,
            device=device,
            report=not no_report,
            progress=_progress_lines(),
        )
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or "interrupted; run the same command again to resume")
        raise typer.Exit(INTERRUPTED) from None
    _print_result(verification, json=json)


def _progress_lines() -> Callable[[str, int, int | None], None]:
    current, started, printed = "", 0.0, 0.0

    def update(task: str, done: int, total: int | None) -> None:
        nonlocal current, started, printed
        now = time.monotonic()
        if task != current:
            current, started, printed = task, now, now
            say(task)
        elif now - printed >= SECONDS_BETWEEN_LINES:
            printed = now
            of = "" if total is None else f" of {total}"
            say(f"  {done}{of}, {now - started:.0f} s")

    return update


def _print_plan(plan: pd.DataFrame, start: str | None, *, json: bool) -> None:
    minutes_left = float(plan["minutes"].sum())
    if json:
        print_json({"tasks": plan.to_dict("records"), "minutes": minutes_left, "start": start})
        return
    if start is not None:
        typer.echo(f"every training starts from {start}, which is also probed and analyzed")
    seed = " seed " + plan["seed"].astype(str)
    names = plan["what"] + " " + plan["variant"] + seed.where(plan["variant"] != "start", "")
    width = int(names.str.len().max())
    for row, name in zip(plan.to_dict("records"), names, strict=True):
        minutes = "" if row["state"] == "done" else f"{row['minutes']:6.1f} min  ({row['basis']})"
        typer.echo(f"{row['number']:3d}  {name:<{width}}  {row['state']:<8}  {minutes}".rstrip())
        if row["what"] == "train" and row["command"] and row["state"] != "done":
            typer.echo(f"     {row['command']}")
    open_tasks = int((plan["state"] != "done").sum())
    typer.echo(f"tasks left: {open_tasks} of {len(plan)}, about {format_duration(60 * minutes_left)}")


def _print_result(verification: Verification, *, json: bool) -> None:
    page = verification.path / "report.html"
    open_tasks = int((verification.plan["state"] != "done").sum())
    if open_tasks:
        left = format_duration(60 * float(verification.plan["minutes"].sum()))
        say(f"tasks left: {open_tasks} of {len(verification.plan)}, about {left}; run the same command again to resume")
    for folder, reason in verification.left_out:
        say(f"not used: {folder}: {reason}")
    if json:
        print_json(
            {
                "findings": [asdict(finding) for finding in verification.findings],
                "finished": verification.finished,
                "tasks": len(verification.plan),
                "left": open_tasks,
                "run": str(verification.path),
                "report": str(page) if page.exists() else None,
                "stages": verification.stage_sentences,
                "continued": verification.continued.to_dict("records"),
            }
        )
        return
    for finding in verification.findings:
        typer.echo(_format_finding(finding))
    for sentence in verification.stage_sentences:
        typer.echo(f"Which stage of the norm separates: {sentence}")
    typer.echo(f"report: {page}" if page.exists() else f"run: {verification.path}")


def _format_finding(finding: Finding) -> str:
    """Return a finding as its verdict, title, sentence and scale."""
    subject = f" ({finding.subject})" if finding.subject else ""
    scale = f"\n    Scale: {finding.scale}" if finding.scale else ""
    return f"{finding.name}{subject}: {finding.verdict.upper()}. {finding.title}.\n    {finding.sentence}{scale}"
