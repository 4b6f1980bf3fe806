"""``tokenlens compare``: compare several runs or models and write a run folder with a report."""

from __future__ import annotations

import warnings
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._output import print_json, print_text, report_step, say_about_images, say_next, say_weights
from tokenlens_cli._processes import joined
from tokenlens_cli._progress import show_progress
from tokenlens_cli._run_folder import default_folder, save_result

if TYPE_CHECKING:
    from tokenlens.comparison import Comparison

LARGEST_SHOWN = 3
"""Number of largest differences to print per model."""


def command(
    subjects: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|MODEL RUN|MODEL …",
            help="At least two run folders of `tokenlens analyze` (or of `intervene`), or model names.",
        ),
    ],
    baseline: Annotated[
        str,
        typer.Option(
            metavar="LABEL|POSITION", help="The run or model that the others are compared with: a label, or 0, 1, …"
        ),
    ] = "0",
    label: Annotated[
        list[str] | None,
        typer.Option(help="Label of a run or model; give one for each, in the same order. Defaults to model names."),
    ] = None,
    pair: Annotated[
        bool | None,
        typer.Option(
            "--pair/--no-pair",
            help="Always (or never) pair results by image. Default: pair if both saw the same images in the same "
            "order.",
        ),
    ] = None,
    images: options.Images[str | None] = None,
    limit: options.Limit = None,
    img_size: options.ImgSize = None,
    model_arg: options.ModelArg = None,
    batch_size: options.BatchSize[int | None] = None,
    device: options.Device[str | None] = None,
    pretrained: options.Pretrained[bool | None] = None,
    metrics: options.Metrics = None,
    seed: options.Seed[int | None] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder to write. Defaults to reports/compare_<a>_<b>….")
    ] = None,
    overwrite: options.Overwrite = False,
    no_photos: options.NoPhotos = False,
    no_report: options.NoReport = False,
    json: options.Json = False,
) -> None:
    """Compare several models with one of them, with intervals and tests.

    Saved runs are compared from their numbers, without loading models or images. Models given by name are analyzed
    first; the options from --images to --seed apply to them, and default to the images and settings of the first run.
    Writes a run folder with the compared runs, the tables, the figures and an HTML report.
    """
    folder = out if out is not None else default_folder("compare_" + "_".join(map(_short_name, subjects)))
    settings: dict[str, Any] = {
        "images": images,
        "limit": limit,
        "img_size": img_size,
        "model_args": options.join_model_args(model_arg),
        "batch_size": batch_size,
        "device": device,
        "pretrained": pretrained,
        "metrics": options.parse_metrics(metrics),
        "seed": seed,
        "photos": False if no_photos else None,
    }
    settings = {name: value for name, value in settings.items() if value is not None}
    chosen = baseline if label and baseline in label else int(baseline) if baseline.isdecimal() else baseline
    settings |= {"baseline": chosen, "labels": label, "pair": pair}
    with joined(device or "auto") as rank:
        from tokenlens.comparison import compare
        from tokenlens.storage.run_folder import check_writable

        if rank.device != "auto":
            settings["device"] = rank.device
        if not rank.is_first:
            compare(*subjects, **settings)
            return
        if folder.resolve() in {Path(subject).resolve() for subject in subjects}:
            raise ValueError(f"--out {folder} is one of the runs that are compared; choose another folder")
        check_writable(folder, overwrite)
        comparison = _compare_with_progress(subjects, settings)
        save_result(comparison, folder, overwrite=overwrite, report=not no_report)
        _print_result(comparison, folder, report=not no_report, json=json)


