"""``tokenlens verify``: reach a verdict on each of the paper's findings, by training or from existing runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._errors import INTERRUPTED
from tokenlens_cli._output import format_duration, print_json, print_text, report_step, say, say_next
from tokenlens_cli._progress import show_progress

if TYPE_CHECKING:
    import pandas as pd

    from tokenlens.analysis.findings import Finding
    from tokenlens.verification.result import Verification


def command(
    scale: Annotated[
        str,
        typer.Option(
            metavar="tiny|truncated|truncated_gpu|gpu|paper",
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
            "twin, a second standard model, as a control. registers, bias, registers_paper, bias_paper, …: "
            "the same of a model with four registers, or with an attention bias.",
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
    from tokenlens.verification.data import LAYOUT, find_data
    from tokenlens.verification.verify import verify

    if runs:
        if plan or task is not None or start is not None:
            raise ValueError("--plan, --task and --start are about models to train; leave them out with --from")
        _print_result(verify(runs=[*runs], out=out, report=not no_report), json=json)
        return
    chosen_scale = scale_of(scale)
    parts = {"labelled": labelled, "masks": masks, "images": images, "teacher": teacher}
    without_data = plan and data is None and not any(parts.values())
    sources = None if without_data else find_data(data, **parts, teacher_file=chosen_scale.teacher_file)
    chosen: dict[str, Any] = {
        "seeds": seeds,
        "variants": None if variants is None else [name.strip() for name in variants.split(",")],
        "out": out,
        "start": start,
    }
    if without_data:
        say(f"no --data: DATA stands for {LAYOUT}")
    if plan:
        _print_plan(make_plan(scale, sources, **chosen), start or chosen_scale.start, json=json)
        return
    try:
        with show_progress() as progress:
            verification = verify(
                scale,
                sources,
                **chosen,
                max_minutes=max_minutes,
                task=task,
                device=device,
                report=not no_report,
                progress=progress,
            )
    except KeyboardInterrupt as interrupt:
        say(str(interrupt) or "interrupted; run the same command again to resume")
        raise typer.Exit(INTERRUPTED) from None
    _print_result(verification, json=json)


def _print_plan(plan: pd.DataFrame, start: str | None, *, json: bool) -> None:
    minutes_left = float(plan["minutes"].sum(skipna=False))
    if json:
        print_json({"tasks": plan.to_dict("records"), "minutes": minutes_left, "start": start})
        return
    if start is not None:
        print_text(f"every training starts from {start}, which is also probed and analyzed")
    seed = " seed " + plan["seed"].astype(str)
    names = plan["what"] + " " + plan["variant"] + seed.where(plan["variant"] != "start", "")
    width = int(names.str.len().max())
    for row, name in zip(plan.to_dict("records"), names, strict=True):
        known = row["minutes"] == row["minutes"]
        time = f"{row['minutes']:6.1f} min  ({row['basis']})" if known else "     ? min  (it depends on the data)"
        minutes = "" if row["state"] == "done" else time
        print_text(f"{row['number']:3d}  {name:<{width}}  {row['state']:<8}  {minutes}".rstrip(), indent=5)
        if row["what"] == "train" and row["command"] and row["state"] != "done":
            print_text(f"     {row['command']}", indent=7)
    open_tasks = int((plan["state"] != "done").sum())
    left = f"about {format_duration(60 * minutes_left)}" if minutes_left == minutes_left else "time unknown"
    print_text(f"tasks left: {open_tasks} of {len(plan)}, {left}", bold=left)


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
    _print_findings(verification.findings)
    for sentence in verification.stage_sentences:
        print_text(f"Which stage of the norm separates: {sentence}", indent=4)
    print_text(f"report: {page}" if page.exists() else f"run: {verification.path}")
    say_next(
        report_step(verification.path, page if page.exists() else None),
        f"tokenlens figure {quote(str(verification.path))} verify_scores --out verify_scores.pdf",
    )


def _print_findings(findings: Sequence[Finding]) -> None:
    """Print each finding's verdict, title, sentence and scale; a title or scale that is shared is printed once."""
    scales = Counter(finding.scale for finding in findings if finding.scale)
    usual, count = scales.most_common(1)[0] if scales else ("", 0)
    if count > 1:
        print_text(f"Scale, unless another is given: {usual}", indent=4)
    titles = set()
    for finding in findings:
        subject = f" ({finding.subject})" if finding.subject else ""
        verdict = f"{finding.name}{subject}: {finding.verdict.upper()}."
        title = "" if (finding.name, finding.title) in titles else f" {finding.title}."
        titles.add((finding.name, finding.title))
        print_text(verdict + title, bold=verdict, indent=4)
        print_text(f"    {finding.sentence}")
        if finding.scale and (count == 1 or finding.scale != usual):
            print_text(f"    Scale: {finding.scale}")
