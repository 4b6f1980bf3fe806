"""``tokenlens figure``: draw one figure of a run in the size and format that a paper needs."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._output import print_json, print_text, say

FORMATS = ("svg", "png", "pdf")


def command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run folder of `tokenlens analyze`, `compare`, `intervene`, `train` or `verify`."
        ),
    ],
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The figure (see `tokenlens list figures`).",
            autocompletion=options.complete_entries("tokenlens.figures"),
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="The file to write, whose ending selects the format, or a folder. Defaults to NAME.svg in the current "
            "folder.",
        ),
    ] = Path("."),
    width: Annotated[
        str,
        typer.Option(
            metavar="single|double|MM",
            help="One column of a paper (85 mm), two columns (170 mm), or a width in millimetres.",
        ),
    ] = "double",
    height: Annotated[
        float | None, typer.Option(metavar="MM", help="Height in millimetres. Defaults to what the figure needs.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="svg,pdf,png",
            help="Formats, separated by commas. Defaults to the ending of --out, or svg. PDF files embed their fonts.",
        ),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="A matplotlib style or style file, applied on top of the default style."
        ),
    ] = None,
    dpi: Annotated[
        float, typer.Option(min=30, max=2400, metavar="N", help="Resolution of PNG files in dots per inch.")
    ] = 300,
    blocks: Annotated[
        str | None, typer.Option(metavar="0-5", help="Show only these blocks, e.g. 0-5,11. -1 is the last block.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="An option of the figure, e.g. metric=token_norm or norms=norm1,norm2. Can be repeated.",
        ),
    ] = None,
    outlines: Annotated[
        bool, typer.Option("--outlines", help="Convert the text of SVG files to shapes, which need no fonts.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Draw one figure of a run as SVG, PDF or PNG.

    Uses the numbers that are saved in the run folder; neither the model nor the images are needed. Existing files are
    replaced, but nothing is written into a run folder.
    """
    chosen = dict(parse_option(text) for text in set or [])
    paths = output_files(out, name, format)
    for path in paths:
        check_outside_runs(path)

    from tokenlens.figures import draw, save_figure
    from tokenlens.storage.result import Result
    from tokenlens.storage.run_folder import check_can_create

    subject = Result.load(run)
    for path in paths:
        check_can_create(path)
    sizes: dict[str, Any] = {"width": parse_width(width), "height": height, "style": style, "blocks": blocks}
    if reserved := sorted(chosen.keys() & {*sizes, "ax", "subject", "name"}):
        raise typer.BadParameter(
            f"{', '.join(reserved)} cannot be set with --set; see the other options in --help", param_hint="--set"
        )
    try:
        figure = draw(subject, name, **sizes, **chosen)
    except TypeError as error:
        if not chosen:
            raise
        raise ValueError(f"the figure {name} does not accept {', '.join(set or [])}: {error}") from error
    replaced = [path for path in paths if path.exists()]
    folder, stem = paths[0].parent, paths[0].stem
    save_figure(figure, folder, stem, [path.suffix[1:] for path in paths], dpi=dpi, outlines=outlines)
    for path in replaced:
        say(f"{path} was replaced")
    if json:
        inches = figure.get_size_inches()
        print_json(
            {
                "run": str(run),
                "figure": name,
                "files": [str(path) for path in paths],
                "width_mm": round(float(inches[0]) * 25.4, 2),
                "height_mm": round(float(inches[1]) * 25.4, 2),
            }
        )
    else:
        for path in paths:
            print_text(f"figure: {path}")


def parse_width(text: str) -> str | float:
    """Return the width in millimetres, or the text itself if it is not a number.

    >>> parse_width("single"), parse_width("120"), parse_width("120mm")
    ('single', 120.0, 120.0)
    """
    try:
        return float(text.removesuffix("mm"))
    except ValueError:
        return text


def parse_option(text: str) -> tuple[str, Any]:
    """Return name and value of ``--set``: JSON numbers, booleans and null, lists with commas, or text.

    >>> parse_option("metric=token_norm"), parse_option("norms=norm1,norm2"), parse_option("log=true")
    (('metric', 'token_norm'), ('norms', ['norm1', 'norm2']), ('log', True))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise typer.BadParameter(f"expected OPTION=VALUE, got {text!r}", param_hint="--set")
    values = [_value(part.strip()) for part in value.split(",")]
    return key.strip().replace("-", "_"), values[0] if len(values) == 1 else [each for each in values if each != ""]


def _value(text: str) -> Any:
    try:
        value = json_module.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | int | float) else text


def parse_formats(text: str) -> list[str]:
    """Return the formats in a list with commas.

    Raises:
        typer.BadParameter: for an unknown one.
    """
    formats = list(dict.fromkeys(part.strip().lower().lstrip(".") for part in text.split(",") if part.strip()))
    if not formats or set(formats) - set(FORMATS):
        raise typer.BadParameter(
            f"expected some of {', '.join(FORMATS)}, separated by commas, got {text!r}", param_hint="--format"
        )
    return formats


def output_files(out: Path, name: str, format: str | None) -> list[Path]:
    """Return the files to write.

    Raises:
        typer.BadParameter: for an unknown format, or one that contradicts the ending of ``out``.

    >>> [path.as_posix() for path in output_files(Path("paper/fig1.pdf"), "depth_profile", None)]
    ['paper/fig1.pdf']
    >>> [path.as_posix() for path in output_files(Path("paper"), "depth_profile", "svg,pdf")]
    ['paper/depth_profile.svg', 'paper/depth_profile.pdf']
    """
    formats = None if format is None else parse_formats(format)
    ending = out.suffix[1:].lower()
    if out.is_dir() or not ending:
        return [out / f"{name}.{form}" for form in formats or ["svg"]]
    if ending not in FORMATS:
        raise typer.BadParameter(f"{out} ends in .{ending}, expected one of {', '.join(FORMATS)}", param_hint="--out")
    if formats is not None and ending not in formats:
        raise typer.BadParameter(f"{out} ends in .{ending}, but --format says {', '.join(formats)}", param_hint="--out")
    return [out.with_suffix(f".{form}") for form in formats or [ending]]


def check_outside_runs(path: Path) -> None:
    """Raise FileExistsError for a file inside a run folder, because its manifest lists all of its files."""
    from tokenlens.storage.run_folder import MANIFEST

    for folder in path.resolve().parents:
        if (folder / MANIFEST).is_file():
            raise FileExistsError(
                f"{path} would be in the run folder {folder}, whose {MANIFEST} lists its files; choose another --out"
            )
