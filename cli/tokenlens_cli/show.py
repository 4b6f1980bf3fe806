"""``tokenlens show``: draw maps of single images to files."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._output import print_json, say, say_skipped, say_weights
from tokenlens_cli.figure import check_outside_runs, parse_formats, parse_width

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tokenlens.overlays.map_grid import MapGrid
    from tokenlens.recording.recording import Recording

DRAWN_BY_DEFAULT = 4
"""Images of a folder or another named source that are drawn without ``--limit``."""


class Map(StrEnum):
    """Kinds of maps."""

    before_after = "before-after"
    cosine = "cosine"
    attention = "attention"
    pca = "pca"
    norm = "norm"
    correspondence = "correspondence"


OPTIONS = {
    Map.before_after: {"block", "site", "token"},
    Map.cosine: {"block", "site", "token", "head"},
    Map.attention: {"block", "token", "head"},
    Map.pca: {"block", "site", "head", "together"},
    Map.norm: {"block", "site", "head"},
    Map.correspondence: {"block", "site", "token", "head"},
}
"""Which options apply to which map."""


def command(
    model: options.Model,
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]…", help="Further image files, so that `--images *.jpg` works.", show_default=False
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            metavar="FILE…|DIR|sample",
            help="Images to draw: files, a folder, or another source as for `tokenlens analyze`. Defaults to sample.",
        ),
    ] = None,
    map: Annotated[
        Map,
        typer.Option(
            "--map",
            help="before-after: cosine of [CLS] to each patch before and after a norm. cosine: at any site. attention: "
            "of all heads of a block. pca: principal components of the foreground. norm: norms of the patches. "
            "correspondence: the patch of each other image that is nearest to --token of the first.",
        ),
    ] = Map.before_after,
    block: Annotated[
        str | None,
        typer.Option(
            metavar="0-5,11",
            help="Blocks; -1 is the last one. Defaults to six, evenly spaced; attention and correspondence take one, "
            "by default the last.",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Heads of attention (0-2,5), by default all and their mean; one head at the sites q, k, v.",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            metavar="SITE",
            help="Where in a block. Defaults to resid_post; before-after takes a norm, by default norm1.",
        ),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            metavar="cls|reg0|ROW,COLUMN",
            help="The token whose cosine or attention is drawn, by default cls. correspondence needs a patch, or "
            "several: repeat the option. Rows and columns count from 0 at the top left.",
        ),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="pca: compute components over all images rather than over each alone.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write to.")] = Path("maps"),
    format: Annotated[
        str, typer.Option("--format", metavar="png,pdf,svg", help="Formats, separated by commas.")
    ] = "png",
    width: Annotated[
        str, typer.Option(metavar="single|double|MM", help="Width of a figure, as for `tokenlens figure`.")
    ] = "double",
    dpi: Annotated[
        float, typer.Option(min=30, max=2400, metavar="N", help="Resolution of PNG files in dots per inch.")
    ] = 200,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help=f"Draw only N images. Defaults to all given files, and to {DRAWN_BY_DEFAULT} of a folder or data set.",
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained[bool] = True,
    img_size: options.ImgSize = None,
    device: options.Device[str] = "auto",
    seed: options.Seed[int] = 0,
    json: options.Json = False,
) -> None:
    """Draw maps of single images to files.

    Writes one figure per image, all on one colour scale; a correspondence is one figure for all images. Maps are drawn
    over the image as the model saw it. In Python, `tokenlens.plot` has the same functions.
    """
    given = {"block": block, "site": site, "head": head, "token": token, "together": together or None}
    if wrong := [f"--{name}" for name, value in given.items() if value is not None and name not in OPTIONS[map]]:
        raise typer.BadParameter(f"{', '.join(wrong)} does not apply to --map {map}")
    formats = parse_formats(format)
    tokens = [parse_token(text) for text in token or []]
    if map is Map.correspondence and (not tokens or not all(isinstance(one, tuple) for one in tokens)):
        raise typer.BadParameter("--map correspondence needs a patch of the first image: --token ROW,COLUMN")
    if map is not Map.correspondence and len(tokens) > 1:
        raise typer.BadParameter(f"expected one --token, got {len(tokens)}; only correspondence takes several")
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"{out} is a file, expected a folder", param_hint="--out")
    check_outside_runs(out / "map.png")
    files = [*(images or []), *(more or [])]

    from tokenlens.analysis import record

    say(f"loading {model}")
    recording = record(
        model,
        (files[0] if files else "sample") if len(files) < 2 else files,
        sites=sites_of(map, site),
        patterns=None if map is Map.attention else False,
        limit=limit if limit is not None or len(files) > 1 else DRAWN_BY_DEFAULT,
        checkpoint=checkpoint,
        pretrained=pretrained,
        img_size=img_size,
        device=device,
        seed=seed,
    )
    say_weights(model, recording.weights)
    for text in (f"images: {recording.source}", *recording.notes):
        say(text)
    say_skipped(recording.skipped)
    figures = draw(recording, map, block, head, site, tokens, together, parse_width(width))
    paths, frames = [], []
    from tokenlens.figures import save_figure

    for name, (figure, frame) in figures.items():
        for path in (out / f"{name}.{form}" for form in formats):
            if path.exists():
                say(f"{path} was replaced")
        paths += save_figure(figure, out, name, formats, dpi=dpi)
        frames += frame.to_dict("records")
    if json:
        print_json(
            {
                "model": recording.model,
                "untrained": recording.untrained,
                "map": map.value,
                "images": recording.names,
                "skipped": recording.skipped,
                "files": [str(path) for path in paths],
                "numbers": frames,
            }
        )
        return
    for path in paths:
        typer.echo(f"{map}: {path}")


def draw(
    recording: Recording,
    map: Map,
    block: str | None,
    head: str | None,
    site: str | None,
    tokens: list[Any],
    together: bool,
    width: str | float,
) -> dict[str, tuple[Figure, Any]]:
    """Return a figure and its numbers per image, or one of all images for correspondences, by file name."""
    from tokenlens.figures import photographs as plot
    from tokenlens.overlays.correspondence import correspondence_frame, find_correspondences
    from tokenlens.overlays.map_grid import shared_limits

    size: dict[str, Any] = {} if width == "double" else {"width": width}
    at = site or "resid_post"
    if map is Map.correspondence:
        where: dict[str, Any] = {
            "block": one_number(block, "--block", -1),
            "site": at,
            "head": one_number(head, "--head"),
        }
        frame = correspondence_frame(recording, find_correspondences(recording, tokens, **where))
        return {"correspondence": (plot.correspondence(recording, tokens, **where, **size), frame)}
    grids = _grids(recording, map, block, head, site, tokens, together)
    limits = None if grids[0].colours else shared_limits(grids)
    names = file_names([grid.image for grid in grids], map)
    return {name: (plot.draw_maps(grid, limits, **size), grid.frame()) for name, grid in zip(names, grids, strict=True)}


def _grids(
    recording: Recording,
    map: Map,
    block: str | None,
    head: str | None,
    site: str | None,
    tokens: list[Any],
    together: bool,
) -> list[MapGrid]:
    """Return the maps of every recorded image."""
    from tokenlens.overlays.before_after import before_after_maps
    from tokenlens.overlays.block_maps import attention_maps, cosine_maps, norm_maps
    from tokenlens.overlays.components import component_grids

    token, at, images = (tokens or ["cls"])[0], site or "resid_post", range(len(recording.names))
    if map is Map.attention:
        number = one_number(block, "--block", -1)
        return [attention_maps(recording, image, number, token, head) for image in images]
    if map is Map.before_after:
        return [before_after_maps(recording, image, block, site or "norm1", token) for image in images]
    one = one_number(head, "--head")
    if map is Map.cosine:
        return [cosine_maps(recording, image, block, at, token, one) for image in images]
    if map is Map.norm:
        return [norm_maps(recording, image, block, at, one) for image in images]
    return component_grids(recording, images, block, at, one, together)


def sites_of(map: Map, site: str | None) -> list[str]:
    """Return the sites that a map needs.

    Raises:
        LookupError: if there is no such site.
    """
    from tokenlens.overlays.before_after import NORM_INPUTS
    from tokenlens.tokens import Site

    if map is Map.attention:
        return ["q", "k"]
    known = list(NORM_INPUTS) if map is Map.before_after else [each for each in Site if each != Site.POOL]
    if site is not None and site not in known:
        raise LookupError(f"--map {map} takes one of the sites {', '.join(known)}, got {site!r}")
    if map is Map.before_after:
        return [site or "norm1", NORM_INPUTS[Site(site or "norm1")]]
    return [site or "resid_post"]


def parse_token(text: str) -> str | tuple[int, int]:
    """Return a token's name, or a patch.

    >>> parse_token("reg0"), parse_token("4,9"), parse_token("(4, 9)")
    ('reg0', (4, 9), (4, 9))
    """
    match = re.fullmatch(r"\s*\(?\s*(\d+)\s*,\s*(\d+)\s*\)?\s*", text)
    if match:
        return int(match[1]), int(match[2])
    if not re.fullmatch(r"[a-z]+\d*", text):
        raise typer.BadParameter(f"expected cls, reg0, … or a patch as ROW,COLUMN, got {text!r}", param_hint="--token")
    return text


def one_number(text: str | None, option: str, default: Any = None) -> Any:
    """Return the number in an option's text, or the default if there is none."""
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected one number for this map, got {text!r}", param_hint=option) from None


def file_names(images: list[str], map: str) -> list[str]:
    """Return a different file name per image: its name without folders and ending, and the map's.

    >>> file_names(["a/cat 1.jpg", "b/cat 1.jpg", "dog.png"], "pca")
    ['cat_1-pca', 'cat_1-2-pca', 'dog-pca']
    """
    names: list[str] = []
    for image in images:
        base = re.sub(r"[^\w+-]+", "_", Path(image).stem).lstrip("_") or "image"
        name, number = f"{base}-{map}", 1
        while name in names:
            number += 1
            name = f"{base}-{number}-{map}"
        names.append(name)
    return names
