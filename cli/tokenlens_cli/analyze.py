"""``tokenlens analyze``: run a model over images and write a run folder with a report."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._output import print_json, print_text, report_step, say, say_about_result, say_next
from tokenlens_cli._processes import joined
from tokenlens_cli._progress import show_progress
from tokenlens_cli._run_folder import default_folder, save_result

if TYPE_CHECKING:
    from tokenlens.analysis import Analysis


def command(
    model: options.Model,
    images: options.Images[str] = "sample",
    limit: options.Limit = None,
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained[bool] = True,
    img_size: options.ImgSize = None,
    model_arg: options.ModelArg = None,
    batch_size: options.BatchSize[int] = 8,
    workers: options.Workers = 0,
    device: options.Device[str] = "auto",
    amp: options.Amp = False,
    metrics: options.Metrics = None,
    seed: options.Seed[int] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder to write. Defaults to reports/<model>.")
    ] = None,
    overwrite: options.Overwrite = False,
    no_photos: options.NoPhotos = False,
    no_report: options.NoReport = False,
    json: options.Json = False,
) -> None:
    """Measure how CLS, register and patch tokens differ in a model.

    Runs MODEL once over the images and measures its tokens at every site of every block. Writes a run folder with the
    table, the arrays, the figures and an HTML report. To share the images among N processes, run `torchrun
    --nproc-per-node N -m tokenlens_cli analyze …`.
    """
    folder = out if out is not None else default_folder(model)
    chosen = options.parse_metrics(metrics)
    with joined(device) as rank:
        from tokenlens.analysis.analyze import analyze, choose_metrics
        from tokenlens.images import ImageWarning
        from tokenlens.storage.run_folder import check_writable

        settings: dict[str, Any] = {
            "limit": limit,
            "checkpoint": checkpoint,
            "pretrained": pretrained,
            "img_size": img_size,
            "model_args": options.join_model_args(model_arg),
            "batch_size": batch_size,
            "workers": workers,
            "device": rank.device,
            "amp": amp,
            "metrics": chosen,
            "seed": seed,
            "photos": not no_photos,
        }
        if not rank.is_first:
            analyze(model, images, **settings)
            return
        check_writable(folder, overwrite)
        choose_metrics(chosen)  # an unknown one is reported before anything is loaded
        say(f"loading {model}")
        with show_progress() as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)  # printed with the result
            analysis = analyze(
                model,
                images,
                **settings,
                progress=lambda done, total: progress(f"analyzing {model}", done, total, "images"),
            )
        say_about_result(analysis)
        save_result(analysis, folder, overwrite=overwrite, report=not no_report)
        _print_result(analysis, model, folder, report=not no_report, json=json)


def _print_result(analysis: Analysis, model: str, folder: Path, *, report: bool, json: bool) -> None:
    from tokenlens.analysis import judge
    from tokenlens.report.counterparts import counterparts
    from tokenlens.storage.wording import counted

    findings = judge(analysis)
    page = folder / "report.html" if report else None
    if json:
        print_json(
            {
                "model": analysis.model,
                "untrained": analysis.untrained,
                "blocks": analysis.blocks,
                "images": analysis.images,
                **{name: analysis.provenance["images"][name] for name in ("skipped", "copies")},
                "metrics": analysis.metrics,
                "not_applicable": analysis.not_applicable,
                "notes": [*analysis.provenance["images"]["notes"], *analysis.provenance.get("notes", ())],
                "no_interval": analysis.no_interval,
                "numbers": len(analysis.table),
                "findings": [asdict(finding) for finding in findings],
                "seconds": analysis.provenance["seconds"],
                "run": str(folder),
                "report": None if page is None else str(page),
            }
        )
        return
    compared = [arguments for arguments, _ in counterparts(analysis)]
    untrained = ", untrained (random weights)" if analysis.untrained else ""
    print_text(
        f"{analysis.model}{untrained}: {counted(len(analysis.table), 'number')} from "
        f"{counted(len(analysis.metrics), 'metric')}, {counted(analysis.blocks, 'block')}, "
        f"{counted(analysis.images, 'image')}, {analysis.provenance['seconds']:.1f} s",
        bold=analysis.model,
    )
    for finding in findings:
        verdict = f"{finding.name} {finding.verdict}"
        print_text(f"{verdict}: {finding.sentence}", bold=verdict, indent=2)
    print_text(f"run: {folder}" if page is None else f"report: {page}")
    say_next(
        report_step(folder, page),
        *(f"tokenlens compare {quote(str(folder))} {to}" for to in compared or ["RUN|MODEL"]),
        f"tokenlens figure {quote(str(folder))} depth_profile --out depth_profile.pdf",
        f"tokenlens show {quote(model)} --images FILE",
    )
