"""Measure the time of `intervene` relative to plain forward passes; k conditions should cost at most 1.1 × (k + 2).

    python benchmarks/intervene.py               # ViT-S/16 with 4, 16 and 48 conditions, on 32 images
    python benchmarks/intervene.py --rounds 3 --images 16

The table goes to benchmarks/results/intervene_time.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import timm
import torch

import tokenlens

# ruff: isort: split
from analyze import MODELS, RESULTS, hardware, markdown, ratio_and_interval

BY = ("zero", "mean", "noise", "shuffle")
BLOCKS = ([5], [2, 5, 8, 11], list(range(12)))
"""Blocks of each case; with the replacements of ``BY`` they are 4, 16 and 48 conditions."""


def seconds(step: Callable[[], object]) -> tuple[float, float]:
    """Return elapsed time and processor time of a call."""
    begun, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - begun, time.process_time() - cpu


def measure(images: int, batch: int, rounds: int) -> pd.DataFrame:
    """Return times of whole calls and of plain passes over the same images, a row per round and case."""
    torch.manual_seed(0)
    model = timm.create_model(MODELS[0]).eval()
    pixels = torch.randn(images, 3, 224, 224)

    def plain() -> None:
        with torch.no_grad():
            for part in pixels.split(batch):
                model(part)

    rows = []
    for number in range(rounds + 1):
        for blocks in BLOCKS:
            of_plain = np.array([seconds(plain) for _ in range(2)]).mean(0)
            of_call = seconds(
                lambda blocks=blocks: tokenlens.intervene(
                    model, pixels, by=BY, blocks=blocks, batch_size=batch, device="cpu"
                )
            )
            row = {"round": number, "conditions": len(BY) * len(blocks)}
            row |= dict(zip(("plain s", "plain cpu s", "s", "cpu s"), (*of_plain, *of_call), strict=True))
            rows.append(row)
            print(row, file=sys.stderr)
    return pd.DataFrame(rows)[lambda frame: frame["round"] > 0]  # a round to warm up


def table_of(measured: pd.DataFrame) -> pd.DataFrame:
    """Return medians, and ratios to k + 2 plain passes with their bootstrap intervals."""
    rows = []
    for conditions, part in measured.groupby("conditions"):
        passes = conditions + 2
        rows.append(
            {"conditions": conditions, "rounds": len(part), "plain s": part["plain s"].median()}
            | {"median s": part["s"].median()}
            | ratio_and_interval("", part["s"] / (passes * part["plain s"]))
            | ratio_and_interval("processor ", part["cpu s"] / (passes * part["plain cpu s"]))
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Parse the command line, measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    table = table_of(measure(options.images, options.batch, options.rounds))
    note = (
        f"{MODELS[0]}, {options.images} images of 224 × 224 pixels in a tensor, batch {options.batch}. A call of "
        f"`intervene` replaces CLS by {', '.join(BY)} in 1, 4 or 12 blocks: k conditions, one untouched pass and one "
        "for means and donors. Each call beside two plain passes over the same images, in one process; ratios are to "
        "k + 2 plain passes, for elapsed and processor time: median over rounds and bootstrap 95 % interval. What a "
        "call costs once (hashes of weights and images, the table) is included."
    )
    command = " ".join(["python", "benchmarks/intervene.py", *sys.argv[1:]])
    title = "# Time of intervene over plain forward passes"
    text = "\n\n".join([title, f"{hardware('cpu')}\n\n`{command}`", note, markdown(table)]) + "\n"
    (RESULTS / "intervene_time.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
