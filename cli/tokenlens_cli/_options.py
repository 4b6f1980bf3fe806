"""Options that several commands share, with their help; those that are generic take the type as ``Images[str]``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

T = TypeVar("T")

LARGEST_SEED = 2**32 - 1
"""As in ``tokenlens.storage.seeds``; commands import tokenlens only when they run."""


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


def split_names(text: str, option: str, expected: str = "expected names separated by commas") -> list[str]:
    """Return names that are separated by commas; wrong usage if there is none.

    >>> split_names("zero, mean,", "--by")
    ['zero', 'mean']
    """
    names = [name for part in text.split(",") if (name := part.strip())]
    if not names:
        raise typer.BadParameter(expected, param_hint=option)
    return names


def parse_blocks(text: str, expected: str = "expected block numbers separated by commas") -> list[int]:
    """Return the blocks that ``--blocks`` lists; wrong usage for anything but numbers.

    >>> parse_blocks("8, -1")
    [8, -1]
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{expected}, got {text!r}", param_hint="--blocks") from None


def parse_metrics(text: str | None) -> list[str] | str | None:
    """Return the metrics that ``--metrics`` names: None for the default ones, ``"all"``, or a list of names.

    >>> parse_metrics("cka, token_norm")
    ['cka', 'token_norm']
    """
    if text is None:
        return None
    names = split_names(text, "--metrics", "expected metric names separated by commas, or all")
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
        help="Images to analyze: a folder, an image, a pattern ('*.jpg'), a .txt list of paths, a Hugging Face data "
        "set or webdataset shards. `sample` stands for crops of a few photographs that need no download.",
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


def parse_size(text: str) -> int | tuple[int, int]:
    """Return the side length of images, or their height and width.

    >>> parse_size("224"), parse_size("224x336")
    (224, (224, 336))
    """
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise typer.BadParameter(f"expected a number of pixels, or HEIGHTxWIDTH as in 224x336, got {text!r}")
    return int(text) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


ImgSize = Annotated[
    Any,
    typer.Option(
        parser=parse_size,
        metavar="PIXELS|HxW",
        help="Side length of the input images, or height x width, as 224x336. Defaults to the model's own.",
    ),
]


def parse_model_arg(text: str) -> tuple[str, Any]:
    """Return the name and the value of a model's argument: an int, float, bool, None or text.

    >>> [parse_model_arg(text) for text in ("reg_tokens=4", "init_values=1e-5", "class_token=false", "global_pool=avg")]
    [('reg_tokens', 4), ('init_values', 1e-05), ('class_token', False), ('global_pool', 'avg')]
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name.isidentifier() or not value:
        raise typer.BadParameter(f"expected NAME=VALUE, as in global_pool=avg, got {text!r}")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    for number in (int, float):
        with suppress(ValueError):
            return name, number(value)
    return name, value


def join_model_args(pairs: list[tuple[str, Any]] | None) -> dict[str, Any] | None:
    """Return the arguments that ``--model-arg`` gives; None without any."""
    given = dict(pairs or ())
    if len(given) < len(pairs or ()):
        raise typer.BadParameter("an argument is given twice; give each one once", param_hint="--model-arg")
    return given or None


ModelArg = Annotated[
    list[Any] | None,
    typer.Option(
        "--model-arg",
        parser=parse_model_arg,
        metavar="NAME=VALUE",
        help="Argument of the model's constructor, for timm models: reg_tokens=4, global_pool=avg, "
        "mlp_layer=SwiGLUPacked. Repeat the option for several.",
    ),
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
