"""Compare probes of a real model with baselines, and time the segmentation probe.

    tokenlens probe MODEL --task … --out RUN             # once per model, task and source
    python benchmarks/probes.py quality RUN RUN …        # a table of those runs, with their intervals
    python benchmarks/probes.py time --data MASKS        # the segmentation probe by grid
    python benchmarks/probes.py loss --data MASKS --checkpoint FILE   # sampled pixels against whole masks

Each command writes its own page in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from tokenlens.images.labelled.masks import open_masks
from tokenlens.models.loading import load_model
from tokenlens.probes import (
    FrozenModel,
    Heads,
    PatchFeatures,
    ProbeResult,
    extract_features,
    segmentation,
    train_heads,
)
from tokenlens.probes.segmentation import IGNORED, classify, patch_logits

sys.path.insert(0, str(Path(__file__).parent))
from analyze import RESULTS, hardware, markdown

CHANNELS = 384
NAME = "vit_small_patch14_dinov2"


def quality(runs: list[str]) -> pd.DataFrame:
    """Return a row per run folder: score and interval in per cent, protocol and time."""
    rows = []
    for run in runs:
        found = ProbeResult.load(run)
        rows.append(
            {
                "task": found.task,
                "model": found.model + (" (untrained)" if found.untrained else ""),
                "features": found.protocol.get("source", "patches"),
                "seed": str(found.protocol["seed"]),
                "%": f"{100 * found.value:.1f}",
                "95 %": f"{100 * found.ci_low:.1f}–{100 * found.ci_high:.1f}",
                "of": found.unit,
                "n": str(found.n),
                "images": found.protocol["images"],
                "chosen": found.protocol.get("k") or found.protocol["learning rate"],
                "probe s": f"{found.provenance['seconds']['probe']:.0f}",
            }
        )
    return pd.DataFrame(rows)


def splits(data: str, features: dict[str, np.ndarray], grid: tuple[int, int]) -> dict[str, PatchFeatures]:
    """Return real masks with the given features."""
    found = {}
    for split in ("train", "test"):
        images = open_masks(data, split)
        names = tuple(images.names)
        found[split] = PatchFeatures(
            features[split],
            grid,
            lambda i, images=images: images.read(i)[1],
            names,
            images.classes,
            torch.device("cpu"),
        )
    return found


def times(data: str, sizes: list[int]) -> pd.DataFrame:
    """Time the whole probe; features are random, because the time does not depend on their values."""
    counts = {split: len(open_masks(data, split)) for split in ("train", "test")}
    rows = []
    for size in sizes:
        side = size // 14
        random = np.random.default_rng(0)
        features = {
            split: random.standard_normal((count, side * side, CHANNELS), dtype=np.float32).astype(np.float16)
            for split, count in counts.items()
        }
        both = splits(data, features, (side, side))
        started = time.perf_counter()
        segmentation.Segmentation().evaluate(both["train"], both["test"], both["test"].names, seed=0)
        rows.append(
            {
                "image px": str(size),
                "grid": f"{side}×{side}",
                "channels": str(CHANNELS),
                "training images": str(counts["train"]),
                "test images": str(counts["test"]),
                "seconds": time.perf_counter() - started,
            }
        )
    return pd.DataFrame(rows)


def losses(data: str, checkpoint: str, size: int, epochs: int, seeds: int) -> pd.DataFrame:
    """Compare training with the loss at sampled pixels and at all pixels of each mask."""
    model = FrozenModel(load_model(NAME, checkpoint=checkpoint, img_size=size), "patches", None, amp=False)
    features = {}
    for split in ("train", "test"):
        images = open_masks(data, split)
        found = extract_features(
            model,
            "patches",
            images,
            lambda i, images=images: images.read(i)[0],
            np.arange(len(images)),
            batch_size=32,
            workers=0,
            cache=True,
            data_path=str(Path(data).resolve()),
        )
        features[split] = found.arrays["patches"]
    both = splits(data, features, model.grid)
    train, test = both["train"], both["test"]
    masks = [torch.from_numpy(train.mask_of(i).astype(np.int64)) for i in range(len(train))]
    schedule = dataclasses.replace(segmentation.SCHEDULE, epochs=epochs, learning_rates=(0.01,))
    rows = []
    for seed in range(seeds):
        pixels = segmentation.draw_pixels(train, seed)

        def sampled(
            heads: Heads, indices_B: np.ndarray, epoch: int, pixels: segmentation.SampledPixels = pixels
        ) -> Tensor:
            size, draws = segmentation.PIXELS, segmentation.PIXEL_DRAWS
            now = slice(epoch % draws * size, (epoch % draws + 1) * size)
            labels_BS = torch.from_numpy(pixels.labels_NS[indices_B, now].astype(np.int64))
            points_BS2 = torch.from_numpy(pixels.points_NS2[indices_B, now])
            return segmentation.head_losses(patch_logits(heads, train, indices_B), points_BS2, labels_BS, 1)

        def whole(heads: Heads, indices_B: np.ndarray, _epoch: int) -> Tensor:
            total, counted = torch.zeros(()), torch.zeros(())
            for logits_Chw, image in zip(patch_logits(heads, train, indices_B), indices_B, strict=True):
                mask_1HW = masks[image][None]
                large = functional.interpolate(
                    logits_Chw[None],
                    mask_1HW.shape[1:],
                    mode="bilinear",
                    align_corners=False,
                )
                total = total + functional.cross_entropy(large, mask_1HW, ignore_index=IGNORED, reduction="sum")
                counted = counted + (mask_1HW != IGNORED).sum()
            return (total / counted)[None]

        for name, loss_of in ((f"{segmentation.PIXELS} pixels of each mask", sampled), ("whole masks", whole)):
            started = time.perf_counter()
            head = train_heads(
                loss_of, np.arange(len(train)), CHANNELS, len(train.classes), schedule, seed, train.device
            )
            seconds = time.perf_counter() - started
            [share] = classify(head, test, np.arange(len(test))).mean_iou()
            rows.append({"loss at": name, "seed": str(seed), "mean IoU %": f"{100 * share:.2f}", "training s": seconds})
    return pd.DataFrame(rows)


def write(name: str, title: str, note: str, table: pd.DataFrame) -> None:
    """Write a results page and print it."""
    RESULTS.mkdir(exist_ok=True)
    # Paths of run folders mean nothing to a reader.
    given = [Path(one).name if "/" in one else one for one in sys.argv[1:]]
    command = " ".join(["python", "benchmarks/probes.py", *given])
    text = "\n\n".join([f"# {title}", f"{hardware('cpu')}\n\n`{command}`", note, markdown(table)]) + "\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "time", "loss"])
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--data")
    parser.add_argument("--checkpoint")
    parser.add_argument("--sizes", default="224,448")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    if options.what == "quality":
        write(
            "probes",
            "A real model, the same untrained, and pixels",
            "Each row is a run of `tokenlens probe`; the interval is over test images. Tiny ImageNet: 100 classes, "
            "2000 random images of each split (chance is 1 %). MSRC v2: 21 classes, all images, mean IoU at each "
            "mask's size. An untrained DINOv2 has LayerScale at 1e-5, so its CLS token hardly depends on the image; "
            "the mean patch is the fairer baseline. The learning rates were extended upwards once, because the "
            "baselines had chosen the largest one on the held-out images; the segmentation baselines still do.",
            quality(options.runs),
        )
    elif options.what == "time":
        write(
            "probes_time",
            "Time of the segmentation probe with cached features",
            "Everything: drawing pixels, training with five learning rates at once and with the chosen one on all "
            "images, the test at full size, and the interval. Masks are real; the features are random numbers of the "
            "shape of ViT-S/14's, because the time does not depend on their values.",
            times(options.data, [int(size) for size in options.sizes.split(",")]),
        )
    else:
        write(
            "probes_loss",
            "The loss at sampled pixels and at all pixels",
            f"{NAME} at {options.size} px, {options.epochs} epochs (a probe has "
            f"{segmentation.SCHEDULE.epochs}), learning rate 0.01, mean IoU on the test images.",
            losses(options.data, options.checkpoint, options.size, options.epochs, options.seeds),
        )


if __name__ == "__main__":
    main()
