"""``tokenlens figure``: one figure of a run, in the size and format that a paper wants."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from tokenlens_cli._output import print_json, say


def _complete_figures(incomplete: str) -> list[str]:
    from tokenlens.catalog import Catalog

    return [name for name in Catalog("tokenlens.figures", "figure").names() if name.startswith(incomplete)]


def command(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder of `tokenlens analyze`, `compare` or `train`.")
    ],
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A figure (`tokenlens list figures`).", autocompletion=_complete_figures),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE|DIR",
            help="A file, whose ending is the format, or a folder; by default NAME.svg in the current folder.",
        ),
    ] = Path("."),
    width: Annotated[
        str, typer.Option(metavar="single|double|MM", help="One column of a paper (85 mm), two (170 mm), or a number.")
    ] = "double",
    height: Annotated[
        float | None, typer.Option(metavar="MM", help="In millimetres; by default what the figure needs.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="svg,pdf,png",
            help="Formats with commas between them; by default the file's ending, else svg. A PDF embeds its fonts.",
        ),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="A matplotlib style, or a file of settings, on top of the shared look."),
    ] = None,
    dpi: Annotated[float, typer.Option(min=30, max=2400, help="Dots per inch of a PNG.")] = 300,
    blocks: Annotated[
        str | None, typer.Option(metavar="0-5", help="Only these blocks, e.g. 0-5,11; -1 is the last one.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="OPTION=VALUE",
            help="An option of the figure, e.g. metric=token_norm or norms=norm1,norm2; may be given again.",
        ),
    ] = None,
    outlines: Annotated[
        bool, typer.Option("--outlines", help="Make the text of an SVG into shapes, which need no font.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Draw one figure of a run from its saved numbers; needs neither model nor images.

    Files of the same name are replaced, but a run folder is never written into.
    """
    options = dict(option(text) for text in set or [])
    paths = targets(out, name, format)
    for path in paths:
        check_outside_runs(path)

    from tokenlens.figures.base import draw, save_figure
    from tokenlens.storage.result import Result

    subject = Result.load(run)
    sizes: dict[str, Any] = {"width": millimetres(width), "height": height, "style": style, "blocks": blocks}
    if reserved := sorted(options.keys() & {*sizes, "ax", "subject", "name"}):
        raise typer.BadParameter(f"{', '.join(reserved)} cannot be set so; see --help", param_hint="--set")
    try:
        figure = draw(subject, name, **sizes, **options)
    except TypeError as error:
        if not options:
            raise
        raise ValueError(f"the figure {name} cannot use {', '.join(set or [])}: {error}") from error
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
            typer.echo(f"figure: {path}")


def millimetres(text: str) -> str | float:
    """A width as the figures take it: a word as it is, a number as a number.

    >>> millimetres("single"), millimetres("120"), millimetres("120mm")
    ('single', 120.0, 120.0)
    """
    try:
        return float(text.removesuffix("mm"))
    except ValueError:
        return text


def option(text: str) -> tuple[str, Any]:
    """What ``--set`` means: numbers, true, false and null as in JSON, lists with commas, all else as text.

    >>> option("metric=token_norm"), option("norms=norm1,norm2"), option("log=true"), option("block=3")
    (('metric', 'token_norm'), ('norms', ['norm1', 'norm2']), ('log', True), ('block', 3))
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


def targets(out: Path, name: str, format: str | None) -> list[Path]:
    """The files to write.

    Raises:
        typer.BadParameter: for a format that there is not, and for a file whose ending says another one.

    >>> [path.as_posix() for path in targets(Path("paper/fig1.pdf"), "depth_profile", None)]
    ['paper/fig1.pdf']
    >>> [path.as_posix() for path in targets(Path("paper"), "depth_profile", "svg,pdf")]
    ['paper/depth_profile.svg', 'paper/depth_profile.pdf']
    """
    known = ("svg", "png", "pdf")
    formats = None
    if format is not None:
        formats = list(dict.fromkeys(part.strip().lower().lstrip(".") for part in format.split(",") if part.strip()))
        if not formats or set(formats) - set(known):
            raise typer.BadParameter(
                f"expected {', '.join(known)} with commas between them, got {format!r}", param_hint="--format"
            )
    ending = out.suffix[1:].lower()
    if out.is_dir() or not ending:
        return [out / f"{name}.{form}" for form in formats or ["svg"]]
    if ending not in known:
        raise typer.BadParameter(f"{out} ends in .{ending}, expected one of {', '.join(known)}", param_hint="--out")
    if formats is not None and ending not in formats:
        raise typer.BadParameter(f"{out} ends in .{ending}, but --format says {', '.join(formats)}", param_hint="--out")
    return [out.with_suffix(f".{form}") for form in formats or [ending]]


def check_outside_runs(path: Path) -> None:
    """FileExistsError for a file inside a run folder, whose manifest vouches for what is in it."""
    from tokenlens.storage.run_folder import MANIFEST

    for folder in path.resolve().parents:
        if (folder / MANIFEST).is_file():
            raise FileExistsError(
                f"{path} would be in the run folder {folder}, whose {MANIFEST} lists its files; choose another --out"
            )
