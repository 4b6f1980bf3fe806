"""``tokenlens train``: a recipe and images, a run folder with the trained model in it."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli._errors import INTERRUPTED
from tokenlens_cli._output import SECONDS_BETWEEN_LINES, print_json, say
from tokenlens_cli._processes import leads, meet

if TYPE_CHECKING:
    from tokenlens.training.run import TrainedRun

Report = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with steps done, steps in all, and ``loss``, ``images_per_second`` and ``eta_seconds``."""


def _complete_recipes(incomplete: str) -> list[str]:
    from tokenlens.catalog import Catalog

    return [name for name in Catalog("tokenlens.training.recipes", "recipe").names() if name.startswith(incomplete)]


def command(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe (`tokenlens list recipes`).", autocompletion=_complete_recipes),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|FILE|hfds/…|wds/…",
            help="Images to train on: a folder with train/ and val/, or of classes, or of images alone; a tar file of "
            "one; webdataset shards; a Hugging Face data set.",
        ),
    ],
    specialize: Annotated[
        str | None,
        typer.Option(
            metavar="norms|paper|qkv_all|everything",
            help="Train the specialized model: the same but for separate weights of prefix tokens and patches.",
        ),
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A value of the recipe, e.g. epochs=3, model_options.depth=4 or objective_options.mixup=0; may be "
            "given again.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The run folder; by default runs/<recipe>[_<preset>]_seed<seed>."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of weights, order and every draw; by default the recipe's.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--no-resume", help="Go on with a run that is there and not finished, or refuse to."),
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again where there is a run already.")] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            min=0, help="Stop at a checkpoint after so long, with exit code 0; the same command goes on from there."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|RUN|MODEL",
            help="Weights to start the model from: safetensors or plain tensors, a run folder of `tokenlens train`, or "
            "a model that comes with tokenlens (tokenlens_tiny).",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute; auto is cuda, then mps, then cpu.")
    ] = "auto",
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on each machine; under torchrun those that it has started.")
    ] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines; under torchrun those that it has started.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Train a model by a recipe, standard or specialized.

    Writes a run folder: settings, numbers over the steps, checkpoints, and the model, which every other command takes
    by the folder's name. An interrupted training goes on with the same command, to the same weights.
    """
    meet()
    if devices > 1:
        # For the processes that will be started: of one that has failed the others would log at length that it is gone.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from tokenlens.training.train import train

    with progress_of(recipe) as progress:
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
            )
        except KeyboardInterrupt as interrupt:
            if leads():
                say(str(interrupt) or "interrupted; the same command goes on from the last checkpoint, if there is one")
            raise typer.Exit(INTERRUPTED) from None
    if leads():
        print_result(run, json=json)


@contextmanager
def progress_of(what: str) -> Iterator[Report]:
    """A function to call after each step: a bar on a terminal, a line now and then elsewhere.

    The processes that are not called show nothing.
    """
    if not sys.stderr.isatty() or not leads():
        yield _lines(what)
        return
    from rich import progress as rich
    from rich.console import Console
    from rich.markup import escape

    columns = (
        rich.TextColumn(escape(what)),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("steps"),
        rich.TextColumn("loss {task.fields[loss]:.4g}, {task.fields[speed]:.3g} images/s,"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("and about {task.fields[left]} left"),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        task: Any = None

        def report(done: int, steps: int, numbers: Mapping[str, float]) -> None:
            nonlocal task
            fields: dict[str, Any] = {
                "loss": numbers["loss"],
                "speed": numbers["images_per_second"],
                "left": _left(numbers),
            }
            if task is None:
                task = bar.add_task("", total=steps, completed=done, **fields)
            bar.update(task, completed=done, **fields)

        yield report


def _lines(what: str) -> Report:
    told = 0.0

    def report(done: int, steps: int, numbers: Mapping[str, float]) -> None:
        nonlocal told
        now = time.monotonic()
        if not told:
            say(f"training {what}: {steps} steps" + (f", of which {done - 1} are done" if done > 1 else ""))
        elif now - told < SECONDS_BETWEEN_LINES:
            return
        told = now
        say(
            f"step {done} of {steps}, loss {numbers['loss']:.4g}, {numbers['images_per_second']:.3g} images/s, about "
            f"{_left(numbers)} left"
        )

    return report


def _left(numbers: Mapping[str, float]) -> str:
    seconds = numbers["eta_seconds"]
    return duration(seconds) if math.isfinite(seconds) else "?"


def duration(seconds: float) -> str:
    """A time in the two units that matter.

    >>> duration(7.4), duration(312), duration(4000), duration(300_000)
    ('7 s', '5 min 12 s', '1 h 6 min', '3 d 11 h')
    """
    whole = round(seconds)
    for large, small, size, part in (("d", "h", 86_400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"


def print_result(run: TrainedRun, *, json: bool) -> None:
    """What came out, and where it is."""
    told, metrics = run.settings, run.metrics
    loss = float(metrics["loss"].iloc[-1]) if len(metrics) else None
    if other := told["sessions"][-1].get("rounds_differently"):
        say(f"it went on where sums are rounded differently ({'; '.join(other)}): not bit by bit as in one session")
    if told["skipped"]:
        many = told["skipped"] != 1
        say(f"{told['skipped']} unreadable image{'s were' if many else ' was'} skipped, see {run.path / 'skipped.csv'}")
    if not run.finished:
        say(f"{run.state} at step {run.step} of {told['steps']}; the same command goes on from there")
    if json:
        figure = run.path / "figures" / "emergence.svg"
        print_json(
            {
                "recipe": told["name"],
                "model": run.recipe.model,
                "specialization": run.recipe.specialization,
                "seed": run.recipe.seed,
                "state": run.state,
                "step": run.step,
                "steps": told["steps"],
                "loss": loss,
                "seconds": told["seconds"],
                "images_per_second": told["images_per_second"],
                "data_wait_share": told["data_wait_share"],
                "skipped": told["skipped"],
                "run": str(run.path),
                "figure": str(figure) if figure.exists() else None,
            }
        )
        return
    preset = run.recipe.specialization
    specialized = "" if preset is None else f", specialized ({preset if isinstance(preset, str) else 'own'})"
    last = "" if loss is None else f"; loss {loss:.4g}"
    typer.echo(
        f"{told['name']}{specialized}, seed {run.recipe.seed}: {run.step} of {told['steps']} steps in "
        f"{duration(told['seconds'])}, {told['images_per_second']:.3g} images/s{last}"
    )
    typer.echo(f"run: {run.path}")
