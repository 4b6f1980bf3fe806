"""Measure the speed of `tokenlens train` against a bare PyTorch loop with the same model, loss, optimizer and data.

    python benchmarks/train.py time    # images per second of each objective, interleaved in one process
    python benchmarks/train.py costs   # time spent waiting for images, and on logging, diagnostics and checkpoints
    python benchmarks/train.py all

The recipes are tiny_supervised, tiny_dino, tiny_dinov2 and tiny_distill at 64 pixels; the images are synthetic JPEGs in
a tar file, or those of --data. Tables go to benchmarks/results/.

On a GPU: `python benchmarks/train.py all --device cuda --precision bf16-mixed --workers 8 --batch 256`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tokenlens.images.labelled.classes import LabelledImages, open_labelled
from tokenlens.models.loading import load_model
from tokenlens.training.backbone import make_backbone
from tokenlens.training.batches import training_batches
from tokenlens.training.loop import Tally, TrainingLoop
from tokenlens.training.objectives.base import Progress, Setting, TrainingBatch, make_options, objectives
from tokenlens.training.optimizer import make_optimizer, set_schedule
from tokenlens.training.recipe import Recipe, get_recipe
from tokenlens.training.train import train

sys.path.insert(0, str(Path(__file__).parent))
from analyze import RESULTS, hardware, markdown, ratio_and_interval

OBJECTIVES = ("supervised", "dino", "dinov2", "distill")
WAYS = ("bare loop", "tokenlens train", "bare loop, images in memory")
FOREVER = 10**7
"""Number of steps; trainings end by time."""

WARM = 2
"""Rounds, and steps, that are not counted, at the start."""


# -- data and recipes


def synthetic_images(file: Path, count: int, size: int) -> Path:
    """Write a tar file of JPEGs in ten classes: clouds of colour with some noise, 2 to 4 kB each at 64 pixels."""
    draw = np.random.default_rng(0)
    with tarfile.open(file, "w") as tar:
        for number in range(count):
            clouds = Image.fromarray(draw.integers(0, 255, (5, 5, 3), dtype=np.uint8))
            pixels = np.asarray(clouds.resize((size, size), Image.Resampling.BICUBIC), np.float32)
            noisy = (pixels + draw.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8)
            content = io.BytesIO()
            Image.fromarray(noisy).save(content, "JPEG", quality=90)
            member = tarfile.TarInfo(f"train/class{number % 10}/{number}.jpg")
            member.size = content.tell()
            content.seek(0)
            tar.addfile(member, content)
    return file


def teacher_file(folder: Path) -> Path:
    """Write random weights of a small teacher; they do not matter for the time of a step."""
    torch.manual_seed(0)
    file = folder / "teacher.safetensors"
    save_file(timm.create_model("test_vit", img_size=64, num_classes=0).state_dict(), file)
    return file


def recipe_for(objective: str, options: argparse.Namespace, folder: Path) -> Recipe:
    """Return the tiny recipe of an objective with no last step, diagnostics or checkpoints."""
    recipe = replace(
        get_recipe(f"tiny_{objective}"),
        batch_size=options.batch,
        epochs=None,
        steps=FOREVER,
        workers=options.workers,
        precision=options.precision,
        diagnose_every=0,
        checkpoint_minutes=1e6,
    )
    if objective != "distill":
        return recipe
    return replace(
        recipe,
        objective_options={
            "teacher": "test_vit",
            "teacher_checkpoint": str(teacher_file(folder)),
            "teacher_image_size": 64,
            "views": "flip",
        },
    )


# -- the bare loop


class BareLoop:
    """A hand-written loop: the same objective, optimizer and batches, without engine, run folder and checks."""

    def __init__(self, recipe: Recipe, images: LabelledImages, device: str) -> None:
        kind = objectives.get(recipe.objective)
        options, classes = make_options(recipe.objective, recipe.objective_options), tuple(images.classes)

        def backbone(outputs: int) -> torch.nn.Module:
            return make_backbone(recipe, outputs, None)

        model = backbone(kind.classes(options, classes))
        config = load_model(model, img_size=recipe.image_size).data_config
        setting = Setting(recipe.image_size, classes, recipe.batch_size, FOREVER, recipe.seed, backbone)
        self.recipe, self.device = recipe, device
        self.objective = kind(model, options, setting).train().to(device)
        self.optimizer = make_optimizer(self.objective, recipe)
        set_schedule(self.optimizer, recipe, 0, FOREVER)  # the first step's numbers, for all
        self.trained = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
        self.progress = Progress(0, FOREVER, len(images) / recipe.batch_size, recipe.seed)
        self.batches: Iterator[tuple[TrainingBatch, Any]] = training_batches(
            images,
            kind.views(options, recipe.image_size, config["mean"], config["std"]),
            batch_size=recipe.batch_size,
            steps=FOREVER,
            seed=recipe.seed,
            workers=recipe.workers,
        )

    def step(self, batches: Iterator[tuple[TrainingBatch, Any]]) -> None:
        """Do one step of the optimizer."""
        batch, _ = next(batches)
        batch = batch.to(self.device)
        autocast = torch.autocast(torch.device(self.device).type, torch.bfloat16, self.recipe.precision != "32-true")
        with autocast:
            loss = self.objective(batch, self.progress)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        self.objective.after_backward(self.progress)
        if self.recipe.clip_grad is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.recipe.clip_grad)
        self.optimizer.step()
        self.objective.after_step(self.progress)


# -- time


def measure_time(
    objective: str, options: argparse.Namespace, images: LabelledImages, folder: Path
) -> tuple[pd.DataFrame, int]:
    """Return the seconds of some steps of each way, by round, and the number of steps in a round.

    `train` runs once, the other ways in its progress callback.
    """
    recipe, steps = recipe_for(objective, options, folder), options.steps
    bare = BareLoop(recipe, images, options.device)
    kept = itertools.cycle([next(bare.batches) for _ in range(2)])
    ways: dict[str, Callable[[], None]] = {
        "bare loop": lambda: bare.step(bare.batches),
        "bare loop, images in memory": lambda: bare.step(kept),
    }
    order, rows = random.Random(0), []
    number, begun = 0, 0.0

    def wait() -> None:
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()

    def others(done: int, _steps: int, _numbers: object) -> None:
        nonlocal number, begun
        if done % steps:
            return
        wait()
        rows.append({"way": "tokenlens train", "round": number, "s": time.perf_counter() - begun})
        for way in order.sample(list(ways), len(ways)):
            begun = time.perf_counter()
            for _ in range(steps):
                ways[way]()
            wait()
            rows.append({"way": way, "round": number, "s": time.perf_counter() - begun})
        number += 1
        begun = time.perf_counter()

    train(
        recipe,
        images,
        folder / f"time_{objective}",
        device=options.device,
        progress=others,
        max_minutes=options.seconds / 60,
    )
    if number <= WARM:
        short = f"{objective}: {number} rounds in {options.seconds} s"
        raise SystemExit(f"{short}, {WARM + 1} at least; give more --seconds")
    frame = pd.DataFrame(rows).assign(objective=objective)
    return frame[frame["round"] >= WARM], steps


def time_table(frames: Iterable[tuple[pd.DataFrame, int]], batch: int) -> pd.DataFrame:
    """Return images per second (median), and speed relative to the bare loop in the same round (median, interval)."""
    rows = []
    for frame, steps in frames:
        seconds = frame.pivot(index="round", columns="way", values="s").dropna()
        for way in WAYS:
            rows.append(
                {
                    "objective": frame["objective"].iloc[0],
                    "way": way,
                    "rounds": len(seconds),
                    "steps a round": steps,
                    "images/s": steps * batch / seconds[way].median(),
                    **ratio_and_interval("speed ", seconds["bare loop"] / seconds[way]),
                    "total over total": seconds["bare loop"].sum() / seconds[way].sum(),
                }
            )
    return pd.DataFrame(rows)


# -- waiting for images, and work besides the steps


@contextmanager
def timed_steps(found: list[tuple[float, float]]) -> Iterator[None]:
    """Collect the seconds of each step of a training, and those spent waiting for images."""
    plain = Tally.add

    def add(self: Tally, seconds: float, waiting: float, values: Any) -> None:
        plain(self, seconds, waiting, values)
        if not values:  # the tally of the whole run; the one for the next row of metrics.csv also has losses
            found.append((seconds, waiting))

    Tally.add = add  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tally.add = plain  # type: ignore[method-assign]


def waiting_table(options: argparse.Namespace, images: LabelledImages, folder: Path) -> pd.DataFrame:
    """Return the share of time spent waiting for images, with and without processes that read them."""
    rows = []
    for objective in options.objectives.split(","):
        for workers in sorted({0, 1, options.workers}):
            found: list[tuple[float, float]] = []
            with timed_steps(found):
                run = train(
                    recipe_for(objective, options, folder),
                    images,
                    folder / f"waiting_{objective}_{workers}",
                    device=options.device,
                    settings=[f"workers={workers}"],
                    max_minutes=options.short / 60,
                )
            seconds, waiting = np.array(found[WARM:]).sum(0)
            rows.append(
                {
                    "objective": objective,
                    "workers": workers,
                    "steps": len(found) - WARM,
                    "images/s": (len(found) - WARM) * options.batch / seconds,
                    "share of time waiting": waiting / seconds,
                    "data_wait_share in run.json": run.settings["data_wait_share"],
                }
            )
    return pd.DataFrame(rows)


@contextmanager
def timed_methods(found: dict[str, list[float]]) -> Iterator[None]:
    """Collect the seconds of each call of the parts of a training."""
    plain = {name: getattr(TrainingLoop, name) for name in PARTS}

    def watched(name: str) -> Callable[..., Any]:
        def call(self: TrainingLoop, *arguments: Any) -> Any:
            begun = time.perf_counter()
            result = plain[name](self, *arguments)
            found.setdefault(name, []).append(time.perf_counter() - begun)
            return result

        return call

    for name in PARTS:
        setattr(TrainingLoop, name, watched(name))
    try:
        yield
    finally:
        for name, method in plain.items():
            setattr(TrainingLoop, name, method)


PARTS = {
    "_one_step": "step",
    "_write_row": "row of metrics.csv and TensorBoard",
    "_diagnose": "diagnostics",
    "save_checkpoint": "checkpoint",
}


def costs_table(options: argparse.Namespace, images: LabelledImages, folder: Path) -> pd.DataFrame:
    """Return the seconds of each part, done after every step, and their share at the intervals of the recipe."""
    rows = []
    for objective in options.objectives.split(","):
        unchanged = get_recipe(f"tiny_{objective}")
        recipe = replace(
            recipe_for(objective, options, folder), steps=8, log_every=1, diagnose_every=1, checkpoint_minutes=1e-9
        )
        found: dict[str, list[float]] = {}
        with timed_methods(found):
            train(recipe, images, folder / f"costs_{objective}", device=options.device)
        median = {name: float(np.median(found[name][WARM:])) for name in PARTS}
        steps = {
            "_write_row": unchanged.log_every,
            "_diagnose": unchanged.diagnose_every,
            "save_checkpoint": 60 * unchanged.checkpoint_minutes / median["_one_step"],
        }
        for name, part in PARTS.items():
            often = steps.get(name)
            share = 100 * median[name] / (median["_one_step"] * often) if often else float("nan")
            rows.append(
                {
                    "objective": objective,
                    "part": part,
                    "calls": len(found[name]) - WARM,
                    "median ms": 1e3 * median[name],
                    "min": 1e3 * min(found[name][WARM:]),
                    "max": 1e3 * max(found[name][WARM:]),
                    "every … steps": str(round(often)) if often else "1",
                    "% of the steps' time": share,
                }
            )
    return pd.DataFrame(rows)


# -- results


def write(name: str, title: str, note: str, device: str, *tables: pd.DataFrame) -> None:
    """Write a results page and print it."""
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python", "benchmarks/train.py", *sys.argv[1:]])
    text = "\n\n".join([f"# {title}", f"{hardware(device)}\n\n`{command}`", note, *map(markdown, tables)]) + "\n"
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "costs", "all"])
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--data", help="images to use instead of synthetic ones")
    parser.add_argument("--images", type=int, default=1024, help="number of synthetic images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="steps of a round")
    parser.add_argument("--seconds", type=float, default=40, help="time: seconds for each objective")
    parser.add_argument("--short", type=float, default=8, help="costs: seconds for each measurement of waiting")
    parser.add_argument("--workers", type=int, default=0, help="time: processes that read images, for each way")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--suffix", default="", help="suffix of the name of the results page")
    options = parser.parse_args()
    suffix = ("" if options.device == "cpu" else f"_{options.device.split(':')[0]}") + options.suffix
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["TOKENLENS_CACHE"] = str(folder / "cache")
        data = options.data or synthetic_images(folder / "images.tar", options.images, 64)
        images = open_labelled(data, "train")
        kind = f"images of {options.data}" if options.data else "synthetic JPEGs of 64 pixels"
        what = (
            f"{len(images)} {kind}, batch {options.batch}, {options.precision}; the tiny recipes, each with its own "
            "model, views and clipping (`distill` with a small teacher of 64 pixels and no cache)."
        )
        if options.what in ("time", "all"):
            frames = [measure_time(one, options, images, folder) for one in options.objectives.split(",")]
            write(
                f"train_time{suffix}",
                "Speed of a training over a bare PyTorch loop",
                f"{what} Additional processes that read images: {options.workers}. The bare loop has the same "
                "objective module (with teacher and heads), optimizer and batches (`training_batches`), so the ratio "
                "shows the cost of the engine: Fabric, seeds, schedules, exchange of losses, check for NaN, rows of "
                "metrics.csv. Each round does some steps of every way, in one process: `train` runs once, the bare "
                "loop in its progress callback, in random order. Speed relative to the bare loop in the same round "
                "(above 1 is faster): median and bootstrap 95 % interval of the median, and the ratio of totals over "
                "all rounds. With images in memory the bare loop reads and augments nothing, which shows the cost of "
                "the data.",
                options.device,
                time_table(frames, options.batch),
            )
        if options.what in ("costs", "all"):
            write(
                f"train_costs{suffix}",
                "Costs of a training besides its steps",
                f"{what} First table: share of the steps' time spent waiting for images, without the first {WARM} "
                "steps, and with them as in run.json. Second table: a training that writes a row, diagnoses its fixed"
                " batch (32 images) and writes a checkpoint after every step; median, minimum and maximum of a call "
                "in ms, and what it adds to the time of the steps at the intervals of the recipe (rows and "
                "diagnostics every few steps, a checkpoint every ten minutes).",
                options.device,
                waiting_table(options, images, folder),
                costs_table(options, images, folder),
            )


if __name__ == "__main__":
    main()
