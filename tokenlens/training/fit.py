"""Set up and run a training on Lightning Fabric, by the same rules for every objective and specialization.

Nothing is drawn from a random state that earlier steps left behind: an image's augmentation depends on (seed, epoch,
image), the draws of a step (mixing, masks, stochastic depth) on (seed, step). So a standard and a specialized run share
every draw, a resumed training reaches the very same weights, and several processes train as one does, up to rounding.
One exception: stochastic depth draws for each image of a process's part of a batch, so with another number of processes
other images skip other blocks.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tokenlens.images.labelled.classes import LabelledImages, open_labelled
from tokenlens.models.checkpoints import Checkpoint, read_checkpoint
from tokenlens.models.loading import load_model
from tokenlens.models.names import find_weights_file
from tokenlens.reduction.memory import keep_freed_memory
from tokenlens.specialization import save_timm_folder
from tokenlens.storage.files import write_text
from tokenlens.storage.run_folder import SCHEMA_VERSION, slug
from tokenlens.training.backbone import describe_start, make_backbone
from tokenlens.training.batches import BatchOrder, sample_batches, training_batches
from tokenlens.training.checkpoints import describe_last_checkpoint
from tokenlens.training.descriptions import describe_run, describe_session, rounding_differences
from tokenlens.training.diagnostics import choose_fixed_batch
from tokenlens.training.loop import NonFiniteLossError, ProgressCallback, TrainingLoop
from tokenlens.training.objectives.base import Objective, Setting, Views, make_options, objectives
from tokenlens.training.parallel import launch, make_fabric
from tokenlens.training.preload import PreloadedImages, preload
from tokenlens.training.recipe import Recipe
from tokenlens.training.run_writer import RunWriter, open_run_writer
from tokenlens.training.seeds import preserve_random_state, seed_all
from tokenlens.training.stopping import StopRequest, TrainingInterrupted
from tokenlens.training.trained_run import CHECKPOINTS, TrainedRun

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def fit(
    recipe: Recipe,
    data: str | os.PathLike[str] | LabelledImages,
    out: str | os.PathLike[str],
    *,
    name: str,
    device: str,
    devices: int,
    nodes: int,
    resume: bool,
    overwrite: bool,
    max_minutes: float | None,
    progress: ProgressCallback | None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None,
    report: bool,
) -> TrainedRun:
    """Train by a complete recipe; ``tokenlens.train`` documents the arguments, the result and the errors."""
    path = Path(out)
    start = checkpoint if isinstance(checkpoint, Checkpoint | None) else read_checkpoint(find_weights_file(checkpoint))
    images = data if isinstance(data, LabelledImages) else open_labelled(data, "train")
    if objectives.get(recipe.objective).labelled and images.labels is None:
        raise ValueError(f"the objective {recipe.objective} needs labels, and {images.description['source']} has none")
    objective: type[Objective] = objectives.get(recipe.objective)
    classes = objective.classes(make_options(recipe.objective, recipe.objective_options), tuple(images.classes))
    given_data = None if isinstance(data, LabelledImages) else os.fspath(data)
    given_start = checkpoint.source if isinstance(checkpoint, Checkpoint) else os.fspath(checkpoint or "")
    described = {"given": given_data, **images.description}
    wanted = {
        "name": name,
        "recipe": recipe.to_dict(),
        "seed": recipe.seed,
        "data": described,
        "start": start and {"given": given_start, **describe_start(recipe, classes, start)},
    }
    fabric = make_fabric(recipe, device, devices, nodes)
    with ExitStack() as stack:
        stack.enter_context(launch(fabric))
        stop = StopRequest(max_minutes)
        writer: RunWriter | None = None
        refusal: Exception | None = None
        if fabric.is_global_zero:
            try:
                writer = open_run_writer(path, wanted, resume=resume, overwrite=overwrite)
            except (ValueError, OSError) as error:
                refusal = error
            else:
                stack.callback(writer.close)
        finished, refusal = fabric.broadcast((writer is not None and writer.finished, refusal))
        if refusal is not None:
            raise refusal  # in all processes: the others would wait for the first one
        if finished:
            return TrainedRun.load(path)
        stack.enter_context(preserve_random_state())
        stack.enter_context(stop.listening())
        loop, views, ready, border = _make_loop(fabric, recipe, images, start, writer, stop, progress)
        damaged = loop.resume(path / CHECKPOINTS)
        order = {
            "batch_size": recipe.batch_size,
            "steps": loop.steps,
            "seed": recipe.seed,
            "accumulate": recipe.accumulate,
            "rank": fabric.global_rank,
            "world_size": fabric.world_size,
            "start_step": loop.step,
        }
        if ready is None:
            batches = training_batches(images, views, **order, workers=recipe.workers)
        else:
            batches = ready.batches(BatchOrder(len(images), **order))
        if isinstance(batches, Generator):
            stack.enter_context(closing(batches))  # ends the processes that read images
        if writer is not None:
            notes = [*described.get("notes", ()), *([border] if border else [])]
            _write_start(writer, loop, wanted | {"data": described | {"notes": notes}}, damaged)
        try:
            loop.run(batches)
            _write_end(writer, loop, report)
        except BaseException as error:
            message = _one_line(error)
            if writer is not None:
                with suppress(OSError):
                    writer.update(state=f"failed: {message}")
            if isinstance(error, NonFiniteLossError | OSError):
                kind = NonFiniteLossError if isinstance(error, NonFiniteLossError) else OSError
                raise kind(f"{message}; {describe_last_checkpoint(path / CHECKPOINTS)}") from error
            raise
        run = TrainedRun.load(path)
        if stop.interrupted and not run.finished:
            last = describe_last_checkpoint(path / CHECKPOINTS)
            raise TrainingInterrupted(f"interrupted; {last}. Run the same command again to resume")
        return run


def default_folder(recipe: Recipe, name: str) -> Path:
    """Return ``runs/NAME[_bias][_PRESET]_seedN``."""
    wanted = recipe.specialization
    preset = "" if wanted is None else f"_{wanted if isinstance(wanted, str) else 'specialized'}"
    bias = "_bias" if recipe.attention_bias else ""
    return Path("runs") / slug(f"{name}{bias}{preset}_seed{recipe.seed}")


def _make_loop(
    fabric: Fabric,
    recipe: Recipe,
    images: LabelledImages,
    start: Checkpoint | None,
    writer: RunWriter | None,
    stop: StopRequest,
    progress: ProgressCallback | None,
) -> tuple[TrainingLoop, Views, PreloadedImages | None, str]:
    """Return the loop at step 0, the augmentation, the images if they are preloaded, and which pixels are lost."""
    kind: type[Objective] = objectives.get(recipe.objective)
    options = make_options(recipe.objective, recipe.objective_options)
    classes = tuple(images.classes)
    steps = recipe.count_steps(len(images))

    def backbone(outputs: int) -> nn.Module:
        return make_backbone(recipe, outputs, start)

    model = backbone(kind.classes(options, classes))
    loaded = load_model(model, img_size=recipe.image_size)
    setting = Setting(
        recipe.image_size,
        classes,
        recipe.batch_size,
        steps,
        recipe.seed,
        backbone,
        images=len(images),
        images_sha256=images.description["sha256"],
    )
    seed_all(recipe.seed)  # heads start alike, whatever was made before them
    objective = kind(model, options, setting)
    views = kind.views(options, recipe.image_size, loaded.data_config["mean"], loaded.data_config["std"])
    ready = None
    if recipe.preload:
        if not kind.has_fixed_views(options):
            raise ValueError(
                f"preload=True: the views of {recipe.objective} with these options depend on chance, so they cannot be "
                "kept; expected an objective with fixed views (distill with views=flip), or preload=False"
            )
        ready = preload(images, views, fabric.device, recipe.workers)
    samples = partial(sample_batches, images, views, recipe.seed) if ready is None else ready.sample
    objective.to(fabric.device).prepare(samples)
    fixed_batch = None
    if recipe.diagnose_every:
        fixed_batch = choose_fixed_batch(images, recipe.diagnose_images, loaded.transform())
    if fabric.device.type == "cpu":
        keep_freed_memory()
    loop = TrainingLoop(
        fabric,
        recipe,
        objective,
        images=len(images),
        steps=steps,
        stop=stop,
        progress=progress,
        fixed_batch=fixed_batch,
        make_backbone=backbone,
        writer=writer,
    )
    layout = loaded.family.layout(loaded.module, loaded.image_size)
    return loop, views, ready, layout.border_note(loaded.image_size)


def _write_start(writer: RunWriter, loop: TrainingLoop, wanted: dict[str, Any], damaged: list[str]) -> None:
    """Write run.json for a new session, and remove table rows that are newer than the checkpoint."""
    before = writer.settings
    before.pop("report_error", None)
    now = describe_session(loop.fabric, loop.step) | ({"damaged_checkpoints": damaged} if damaged else {})
    earlier = before.get("sessions", [])
    if earlier and (differences := rounding_differences(earlier[-1], now)):
        now["rounds_differently"] = differences
    writer.truncate_tables(loop.step)
    writer.update(
        **{
            "schema_version": SCHEMA_VERSION,
            "kind": "training",
            **wanted,
            "steps": loop.steps,
            "setting": {
                "image_size": loop.recipe.image_size,
                "classes": list(loop.objective.setting.classes),
                "batch_size": loop.recipe.batch_size,
                "steps": loop.steps,
                "seed": loop.recipe.seed,
            },
            "parameters": loop.parameters,
            "state": "running",
            "step": loop.step,
            **loop.speed(),
            "skipped": writer.count_skipped_images(),
            **now,
            "started": before.get("started", now["started"]),
            "sessions": [*earlier, now],
        }
    )


def _write_end(writer: RunWriter | None, loop: TrainingLoop, report: bool) -> None:
    """Write the model and README.md, the manifest if all steps are done, and the report."""
    model = loop.unsharded_result()
    if writer is not None:
        save_timm_folder(model, writer.path)
        done = loop.step == loop.steps
        writer.update(state="finished" if done else "stopped", model_step=loop.step, **loop.speed())
        write_text(writer.path / "README.md", describe_run(writer.settings))
        if done:
            writer.finish()
        if report:
            _write_report(writer)
    # All processes end together: whoever started them kills all of them when one ends with an error, as after Ctrl-C.
    loop.fabric.barrier()


def _write_report(writer: RunWriter) -> None:
    """Draw the figures and the page; an error is reported in one sentence and does not lose the training."""
    run = TrainedRun.load(writer.path)
    try:
        run.save(writer.path)
    except Exception as error:
        message = f"the report could not be drawn ({_one_line(error)}); try again with `tokenlens report {writer.path}`"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        writer.update(report_error=message)
        if run.finished:
            writer.finish()


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(str(error).split()) or type(error).__name__
