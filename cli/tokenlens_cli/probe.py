"""``tokenlens probe``: train and test a small head on the features of a frozen model."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._output import print_json, print_text, report_step, say, say_next, say_skipped
from tokenlens_cli._progress import show_progress
from tokenlens_cli._run_folder import default_folder, save_result

if TYPE_CHECKING:
    from tokenlens.probes import ProbeResult


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=f"The model: {options.MODEL_NAMES}; or raw_pixels as a baseline.",
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            metavar="knn|linear|segmentation|…",
            autocompletion=options.complete_entries("tokenlens.probes"),
            help="The probe (see `tokenlens list probes`).",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE|hfds/…|wds/…",
            help="Labelled images: a folder with train/ and val/ and a folder per class, a tar file of one, webdataset "
            "shards or a Hugging Face data set. For segmentation, a folder of images and masks.",
        ),
    ],
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained[bool] = True,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="cls|patch_mean|both",
            help="Features that represent an image. Defaults to CLS if there is one; segmentation uses patches.",
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Concatenate the features of these blocks, each after the final norm; -1 is the last block. By "
            "default, use the output of the final norm.",
        ),
    ] = None,
    img_size: options.ImgSize = None,
    model_arg: options.ModelArg = None,
    batch_size: options.BatchSize[int] = 32,
    workers: options.Workers = 0,
    device: options.Device[str] = "auto",
    amp: Annotated[
        bool, typer.Option("--amp/--no-amp", help="Run the model in bfloat16. The head is not affected.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Use only N images of each split: a fixed random subset."),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0,
            max=options.LARGEST_SEED,
            metavar="N",
            help="Seed for random weights, held-out images and the training order.",
        ),
    ] = 0,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Store the features on disk, and reuse stored ones.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder to write. Defaults to reports/<model>_<task>.")
    ] = None,
    overwrite: options.Overwrite = False,
    no_report: options.NoReport = False,
    json: options.Json = False,
) -> None:
    """Train a small head on a frozen model's features and test it.

    knn and linear classify images, segmentation classifies pixels. Prints the accuracy or mean IoU with its interval
    and protocol, and writes a run folder. For baselines, run it with --no-pretrained, and with raw_pixels as MODEL.
    """
    folder = out if out is not None else default_folder(f"{model}_{task}")
    chosen = None if blocks is None else options.parse_blocks(blocks)
    from tokenlens.probes import probe
    from tokenlens.storage.run_folder import check_writable

    check_writable(folder, overwrite)
    with show_progress() as progress:
        begun: list[str] = []

        def show(stage: str, done: int, total: int, unit: str) -> None:
            if not begun:  # what is refused has no heading
                begun.append(f"{task} on features of {model}")
                say(begun[0])
            progress(stage, done, total, unit)

        result = probe(
            model,
            task,
            data,
            source=source,
            blocks=chosen,
            checkpoint=checkpoint,
            pretrained=pretrained,
            img_size=img_size,
            model_args=options.join_model_args(model_arg),
            batch_size=batch_size,
            workers=workers,
            device=device,
            amp=amp,
            seed=seed,
            limit=limit,
            cache=cache,
            progress=show,
        )
    for note in dict.fromkeys(note for data in result.provenance["data"] for note in data.get("notes", [])):
        say(note)
    say_skipped(result.provenance["skipped"])
    save_result(result, folder, overwrite=overwrite, report=not no_report)
    if json:
        print_json(as_json(result, folder))
        return
    for line in text(result, folder):
        print_text(line, bold=result.headline, indent=4 if line.startswith(" ") else 2)
    say_next(
        report_step(folder, None if no_report else folder / "report.html"),
        f"tokenlens probe raw_pixels --task {task} --data {quote(data)}  (the baseline)",
    )


def text(result: ProbeResult, folder: Path) -> list[str]:
    """Return lines with the main number, its protocol, the secondary numbers and the run folder."""
    rows = result.table.to_dict("records")
    lines = [result.headline, "protocol:", *(f"  {line}" for line in result.protocol_lines()), "more numbers:"]
    names = [f"{row['quantity']}{', ' if row['of'] else ''}{row['of']}" for row in rows]
    width = max((len(str(row["n"])) for row in rows), default=0)
    for name, row in zip(names, rows, strict=True):
        known = row["ci_low"] == row["ci_low"]
        between = f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]" if known else ""
        lines.append(f"  {result.in_percent(row['value']):>7} {between:>14}  n = {row['n']:<{width}}  {name}")
    seconds = result.provenance["seconds"]
    time = f"{seconds['features']:.1f} s for features, {seconds['probe']:.1f} s for the probe"
    return [*lines, time, f"run: {folder}"]


def as_json(result: ProbeResult, folder: Path) -> dict[str, Any]:
    """Return the result for ``--json``."""
    names = ("model", "task", "untrained", "value", "ci_low", "ci_high", "n", "unit", "protocol")
    return {
        **{name: getattr(result, name) for name in names},
        "table": result.table.to_dict("records"),
        "skipped": result.provenance["skipped"],
        "seconds": result.provenance["seconds"],
        "run": str(folder),
    }
