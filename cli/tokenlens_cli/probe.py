"""``tokenlens probe``: a small head on a frozen model's features, and how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli._output import print_json, progress_of, say
from tokenlens_cli.analyze import default_folder

if TYPE_CHECKING:
    from tokenlens.probes import ProbeResult


def _complete_tasks(incomplete: str) -> list[str]:
    from tokenlens.catalog import Catalog

    return [name for name in Catalog("tokenlens.probes", "probe").names() if name.startswith(incomplete)]


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="tokenlens_tiny, which needs no download, a timm name with or without a weights tag, "
            "hf-hub:owner/name, local-dir:PATH, a run folder of `tokenlens train`, or raw_pixels: no model, for "
            "comparison.",
        ),
    ],
    task: Annotated[
        str,
        typer.Option(
            metavar="knn|linear|segmentation|…",
            autocompletion=_complete_tasks,
            help="What is done with the features (`tokenlens list probes`).",
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE|hfds/…|wds/…",
            help="Labelled images: a folder with train/ and val/ and a folder for each class, a tar file of one, "
            "webdataset shards, a Hugging Face data set; for segmentation a folder of images and masks.",
        ),
    ],
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
    source: Annotated[
        str | None,
        typer.Option(
            metavar="cls|patch_mean|both",
            help="What of the model stands for an image; by default CLS where it has one. Segmentation takes the "
            "patches.",
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            metavar="N,…",
            help="Features of these blocks, each through the final norm, side by side; negative ones count from the "
            "end. By default the output of the final norm.",
        ),
    ] = None,
    img_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images in pixels; by default the model's own.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per forward pass; the number does not depend on it.")
    ] = 32,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images besides this one.")] = 0,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|mps|…", help="Where to compute; auto is cuda, then mps, then cpu.")
    ] = "auto",
    amp: Annotated[bool, typer.Option("--amp/--no-amp", help="Run the model in bfloat16; the head is not.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Use this many images of each split, always the same random ones.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of random weights, of what is held out, and of the order of training.")
    ] = 0,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep the features on disk, and take those that are kept.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder; by default reports/<model>_<task>.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run if there is one already.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Train a small head on a frozen model's features and test it: accuracy, or mean IoU, with an interval.

    knn and linear classify images, segmentation classifies pixels. Prints the protocol beside the number and writes a
    run folder. What a comparison needs: the same with --no-pretrained, and with raw_pixels for MODEL.
    """
    folder = out if out is not None else default_folder(f"{model}_{task}")
    wanted = chosen_blocks(blocks)
    from tokenlens.probes import probe
    from tokenlens.storage.run_folder import check_writable

    check_writable(folder, overwrite)
    with progress_of(f"{task} on features of {model}") as progress:
        result = probe(
            model,
            task,
            data,
            source=source,
            blocks=wanted,
            checkpoint=checkpoint,
            pretrained=pretrained,
            img_size=img_size,
            batch_size=batch_size,
            workers=workers,
            device=device,
            amp=amp,
            seed=seed,
            limit=limit,
            cache=cache,
            progress=progress,
        )
    tell_what_was_skipped(result)
    result.save(folder, overwrite=overwrite)
    if json:
        print_json(as_json(result, folder))
        return
    for line in text(result, folder):
        typer.echo(line)


def chosen_blocks(text: str | None) -> list[int] | None:
    """What ``--blocks`` means.

    >>> chosen_blocks("8, -1")
    [8, -1]
    """
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"expected numbers of blocks with commas between them, got {text!r}", param_hint="--blocks"
        ) from None


def tell_what_was_skipped(result: ProbeResult) -> None:
    """Unreadable images, on stderr."""
    skipped = result.provenance["skipped"]
    if skipped:
        named = "; ".join(f"{item['split']} {item['name']}: {item['reason']}" for item in skipped[:5])
        more = f"; and {len(skipped) - 5} more, all named in result.json" if len(skipped) > 5 else ""
        say(f"{len(skipped)} unreadable {'image was' if len(skipped) == 1 else 'images were'} skipped: {named}{more}")


def text(result: ProbeResult, folder: Path) -> list[str]:
    """The number, its protocol, the secondary numbers, and where they are."""
    rows = result.table.to_dict("records")
    lines = [result.headline, "protocol:", *(f"  {line}" for line in result.protocol_lines()), "more numbers:"]
    names = [f"{row['quantity']}{', ' if row['of'] else ''}{row['of']}" for row in rows]
    width = max(map(len, names), default=0)
    for name, row in zip(names, rows, strict=True):
        known = row["ci_low"] == row["ci_low"]
        between = f"  [{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]" if known else ""
        lines.append(f"  {name:<{width}}  {result.in_percent(row['value']):>7}  n = {row['n']}{between}")
    seconds = result.provenance["seconds"]
    time = f"{seconds['features']:.1f} s for features, {seconds['probe']:.1f} s for the probe"
    return [*lines, time, f"run: {folder}"]


def as_json(result: ProbeResult, folder: Path) -> dict[str, Any]:
    """The same for programs."""
    return {
        "model": result.model,
        "task": result.task,
        "untrained": result.untrained,
        "value": result.value,
        "ci_low": result.ci_low,
        "ci_high": result.ci_high,
        "n": result.n,
        "unit": result.unit,
        "protocol": result.protocol,
        "table": result.table.to_dict("records"),
        "skipped": result.provenance["skipped"],
        "seconds": result.provenance["seconds"],
        "run": str(folder),
    }
