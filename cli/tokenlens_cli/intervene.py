"""``tokenlens intervene``: replace tokens in a model and write a run folder with what the others lose."""

from __future__ import annotations

import warnings
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
    from tokenlens.interventions import Intervention


def command(
    model: options.Model,
    replace: Annotated[
        str,
        typer.Option(
            metavar="GROUP,…",
            help="Tokens to replace: cls, reg or another group of the model, patch (a random share of the patches), "
            "high_norm (patches of outlying norm, with as many random ones as a control).",
        ),
    ] = "cls",
    by: Annotated[
        str,
        typer.Option(metavar="NAME,…", help="What takes their place: see `tokenlens list replacements`."),
    ] = "zero,mean,noise,shuffle",
    site: Annotated[
        str,
        typer.Option(metavar="SITE,…", help="Sites, e.g. resid_pre, norm1, attn_out, norm2, mlp_out."),
    ] = "resid_post",
    blocks: Annotated[
        str, typer.Option(metavar="each|N,…", help="Blocks, one condition each; negative ones count from the end.")
    ] = "each",
    share: Annotated[float, typer.Option(metavar="0…1", help="Share of the patches that patch replaces.")] = 0.25,
    probe: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Score this probe run of the model under every replacement, on the images that it was tested on.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DIR|FILE|…", help="The data set of the probe, if it is not where its run found it."),
    ] = None,
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
    seed: options.Seed[int] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder to write. Defaults to reports/<model>-intervention."),
    ] = None,
    overwrite: options.Overwrite = False,
    no_photos: options.NoPhotos = False,
    no_report: options.NoReport = False,
    json: options.Json = False,
) -> None:
    """Replace the tokens of a group, block by block, and measure what the others lose.

    Each combination of --replace, --by, --site and --blocks costs one forward pass over the images.
    """
    folder = out if out is not None else default_folder(f"{model}-intervention")
    expected = "expected each, or block numbers separated by commas"
    with joined(device) as rank:
        from tokenlens.images import ImageWarning
        from tokenlens.interventions import intervene
        from tokenlens.storage.run_folder import check_writable

        settings: dict[str, Any] = {
            "replace": options.split_names(replace, "--replace"),
            "by": options.split_names(by, "--by"),
            "site": options.split_names(site, "--site"),
            "blocks": "each" if blocks.strip() == "each" else options.parse_blocks(blocks, expected),
            "share": share,
            "probe": probe,
            "data": data,
            "photos": not no_photos,
            "limit": limit,
            "checkpoint": checkpoint,
            "pretrained": pretrained,
            "img_size": img_size,
            "model_args": options.join_model_args(model_arg),
            "batch_size": batch_size,
            "workers": workers,
            "device": rank.device,
            "amp": amp,
            "seed": seed,
        }
        if not rank.is_first:
            intervene(model, images, **settings)
            return
        check_writable(folder, overwrite)
        say(f"loading {model}")
        with show_progress() as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)  # printed with the result
            found = intervene(
                model,
                images,
                **settings,
                progress=lambda done, total: progress(f"replacing tokens in {model}", done, total, "images"),
            )
        say_about_result(found)
        if "probe" in found.provenance:
            say(_describe_probe(found.provenance["probe"]))
        for name, reason in found.provenance["unseen"].items():
            say(f"read {name} with care: {reason}")
        save_result(found, folder, overwrite=overwrite, report=not no_report)
        _print_result(found, folder, report=not no_report, json=json)


def _describe_probe(score: dict[str, Any]) -> str:
    text = f"{score['task']} probe, untouched: {100 * score['value']:.1f} % {score['unit']} (n = {score['n']})"
    return text + (
        "" if score["value"] == score["score_of_run"] else f"; its run has {100 * score['score_of_run']:.1f} %"
    )


def _print_result(found: Intervention, folder: Path, *, report: bool, json: bool) -> None:
    page = folder / "report.html" if report else None
    if json:
        print_json(
            {
                "model": found.model,
                "untrained": found.untrained,
                "images": found.images,
                "skipped": found.provenance["images"]["skipped"],
                "not_applicable": found.not_applicable,
                "numbers": len(found.table),
                "probe": found.provenance.get("probe"),
                "sentences": found.sentences,
                "seconds": found.provenance["seconds"],
                "run": str(folder),
                "report": None if page is None else str(page),
            }
        )
        return
    for sentence in found.sentences:
        print_text(sentence, indent=2)
    print_text(f"run: {folder}" if page is None else f"report: {page}")
    say_next(
        report_step(folder, page),
        f"tokenlens compare {quote(str(folder))} RUN  # of `tokenlens intervene` on another model",
        f"tokenlens figure {quote(str(folder))} intervention_effect --out intervention_effect.pdf",
    )
