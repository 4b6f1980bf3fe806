"""Measure the time that `explore` takes to respond to a change of block, token and image.

    python benchmarks/explore.py            # kernel: from the selection to the bytes sent to the browser
    python benchmarks/explore.py --browser  # including drawing in headless Chromium (requires playwright)

The table is written to benchmarks/results/explore.md. It does not include Jupyter's server and sockets.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch

import tokenlens

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

RESULTS = Path(__file__).parent / "results"
MODELS = (("vit_small_patch16_224", {}), ("vit_base_patch16_224", {}), ("vit_small_patch14_dinov2", {"img_size": 518}))
SITES = ["resid_pre", "norm1", "q", "k", "resid_post"]


def measure(name: str, options: dict[str, Any], rounds: int, browser: Any) -> list[dict[str, Any]]:
    """Return the milliseconds for each kind of change, with two images."""
    started = time.perf_counter()
    widget = tokenlens.explore(name, "sample", limit=2, pretrained=False, sites=SITES, **options)
    first = time.perf_counter() - started
    exploration, random = widget.exploration, np.random.RandomState(0)
    rows, columns = exploration.recordings[0].layout.grid
    choices = {
        "block": lambda: int(random.choice([b for b in exploration.blocks if b != widget.selection["block"]])),
        "token": lambda: [int(random.randint(rows)), int(random.randint(columns))],
        "image": lambda: 1 - widget.selection["image"],
    }
    show = None if browser is None else in_browser(widget, browser)
    if show is not None:
        del choices["image"]  # the browser decodes photographs asynchronously
    recording = exploration.recordings[0]
    about = {
        "model": name,
        "tokens": recording.layout.tokens,
        "recording [MiB]": recording.nbytes / 2**20,
        "load, forward, first view [s]": first,
    }
    found = []
    for change, choose in choices.items():
        taken = []
        for _ in range(rounds):
            value = choose()
            started = time.perf_counter()
            widget.select(**{change: value})
            if show is not None:
                show()
            taken.append(1000 * (time.perf_counter() - started))
        quantiles = dict(zip(("median", "95 %", "largest"), np.quantile(taken, (0.5, 0.95, 1)), strict=True))
        found.append(about | {"change of": change, "n": rounds} | {f"{key} [ms]": x for key, x in quantiles.items()})
    return found


def in_browser(widget: Any, browser: Any) -> Any:
    """Return a function that makes a page with the widget fetch the current state and draw it."""
    from tests.support.browser_widget import open_widget

    page = browser.new_page(viewport={"width": 1100, "height": 600})
    open_widget(page, widget)
    page.wait_for_function("document.querySelector('h4').textContent")
    return lambda: page.evaluate("refresh()")


@contextmanager
def chromium(wanted: bool) -> Iterator[Any]:
    """Yield a browser if it is wanted, otherwise None."""
    if not wanted:
        yield None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--browser", action="store_true")
    arguments = parser.parse_args()
    with chromium(arguments.browser) as browser:
        rows = [row for name, options in MODELS for row in measure(name, options, arguments.rounds, browser)]
    table = pd.DataFrame(rows)
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for row in rows:
        cells = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    part = "Kernel and headless Chromium" if arguments.browser else "Kernel only"
    about = (
        f"{part}, {torch.get_num_threads()} thread(s), {platform.machine()}; torch {torch.__version__}, timm "
        f"{timm.__version__}, two images, sites {', '.join(SITES)}."
    )
    text = f"# Response time of `explore`\n\n{about}\n\n" + "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    name = "explore_browser.md" if arguments.browser else "explore.md"
    (RESULTS / name).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
