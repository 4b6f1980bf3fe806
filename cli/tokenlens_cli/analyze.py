"""``tokenlens analyze``: a model over images, a run folder and a report."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli._output import print_json, progress_of, say
from tokenlens_cli._processes import joined

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis
    from tokenlens.comparison.comparison import Comparison

LONGEST_NAME = 100
"""Characters of a folder's name; file systems take 255 bytes, temporary folders beside it add a few."""


def _complete_metrics(incomplete: str) -> list[str]:
    from tokenlens.catalog import Catalog

    chosen, comma, last = incomplete.rpartition(",")
    names = ["all", *Catalog("tokenlens.metrics", "metric").names()]
    return [chosen + comma + name for name in names if name.startswith(last)]


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="tokenlens_tiny, which needs no download, a timm name with or without a weights tag (`tokenlens list "
            "models`), hf-hub:owner/name, local-dir:PATH or a run folder of `tokenlens train`.",
        ),
    ],
    images: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE|sample|hfds/…|wds/…",
            help="Images to look at. `sample` is a few photographs that come with the dependencies, cut into views.",
        ),
    ] = "sample",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Use this many images: a random subset by --seed; of a stream the first ones."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Weights from a file instead of the published ones: safetensors, or plain tensors."
        ),
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option(
            "--pretrained/--no-pretrained",
            help="Published weights, or random ones by --seed; all that comes of random weights is marked untrained.",
        ),
    ] = True,
    img_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images in pixels; by default the model's own.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per forward pass; the numbers do not depend on it.")
    ] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images besides this one.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|mps|…", help="Where to compute; auto is cuda, then mps, then cpu.")
    ] = "auto",
    amp: Annotated[
        bool, typer.Option("--amp/--no-amp", help="Run the model in bfloat16; the numbers are summed up as without.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="a,b|all",
            autocompletion=_complete_metrics,
            help="Names of metrics with commas between them, or all; by default those that are not opt-in "
            "(`tokenlens list metrics`).",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the subset of images, the sample's views and random weights.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run folder; by default reports/<model>.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run if there is one already.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Save the numbers only, draw nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Measure how CLS, register and patch tokens differ at every site of every block of a model.

    Runs MODEL once over the images and writes a run folder: the table, the arrays, the figures and a page. Under
    `torchrun --nproc-per-node N -m tokenlens_cli analyze …` the images are shared out over N processes.
    """
    folder = out if out is not None else default_folder(model)
    wanted = chosen_metrics(metrics)
    with joined(device) as rank:
        from tokenlens.analysis.analyze import analyze
        from tokenlens.storage.run_folder import check_writable

        if rank.leads:
            check_writable(folder, overwrite)
            say(f"loading {model}")
        options: dict[str, Any] = {
            "limit": limit,
            "checkpoint": checkpoint,
            "pretrained": pretrained,
            "img_size": img_size,
            "batch_size": batch_size,
            "workers": workers,
            "device": rank.device,
            "amp": amp,
            "metrics": wanted,
            "seed": seed,
        }
        if not rank.leads:
            analyze(model, images, **options)
            return
        with progress_of(f"analyzing {model}") as progress:
            analysis = analyze(model, images, **options, progress=progress)
        _tell_what_is_missing(analysis)
        save(analysis, folder, overwrite=overwrite, report=not no_report)
        _print_result(analysis, folder, report=not no_report, json=json)


def default_folder(model: str) -> Path:
    """``reports/<model>``, whatever the model is called: one folder right inside ``reports``.

    >>> default_folder("hf-hub:timm/vit_base_patch16_224.mae").as_posix()
    'reports/hf-hub_timm_vit_base_patch16_224.mae'
    >>> default_folder("local-dir:../../models").as_posix()
    'reports/local-dir_.._.._models'
    """
    name = re.sub(r"[^\w.+-]+", "_", model).lstrip(".-") or "model"
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
    return Path("reports") / name


def chosen_metrics(text: str | None) -> list[str] | str | None:
    """What ``--metrics`` means: None for the default ones, ``"all"``, or names.

    >>> chosen_metrics("cka, token_norm")
    ['cka', 'token_norm']
    """
    if text is None:
        return None
    names = [name for part in text.split(",") if (name := part.strip())]
    if not names:
        raise typer.BadParameter("expected names of metrics with commas between them, or all", param_hint="--metrics")
    return "all" if names == ["all"] else names


def save(run: Analysis | Comparison, folder: Path, *, overwrite: bool, report: bool) -> None:
    """Write the run folder, with figures and page; numbers that cannot be drawn are saved all the same."""
    if report:
        say("drawing the figures")
    try:
        run.save(folder, overwrite=overwrite, report=report)
    except OSError:
        raise
    except Exception as error:
        if not report:
            raise
        run.save(folder, overwrite=overwrite, report=False)
        raise ValueError(
            f"the report could not be drawn ({type(error).__name__}: {error}); the numbers are in {folder}, and "
            f"`tokenlens report {folder}` tries again"
        ) from error


def _tell_what_is_missing(analysis: Analysis) -> None:
    note = analysis.provenance["images"].get("note")
    if note:
        say(note)
    skipped = analysis.provenance["images"]["skipped"]
    if skipped:
        named = "; ".join(f"{item['name']}: {item['reason']}" for item in skipped[:5])
        more = f"; and {len(skipped) - 5} more, all named in the report" if len(skipped) > 5 else ""
        say(f"{len(skipped)} unreadable {'image was' if len(skipped) == 1 else 'images were'} skipped: {named}{more}")
    reasons: dict[str, list[str]] = {}
    for metric, reason in analysis.not_applicable.items():
        reasons.setdefault(reason, []).append(metric)
    for reason, names in reasons.items():
        say(f"not applicable, {reason}: {', '.join(names)}")


def _print_result(analysis: Analysis, folder: Path, *, report: bool, json: bool) -> None:
    from tokenlens.analysis.findings import judge

    findings = judge(analysis)
    page = folder / "report.html" if report else None
    if json:
        images = analysis.provenance["images"]
        print_json(
            {
                "model": analysis.model,
                "untrained": analysis.untrained,
                "blocks": analysis.blocks,
                "images": analysis.images,
                "skipped": images["skipped"],
                "metrics": analysis.metrics,
                "not_applicable": analysis.not_applicable,
                "numbers": len(analysis.table),
                "findings": [asdict(finding) for finding in findings],
                "seconds": analysis.provenance["seconds"],
                "run": str(folder),
                "report": None if page is None else str(page),
            }
        )
        return
    untrained = ", untrained (random weights)" if analysis.untrained else ""
    typer.echo(
        f"{analysis.model}{untrained}: {len(analysis.table)} numbers from {len(analysis.metrics)} metrics, "
        f"{analysis.blocks} blocks, {analysis.images} images, {analysis.provenance['seconds']:.1f} s"
    )
    for finding in findings:
        typer.echo(f"{finding.name} {finding.verdict}: {finding.sentence}")
    typer.echo(f"run: {folder}" if page is None else f"report: {page}")
