"""Options that several commands share, with their help; those that are generic take the type as ``Images[str]``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

T = TypeVar("T")

LARGEST_SEED = 2**32 - 1
"""As in ``tokenlens.images.sources``, which would take too long to import here."""


def complete_entries(package: str) -> Callable[[str], list[str]]:
    """Return a function that completes the name of a catalogue's entry without importing the entries.

    >>> complete_entries("tokenlens.metrics")("token_n")
    ['token_norm']
    """

    def complete(incomplete: str) -> list[str]:
        from tokenlens.catalog import Catalog

        return [name for name in Catalog(package, "entry").names() if name.startswith(incomplete)]

    return complete


def complete_metrics(incomplete: str) -> list[str]:
    """Complete the last metric of a list with commas.

    >>> complete_metrics("token_norm,cls_cls")
    ['token_norm,cls_cls_cosine']
    """
    chosen, comma, last = incomplete.rpartition(",")
    names = ["all"] * "all".startswith(last) + complete_entries("tokenlens.metrics")(last)
    return [chosen + comma + name for name in names]


def parse_metrics(text: str | None) -> list[str] | str | None:
    """Return the metrics that ``--metrics`` names: None for the default ones, ``"all"``, or a list of names.

    >>> parse_metrics("cka, token_norm")
    ['cka', 'token_norm']
    """
    if text is None:
        return None
    names = [name for part in text.split(",") if (name := part.strip())]
    if not names:
        raise typer.BadParameter("expected metric names separated by commas, or all", param_hint="--metrics")
    return "all" if names == ["all"] else names


MODEL_NAMES = (
    "tokenlens_tiny (comes with tokenlens, no download), a timm name with or without a weights tag (see `tokenlens "
    "list models`), hf-hub:owner/name, a folder in the format of timm or Transformers, or a run folder of `tokenlens "
    "train`"
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"The model: {MODEL_NAMES}.")]
Images = Annotated[
    T,
    typer.Option(
        metavar="DIR|FILE|sample|hfds/…|wds/…",
        help="Images to analyze: a folder, an image, a Hugging Face data set or webdataset shards. `sample` stands for "
        "crops of a few photographs that need no download.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Use only N images: a random subset drawn with --seed, or the first N of a stream."
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Load the weights from this file, or folder of shards, instead of the published ones. Whatever the file "
        "wraps them in is undone and said; nothing in it is executed.",
    ),
]
Pretrained = Annotated[
    T,
    typer.Option(
        "--pretrained/--no-pretrained",
        help="Use published weights, or random ones drawn with --seed. Results of random weights are marked untrained.",
    ),
]
ImgSize = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Side length of the input images. Defaults to the model's own."),
]
BatchSize = Annotated[
    T,
    typer.Option(min=1, metavar="N", help="Images per forward pass. Changes speed and memory, not the results."),
]
Workers = Annotated[
    int, typer.Option(min=0, metavar="N", help="Number of additional processes that decode the images.")
]
Device = Annotated[
    T,
    typer.Option(metavar="auto|cpu|cuda|mps|…", help="Device to run on. auto takes cuda, then mps, then cpu."),
]
Amp = Annotated[
    bool, typer.Option("--amp/--no-amp", help="Run the model in bfloat16. Results are still accumulated in float64.")
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…|all",
        autocompletion=complete_metrics,
        help="Metrics to compute, separated by commas, or all. Defaults to all but the opt-in ones (see `tokenlens "
        "list metrics`).",
    ),
]
Seed = Annotated[
    T,
    typer.Option(
        min=0, max=LARGEST_SEED, metavar="N", help="Seed for image sampling, sample crops and random weights."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists already.")]
NoPhotos = Annotated[
    bool,
    typer.Option(
        "--no-photos",
        help="Keep no pixels. By default the run folder and its report contain the first four images as small JPEGs.",
    ),
]
NoReport = Annotated[bool, typer.Option("--no-report", help="Save the numbers without drawing figures and report.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object instead of text.")]
