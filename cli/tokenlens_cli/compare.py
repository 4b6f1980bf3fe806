"""``tokenlens compare``: several runs or models side by side, a run folder and a report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli._output import print_json, progress_of
from tokenlens_cli._processes import joined
from tokenlens_cli.analyze import chosen_metrics, default_folder, save

if TYPE_CHECKING:
    from tokenlens.comparison.comparison import Comparison

TOLD = 3
"""How many of the largest differences of each model are printed."""


def command(
    subjects: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|MODEL RUN|MODEL …",
            help="Run folders that `tokenlens analyze` has written, and models by name; at least two. Models are "
            "analyzed first, on the images of the first run.",
        ),
    ],
    baseline: Annotated[
        str, typer.Option(metavar="LABEL|POSITION", help="The one that the others are set against, counted from 0.")
    ] = "0",
    label: Annotated[
        list[str] | None,
        typer.Option(help="What to call each of them, in their order; by default their models' names."),
    ] = None,
    pair: Annotated[
        bool | None,
        typer.Option(
            "--pair/--no-pair",
            help="Pair by image over the images in common, or never; by default where both saw the same images in the "
            "same order.",
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE|sample|hfds/…|wds/…",
            help="Images to analyze models on; by default those of the first run, at its --limit, --seed and "
            "--img-size, and sample without a run.",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use this many images for models, as in `tokenlens analyze`.")
    ] = None,
    img_size: Annotated[int | None, typer.Option(min=1, help="Side of the images in pixels, for models.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per forward pass of models.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="auto|cpu|cuda|mps|…", help="Where models compute; by default auto.")
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Published weights for models, or random ones by --seed."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="a,b|all", help="What to compute of models, as in `tokenlens analyze`."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the subset of images and of random weights, for models.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder; by default reports/compare_<a>_<b>….")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run if there is one already.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Save the numbers only, draw nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Set the numbers of several models against one of them, with intervals and tests.

    Of runs nothing is computed again: neither models nor images are needed. Writes a run folder: the runs themselves,
    the tables, the figures and a page that leads with what differs most.
    """
    folder = out if out is not None else default_folder("compare_" + "_".join(map(_short, subjects)))
    options: dict[str, Any] = {
        "images": images,
        "limit": limit,
        "img_size": img_size,
        "batch_size": batch_size,
        "device": device,
        "pretrained": pretrained,
        "metrics": chosen_metrics(metrics),
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    with joined(device or "auto") as rank:
        from tokenlens.comparison.compare import compare
        from tokenlens.storage.run_folder import check_writable

        if rank.leads:
            if folder.resolve() in {Path(subject).resolve() for subject in subjects}:
                raise ValueError(f"--out {folder} is one of the runs that are compared; choose another --out")
            check_writable(folder, overwrite)
        if rank.device != "auto":
            given["device"] = rank.device
        chosen = baseline if label and baseline in label else int(baseline) if baseline.isdecimal() else baseline
        settings: dict[str, Any] = {"baseline": chosen, "labels": label, "pair": pair}
        if not rank.leads:
            compare(*subjects, **settings, **given)
            return
        comparison = _compared(subjects, settings, given)
        save(comparison, folder, overwrite=overwrite, report=not no_report)
        _print_result(comparison, folder, report=not no_report, json=json)


def _compared(subjects: list[str], settings: dict[str, Any], given: dict[str, Any]) -> Comparison:
    from tokenlens.comparison.compare import compare, is_run

    models = [subject for subject in subjects if not is_run(subject)]
    if not models:
        return compare(*subjects, **settings, **given)
    with progress_of(f"analyzing {', '.join(models)}") as progress:
        return compare(*subjects, **settings, **given, progress=progress)


def _short(subject: str) -> str:
    """The name of a run's folder, or of a model."""
    path = Path(subject)
    return path.resolve().name if path.is_dir() else subject


def _print_result(comparison: Comparison, folder: Path, *, report: bool, json: bool) -> None:
    page = folder / "report.html" if report else None
    differences, summary = comparison.differences, comparison.summary
    told = {}
    for label in comparison.others:
        mine = differences[differences["label"] == label]
        most = summary[(summary["label"] == label) & summary["significant"]].head(TOLD)
        told[label] = {
            "pairing": vars(comparison.pairing[label]),
            "numbers": len(mine),
            "tested": int(mine["p"].notna().sum()),
            "significant": int(mine["significant"].sum()),
            "most": most.drop(columns=["label", "baseline"]).to_dict("records"),
        }
    if json:
        print_json(
            {
                "labels": comparison.labels,
                "baseline": comparison.baseline,
                "untrained": [label for label, analysis in comparison.analyses.items() if analysis.untrained],
                "differences": told,
                "similarity": comparison.similarity.to_dict("records"),
                "similarity_note": comparison.similarity_note,
                "seconds": comparison.provenance["seconds"],
                "run": str(folder),
                "report": None if page is None else str(page),
            }
        )
        return
    for label, found in told.items():
        count = (
            f"{found['significant']} of {found['tested']} numbers differ"
            if found["significant"]
            else (f"none of {found['tested']} numbers differs")
        )
        typer.echo(
            f"{label} against {comparison.baseline}: {found['pairing']['reason']}; {count} beyond chance (false "
            "discovery rate 5 %)"
        )
        for row in found["most"]:
            typer.echo(f"  {_line(row)}")
    alike = comparison.similarity[comparison.similarity["label_1"] == comparison.baseline]
    for row in alike[alike["label_2"] != comparison.baseline].to_dict("records"):
        typer.echo(
            f"{row['group']} features of {row['label_2']} and {row['label_1']}: CKA {_number(row['value'])} "
            f"({_number(row['ci_low'])} to {_number(row['ci_high'])}), {row['n']} images"
        )
    if comparison.similarity_note:
        typer.echo(f"likeness of features: {comparison.similarity_note}")
    typer.echo(f"run: {folder}" if page is None else f"report: {page}")


def _line(row: dict[str, Any]) -> str:
    """A difference in words: which number, the two values, the interval and the effect."""
    name = " ".join(filter(None, [row["metric"], row["part"]]))
    effect = f", {_number(row['effect'])} SD" if row["effect"] == row["effect"] else ""
    return (
        f"{name}, {row['group']} at {row['site']}, mean over blocks: {_number(row['value'])} against "
        f"{_number(row['baseline_value'])}, by {_number(row['difference'])} ({_number(row['ci_low'])} to "
        f"{_number(row['ci_high'])}){effect}"
    )


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
