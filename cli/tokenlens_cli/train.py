"""``tokenlens train``: train a model by a recipe."""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._errors import INTERRUPTED
from tokenlens_cli._output import SECONDS_BETWEEN_LINES, format_duration, make_bar, print_json, say, say_weights
from tokenlens_cli._processes import is_first_process, join_error_store

if TYPE_CHECKING:
    from tokenlens.training.trained_run import TrainedRun

ProgressCallback = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with steps done, steps in total, and ``loss``, ``images_per_second`` and ``eta_seconds``."""


def command(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="Name of a recipe (`tokenlens list recipes`).",
            autocompletion=options.complete_entries("tokenlens.training.recipes"),
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE|hfds/…|wds/…",
            help="Training images: a folder with train/ and val/, of classes, or of images; a tar file of one; "
            "webdataset shards; a Hugging Face data set.",
        ),
    ],
    specialize: Annotated[
        str | None,
        typer.Option(
            metavar="norms|paper|qkv_all|everything",
            help="Train the specialized model: the same, with separate weights for prefix tokens and patches.",
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change one value of the recipe, e.g. epochs=3, model_options.depth=4 or objective_options.mixup=0. "
            "Can be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder; by default runs/<recipe>[_<preset>]_seed<seed>."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=options.LARGEST_SEED,
            help="Seed for weights, image order and all random draws; by default the recipe's.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Resume an unfinished run in the folder, or refuse to.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove a run in the folder and start over.")] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Stop at a checkpoint after this time, with exit code 0. Run the same command again to resume.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|RUN|MODEL",
            help="Weights to start from: a file or folder of weights, a run folder of `tokenlens train`, or a model "
            "that ships with tokenlens (tokenlens_tiny).",
        ),
    ] = None,
    device: options.Device[str] = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on each machine, one device each; ignored under torchrun.")
    ] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines; ignored under torchrun.")] = 1,
    no_report: options.NoReport = False,
    json: options.Json = False,
) -> None:
    """Train a model by a recipe, standard or specialized.

    Writes a run folder with settings, metrics over the steps, checkpoints, a report, and the model. Every other command
    accepts the folder as a model. Run the same command again to resume an interrupted training; it reaches the same
    weights.
    """
    join_error_store()
    if devices > 1:
        # For the processes that will be started: when one fails, the others would log at length that it is gone.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from tokenlens.training.train import train

    with show_progress(recipe) as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the report could not be drawn")  # printed with the result
        try:
            run = train(
                recipe,
                data,
                out,
                specialize=specialize,
                seed=seed,
                settings=tuple(set or ()),
                device=device,
                devices=devices,
                nodes=nodes,
                resume=resume,
                overwrite=overwrite,
                max_minutes=max_minutes,
                progress=progress,
                checkpoint=checkpoint,
                report=not no_report,
            )
        except KeyboardInterrupt as interrupt:
            if is_first_process():
                say(str(interrupt) or "interrupted. Run the same command again to resume from the last checkpoint")
            raise typer.Exit(INTERRUPTED) from None
    if is_first_process():
        print_result(run, json=json)


@contextmanager
def show_progress(title: str) -> Iterator[ProgressCallback]:
    """Yield a function to call after each step: it draws a bar on a terminal, and prints occasional lines elsewhere."""
    if not sys.stderr.isatty() or not is_first_process():
        yield _print_lines(title)
        return
    from rich.progress import TimeElapsedColumn

    speed = "loss {task.fields[loss]:.4g}, {task.fields[speed]:.3g} images/s,"
    with make_bar(title, "steps", speed, TimeElapsedColumn(), "elapsed, about {task.fields[left]} left") as bar:
        task: Any = None

        def update(done: int, steps: int, numbers: Mapping[str, float]) -> None:
            nonlocal task
            fields = {"loss": numbers["loss"], "speed": numbers["images_per_second"], "left": _time_left(numbers)}
            if task is None:
                task = bar.add_task("", total=steps, completed=done, **fields)
            bar.update(task, completed=done, **fields)

        yield update


def _print_lines(title: str) -> ProgressCallback:
    last_line = 0.0

    def update(done: int, steps: int, numbers: Mapping[str, float]) -> None:
        nonlocal last_line
        now = time.monotonic()
        if not last_line:
            say(
                f"training {title}: {steps} step{'s' if steps != 1 else ''}"
                + (f", {done - 1} of them done already" if done > 1 else "")
            )
        elif now - last_line < SECONDS_BETWEEN_LINES:
            return
        last_line = now
        say(
            f"step {done} of {steps}, loss {numbers['loss']:.4g}, {numbers['images_per_second']:.3g} images/s, about "
            f"{_time_left(numbers)} left"
        )

    return update


def _time_left(numbers: Mapping[str, float]) -> str:
    seconds = numbers["eta_seconds"]
    return format_duration(seconds) if math.isfinite(seconds) else "?"


def print_result(run: TrainedRun, *, json: bool) -> None:
    """Print the result and the run folder."""
    settings, metrics = run.settings, run.metrics
    loss = float(metrics["loss"].iloc[-1]) if len(metrics) else None
    if start := settings["start"]:
        say_weights(start["given"], start)
    if differences := settings["sessions"][-1].get("rounds_differently"):
        say(f"this session rounds differently ({'; '.join(differences)}): weights differ from those of one session")
    for note in settings["data"].get("notes", []):
        say(note)
    if settings["skipped"]:
        many = settings["skipped"] != 1
        say(f"{settings['skipped']} unreadable image{'s were' if many else ' was'} skipped, see {run.path}/skipped.csv")
    if error := settings.get("report_error"):
        say(error)
    if not run.finished:
        say(f"{run.state} at step {run.step} of {settings['steps']}. Run the same command again to resume")
    if json:
        figure = run.path / "figures" / "emergence.svg"
        print_json(
            {
                "recipe": settings["name"],
                "model": run.recipe.model,
                "specialization": run.recipe.specialization,
                "seed": run.recipe.seed,
                "state": run.state,
                "step": run.step,
                "loss": loss,
                **{
                    name: settings[name]
                    for name in ("steps", "seconds", "images_per_second", "data_wait_share", "skipped")
                },
                "run": str(run.path),
                "figure": str(figure) if figure.exists() else None,
            }
        )
        return
    preset = run.recipe.specialization
    specialized = "" if preset is None else f", specialized ({preset if isinstance(preset, str) else 'custom'})"
    last = "" if loss is None else f"; loss {loss:.4g}"
    typer.echo(
        f"{settings['name']}{specialized}, seed {run.recipe.seed}: {run.step} of {settings['steps']} steps in "
        f"{format_duration(settings['seconds'])}, {settings['images_per_second']:.3g} images/s{last}"
    )
    typer.echo(f"run: {run.path}")