def _compare_with_progress(subjects: list[str], settings: dict[str, Any]) -> Comparison:
    from tokenlens.comparison.compare import compare, is_run

    models = [subject for subject in subjects if not is_run(subject)]
    if not models:
        return compare(*subjects, **settings)
    from tokenlens.images import ImageWarning

    begun: list[str] = []

    def show(done: int, total: int | None) -> None:
        if done == 0:
            begun.append(f"analyzing {models[len(begun)]} ({len(begun) + 1} of {len(models)})")
        progress(begun[-1], done, total, "images")

    with show_progress() as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)  # printed below
        comparison = compare(*subjects, **settings, progress=show)
    analyzed = [
        analysis for subject, analysis in zip(subjects, comparison.analyses.values(), strict=True) if subject in models
    ]
    described: list[dict[str, Any]] = []
    for analysis in analyzed:
        images = analysis.provenance["images"]
        if images not in described:  # usually all models see the same images
            described.append(images)
            say_about_images(images)
    for analysis in {analysis.model: analysis for analysis in analyzed}.values():
        say_weights(analysis.model, analysis.provenance["weights"])
    return comparison


def _short_name(subject: str) -> str:
    """Return the folder name of a run, or the name of a model."""
    path = Path(subject)
    return path.resolve().name if path.is_dir() else subject


def _print_result(comparison: Comparison, folder: Path, *, report: bool, json: bool) -> None:
    page = folder / "report.html" if report else None
    differences = {label: _differences(comparison, label) for label in comparison.others}
    if json:
        print_json(
            {
                "labels": comparison.labels,
                "baseline": comparison.baseline,
                "untrained": [label for label, analysis in comparison.analyses.items() if analysis.untrained],
                "differences": differences,
                "similarity": comparison.similarity.to_dict("records"),
                "similarity_note": comparison.similarity_note,
                "seconds": comparison.provenance["seconds"],
                "run": str(folder),
                "report": None if page is None else str(page),
            }
        )
        return
    for number, (label, found) in enumerate(differences.items()):
        many = f"{found['significant']} of {found['tested']} numbers differ significantly"
        count = many if found["significant"] else f"none of {found['tested']} numbers differs significantly"
        print_text(
            f"{label} against {comparison.baseline}: {found['pairing']['reason']}; {count}"
            + ("" if number else " (false discovery rate 5 %)"),
            bold=count,
            indent=2,
        )
        for row in found["most"]:
            print_text(f"  {_describe_difference(row)}", indent=4)
    similar = comparison.similarity[comparison.similarity["label_1"] == comparison.baseline]
    for row in similar[similar["label_2"] != comparison.baseline].to_dict("records"):
        print_text(
            f"{row['group']} features of {row['label_2']} and {row['label_1']}: CKA {_number(row['value'])} "
            f"({_number(row['ci_low'])} to {_number(row['ci_high'])}), {row['n']} images",
            indent=2,
        )
    if comparison.similarity_note:
        print_text(f"similarity of features: {comparison.similarity_note}", indent=2)
    print_text(f"run: {folder}" if page is None else f"report: {page}")
    say_next(
        report_step(folder, page),
        f"tokenlens figure {quote(str(folder))} compare_differences --out compare_differences.pdf",
    )


def _differences(comparison: Comparison, label: str) -> dict[str, Any]:
    """Count how many numbers of a model differ from the baseline, and list the largest differences."""
    differences, summary = comparison.differences, comparison.summary
    chosen = differences[differences["label"] == label]
    largest = summary[(summary["label"] == label) & summary["significant"]].head(LARGEST_SHOWN)
    return {
        "pairing": vars(comparison.pairing[label]),
        "numbers": len(chosen),
        "tested": int(chosen["p"].notna().sum()),
        "significant": int(chosen["significant"].sum()),
        "most": largest.drop(columns=["label", "baseline"]).to_dict("records"),
    }


def _describe_difference(row: dict[str, Any]) -> str:
    name = " ".join(filter(None, [row["metric"], row["part"]]))
    effect = f", {_number(row['effect'])} SD" if row["effect"] == row["effect"] else ""
    return (
        f"{name}, {row['group']} at {row['site']}, mean over blocks: {_number(row['value'])} against "
        f"{_number(row['baseline_value'])}, difference {_number(row['difference'])} ({_number(row['ci_low'])} to "
        f"{_number(row['ci_high'])}){effect}"
    )


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
