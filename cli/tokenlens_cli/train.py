"""``tokenlens train``: train a model by a recipe."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._errors import INTERRUPTED
from tokenlens_cli._output import format_duration, print_json, print_text, report_step, say, say_next, say_weights
from tokenlens_cli._processes import is_first_process, join_error_store
from tokenlens_cli._progress import show_progress

if TYPE_CHECKING:
    from tokenlens.training.trained_run import TrainedRun


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
    from tokenlens.training.overrides import override
    from tokenlens.training.recipe import get_recipe
    from tokenlens.training.train import train

    override(get_recipe(recipe), tuple(set or ()), specialize, seed)  # unknown names, before the heading
    title = f"training {recipe}"
    with show_progress() as progress, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the report could not be drawn")  # printed with the result

        def show(done: int, steps: int, numbers: Mapping[str, float]) -> None:
            note = f"loss {numbers['loss']:.4g}, {numbers['images_per_second']:.3g} images/s"
            progress(title, done, steps, "steps", note)

        if is_first_process():
            progress(title, 0, None, "steps")
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
                progress=show,
                checkpoint=checkpoint,
                report=not no_report,
            )
        except KeyboardInterrupt as interrupt:
            if is_first_process():
                say(str(interrupt) or "interrupted. Run the same command again to resume from the last checkpoint")
            raise typer.Exit(INTERRUPTED) from None
    if is_first_process():
        print_result(run, json=json)


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
    print_text(
        f"{settings['name']}{specialized}, seed {run.recipe.seed}: {run.step} of {settings['steps']} steps in "
        f"{format_duration(settings['seconds'])}, {settings['images_per_second']:.3g} images/s{last}",
        bold=f"loss {loss:.4g}" if loss is not None else "",
        indent=2,
    )
    print_text(f"run: {run.path}")
    page = run.path / "report.html"
    folder = quote(str(run.path))
    if run.finished:
        say_next(
            report_step(run.path, page if page.exists() else None),
            f"tokenlens analyze {folder}",
            f"tokenlens probe {folder} --task knn --data DATA",
        )
