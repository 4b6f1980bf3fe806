"""Draw the pictures of the gallery that are not up to date.

    python docs/making/draw_gallery.py               # those whose script, or shipped model, has changed
    python docs/making/draw_gallery.py before_after  # these in any case

Most scripts name weights that do not come with tokenlens: they are read from the folder weights/ in
TOKENLENS_TEST_DATA. ``explore`` is drawn in headless Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gallery import REPOSITORY, Entry, read_entries

DPI = 145
QUALITY = 60
PDF_DPI = (150, 90)
"""Resolutions of photographs and maps in a PDF: the first that keeps it below ``PDF_BYTES``, or the last."""

PDF_BYTES = 320_000

WIDGET_WIDTH = 1200
SECONDS = 1.6
"""Time for which the animation shows each step."""


def main() -> int:
    """Draw what was asked for, or what is out of date, and return 0, or 1 if that is impossible."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of entries (default: all that are out of date)")
    names = parser.parse_args().names
    entries = read_entries()
    if unknown := sorted(set(names) - {entry.name for entry in entries}):
        parser.error(f"no entry {', '.join(unknown)}; there are {', '.join(entry.name for entry in entries)}")
    wanted = [entry for entry in entries if entry.name in names or (not names and not entry.is_current())]
    failed = [entry.name for entry in wanted if not _drawn(entry)]
    counts = f"{len(wanted) - len(failed)} drawn, {len(entries) - len(wanted)} left as they are, {len(failed)} failed"
    print(f"gallery: {len(entries)} entries, {counts}")
    return 1 if failed else 0


def _drawn(entry: Entry) -> bool:
    try:
        draw(entry)
    except (OSError, LookupError, ValueError) as error:
        print(f"{entry.script.name}: {error}", file=sys.stderr)
        print("weights are read from the folder weights/ in TOKENLENS_TEST_DATA", file=sys.stderr)
        return False
    files = [file for file in (entry.file(".webp"), entry.file(".pdf")) if file.exists()]
    sizes = [f"{file.stat().st_size / 1000:.0f} kB" for file in files]
    print(f"{entry.name}: {', '.join(sizes)}", flush=True)
    return True


def draw(entry: Entry) -> None:
    """Run a script in a folder with the weights, and write the picture, the PDF and the record."""
    from matplotlib import style
    from matplotlib.image import AxesImage

    from tokenlens.figures.style import STYLE

    os.environ["MPLBACKEND"] = "agg"
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for weights in Path(os.environ.get("TOKENLENS_TEST_DATA", folder), "weights").glob("*.safetensors"):
            Path(folder, weights.name).symlink_to(weights)
        os.chdir(folder)
        try:
            with style.context("default"):
                made = runpy.run_path(str(entry.script))
        finally:
            os.chdir(here)
    entry.pictures.mkdir(exist_ok=True)
    if "view" in made:
        entry.file(".webp").write_bytes(_animation(made["view"], made["steps"]))
    else:
        figure = made["figure"]
        with style.context(["default", getattr(figure, "look", STYLE), {"pdf.fonttype": 42}]):
            entry.file(".webp").write_bytes(_picture(figure))
            for image in figure.findobj(AxesImage):  # otherwise a PDF keeps all pixels, hidden ones too
                image.set_interpolation("nearest" if max(image.get_array().shape[:2]) < 100 else "antialiased")
            dates = {"CreationDate": None, "Creator": None, "Producer": None}
            for dpi in PDF_DPI:
                figure.savefig(entry.file(".pdf"), dpi=dpi, metadata=dates)
                if entry.file(".pdf").stat().st_size < PDF_BYTES:
                    break
    record = {"digest": entry.digest(), "images": _sources(made.values()), "made": _caption(made.values())}
    entry.file(".json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _picture(figure: Any) -> bytes:
    """Return a figure as WebP: lossless where that is smaller, as for most charts."""
    from PIL import Image

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=DPI)
    image = Image.open(png).convert("RGB")
    found = []
    for options in ({"lossless": True}, {"quality": QUALITY}):
        webp = io.BytesIO()
        image.save(webp, format="webp", method=6, **options)
        found.append(webp.getvalue())
    return min(found, key=len)


def _animation(view: Any, steps: list[dict[str, Any]]) -> bytes:
    """Return the widget at each step as an animated WebP, from headless Chromium."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    sys.path.insert(0, str(REPOSITORY))
    from tests.conftest import CHROMIUM
    from tests.support.browser_widget import open_widget

    frames = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDGET_WIDTH, "height": 800})
        view.select(**steps[0])
        open_widget(tab, view)
        for step in steps:
            view.select(**step)
            tab.evaluate("refresh()")
            tab.wait_for_timeout(200)
            frames.append(Image.open(io.BytesIO(tab.locator("#widget").screenshot())).convert("RGB"))
        browser.close()
    height = max(frame.height for frame in frames)
    sheets = [Image.new("RGB", (frames[0].width, height), "white") for _ in frames]
    for sheet, frame in zip(sheets, frames, strict=True):
        sheet.paste(frame)
    webp = io.BytesIO()
    sheets[0].save(
        webp,
        format="webp",
        save_all=True,
        append_images=sheets[1:],
        duration=round(1000 * SECONDS),
        loop=0,
        method=6,
        quality=50,
    )
    return webp.getvalue()


def _subjects(values: Iterable[Any]) -> Iterator[dict[str, str]]:
    """Yield model, weights, and images of the recordings and results of a script."""
    from tokenlens import Analysis, Intervention, Recording

    for value in values:
        if isinstance(value, list | tuple):
            yield from _subjects(value)
        elif isinstance(value, Recording):
            assert value.images is not None
            shown = f"recording of {len(value.names)} {_crops(value.images.shape[-2:])}"
            yield {"model": value.model, "weights": _weights(value.weights), "images": value.source, "shown": shown}
        elif isinstance(value, Analysis | Intervention):
            run = value.provenance
            shown = f"n = {run['images']['count']} {_crops(run['image_size'])}"
            yield {
                "model": run["model"],
                "weights": _weights(run["weights"]),
                "images": run["images"]["source"],
                "shown": shown,
            }


def _crops(size: Iterable[int]) -> str:
    return f"crops of the `sample` photographs, {' × '.join(map(str, size))} pixels"


def _weights(found: dict[str, Any]) -> str:
    return str(found["source"]).partition(",")[0] if found["pretrained"] else "random weights"


def _caption(values: Iterable[Any]) -> str:
    """Say which models saw how many images of which size."""
    from importlib.metadata import version

    models: dict[str, list[str]] = {}
    shown = []
    for each in _subjects(values):
        models.setdefault(f"`{each['model']}`", []).append(each["weights"])
        shown.append(each["shown"])
    parts = [f"{model} ({', '.join(dict.fromkeys(weights))})" for model, weights in models.items()]
    return "; ".join([*parts, *dict.fromkeys(shown), f"torch {version('torch')}", f"timm {version('timm')}"])


def _sources(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(each["images"] for each in _subjects(values)))


if __name__ == "__main__":
    sys.exit(main())
