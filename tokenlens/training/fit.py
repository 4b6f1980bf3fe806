"""``train``: one loop on Lightning Fabric for every objective, standard and specialized models under the same rules.

Nothing is drawn from a random state that earlier steps left behind: an image's augmentation comes from (seed, epoch,
image), what a step draws (mixing, masks, stochastic depth) from (seed, step). So a standard and a specialized run share
every draw, a training that was killed goes on to the very same weights, and several processes train as one does, to
rounding. One exception: stochastic depth draws for each image of a process's part of a batch, so that with another
number of processes other images lose other blocks.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tokenlens.images.labelled.classes import LabelledImages, open_labelled
from tokenlens.models.checkpoints import Checkpoint, read_checkpoint
from tokenlens.models.loading import load_model
from tokenlens.models.names import weights_file
from tokenlens.reduction.buffers import keep_freed_memory
from tokenlens.specialization import Specialization, as_specialization
from tokenlens.storage.run_folder import SCHEMA_VERSION, slug
from tokenlens.training.backbone import make_backbone, save_backbone
from tokenlens.training.batches import training_batches
from tokenlens.training.diagnostics import fixed_batch
from tokenlens.training.loop import NonFiniteLossError, Report, TrainingLoop
from tokenlens.training.objectives.base import Objective, Setting, Views, objectives, options_of
from tokenlens.training.parallel import fabric_of, launched
from tokenlens.training.readme import other_rounding, readme, session
from tokenlens.training.recipe import Recipe
from tokenlens.training.run import CHECKPOINTS, RunFolder, TrainedRun, last_good, open_run, told
from tokenlens.training.seeds import keeping_random_state, seed_all
from tokenlens.training.stopping import StopRequest, TrainingInterrupted

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["NonFiniteLossError", "Report", "TrainedRun", "TrainingInterrupted", "train"]


def fit(
    recipe: Recipe,
    data: str | os.PathLike[str] | LabelledImages,
    out: str | os.PathLike[str] | None = None,
    *,
    specialize: str | Specialization | None = None,
    seed: int | None = None,
    settings: Iterable[str] = (),
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    resume: bool = True,
    overwrite: bool = False,
    max_minutes: float | None = None,
    progress: Report | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    name: str | None = None,
) -> TrainedRun:
    """Train a model by a recipe, or go on with a training that stopped or was killed.

    The same call on an unfinished run goes on from its last checkpoint, to the same weights, bit by bit on the same
    hardware; on a finished run it returns it.

    Args:
        recipe: everything that decides what is computed, but the data.
        data: what ``tokenlens.images.labelled.classes.open_labelled`` opens, or what it returned.
        out: the run folder; by default ``runs/NAME[_PRESET]_seedN``.
        specialize: another specialization than the recipe's.
        seed: another seed than the recipe's.
        settings: further changes of the recipe, each ``name=value``.
        device: ``"auto"`` (cuda, then mps, then cpu), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        devices: processes on each machine, a device each; Fabric starts them by running the same script again, so
            there must be one. Under torchrun those that it has started.
        nodes: machines; they share the folder.
        resume: go on with an unfinished run in the folder; False refuses.
        overwrite: remove the run in the folder and begin anew.
        max_minutes: stop cleanly after this time, at a checkpoint.
        progress: called after each step; see ``Report``.
        checkpoint: weights to start the backbone from, before it is specialized: a file, a run folder, a model that
            comes with tokenlens, or what is read from a file.
        name: of the recipe, for the records.

    Returns:
        The run: finished, or stopped after ``max_minutes``.

    Raises:
        LookupError: for an unknown model, objective, option or setting, with the nearest names.
        ValueError: for values and data that cannot be, another configuration than the folder's, a folder in use; or
            a NonFiniteLossError.
        FileExistsError: if the folder holds something else.
        OSError: if the disk is full; the last good checkpoint stays.
        TrainingInterrupted: after Ctrl-C, when the checkpoint is written; a KeyboardInterrupt.
    """
    recipe = changed(recipe, settings, specialize, seed)
    name = name or f"{recipe.objective}_{recipe.model}"
    path = Path(out) if out is not None else Path("runs") / _folder_name(recipe, name)
    start = checkpoint if isinstance(checkpoint, Checkpoint | None) else read_checkpoint(weights_file(checkpoint))
    images = data if isinstance(data, LabelledImages) else open_labelled(data, "train")
    if objectives.get(recipe.objective).labelled and images.labels is None:
        raise ValueError(f"the objective {recipe.objective} needs labels, and {images.description['source']} has none")
    fabric = fabric_of(recipe, device, devices, nodes)
    with ExitStack() as stack:
        stack.enter_context(launched(fabric))
        stop = StopRequest(max_minutes)
        folder: RunFolder | None = None
        refused: Exception | None = None
        if fabric.is_global_zero:
            given = None if isinstance(data, LabelledImages) else os.fspath(data)
            named = checkpoint.source if isinstance(checkpoint, Checkpoint) else os.fspath(checkpoint or "")
            weights = start and {"given": named, "source": start.source, "sha256": start.sha256}
            wanted = {
                "name": name,
                "recipe": recipe.to_dict(),
                "seed": recipe.seed,
                "data": {"given": given, **images.description},
                "start": weights,
            }
            try:
                folder = open_run(path, wanted, resume=resume, overwrite=overwrite)
            except (ValueError, OSError) as error:
                refused = error
            else:
                stack.callback(folder.close)
        finished, refused = fabric.broadcast((folder is not None and folder.finished, refused))
        if refused is not None:
            raise refused  # in all processes: those that wait for the first one would do so for long
        if finished:
            return TrainedRun.load(path)
        stack.enter_context(keeping_random_state())
        stack.enter_context(stop.listening())
        loop, views = _prepared(fabric, recipe, images, start, folder, stop, progress)
        damaged = loop.go_on(path / CHECKPOINTS)
        batches = training_batches(
            images,
            views,
            batch_size=recipe.batch_size,
            steps=loop.steps,
            seed=recipe.seed,
            accumulate=recipe.accumulate,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            start_step=loop.step,
            workers=recipe.workers,
        )
        if isinstance(batches, Generator):
            stack.enter_context(closing(batches))  # ends the processes that read images
        if folder is not None:
            _begin(folder, loop, wanted, damaged)
        try:
            loop.run(batches)
            _conclude(loop, folder)
        except BaseException as error:
            if folder is not None:
                with suppress(OSError):
                    folder.say(state=f"failed: {told(error)}")
            if isinstance(error, NonFiniteLossError | OSError):
                kind = NonFiniteLossError if isinstance(error, NonFiniteLossError) else OSError
                raise kind(f"{told(error)}; {last_good(path)}") from error
            raise
        run = TrainedRun.load(path)
        if stop.interrupted and not run.finished:
            raise TrainingInterrupted(f"interrupted; {last_good(path)}, and the same command goes on from there")
        return run


def changed(
    recipe: Recipe,
    settings: Iterable[str] = (),
    specialize: str | Specialization | None = None,
    seed: int | None = None,
) -> Recipe:
    """A recipe with values changed by name, another specialization and another seed.

    Raises:
        LookupError, ValueError: as ``Recipe.with_settings``, the options of the objective included.
    """
    settings = list(settings)
    recipe = recipe.with_settings(one for one in settings if one.partition("=")[0].strip() == "objective")
    recipe = recipe.with_settings(settings, objectives.get(recipe.objective).Options)
    options_of(recipe.objective, recipe.objective_options)
    if specialize is not None:
        wanted = specialize.to_dict() if isinstance(specialize, Specialization) else specialize
        recipe = replace(recipe, specialization=wanted)
    if recipe.specialization is not None:
        as_specialization(recipe.specialization)  # an unknown preset is said before a folder is made
    return recipe if seed is None else replace(recipe, seed=seed)


def _folder_name(recipe: Recipe, name: str) -> str:
    wanted = recipe.specialization
    preset = "" if wanted is None else f"_{wanted if isinstance(wanted, str) else 'specialized'}"
    return slug(f"{name}{preset}_seed{recipe.seed}")


def _prepared(
    fabric: Fabric,
    recipe: Recipe,
    images: LabelledImages,
    start: Checkpoint | None,
    folder: RunFolder | None,
    stop: StopRequest,
    progress: Report | None,
) -> tuple[TrainingLoop, Views]:
    """The loop at its first step, and the augmentation."""
    kind: type[Objective] = objectives.get(recipe.objective)
    options = options_of(recipe.objective, recipe.objective_options)
    classes = tuple(images.classes)
    steps = recipe.steps or max(1, round((recipe.epochs or 0) * len(images) / recipe.batch_size))

    def backbone(outputs: int) -> nn.Module:
        return make_backbone(recipe, outputs, start)

    model = backbone(kind.classes(options, classes))
    look = load_model(model, img_size=recipe.image_size)
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
    batch = fixed_batch(images, recipe.diagnose_images, look.transform()) if recipe.diagnose_every else None
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
        diagnosed=batch,
        plain_twin=backbone,
        folder=folder,
    )
    return loop, kind.views(options, recipe.image_size, look.data_config["mean"], look.data_config["std"])


def _begin(folder: RunFolder, loop: TrainingLoop, wanted: dict[str, Any], damaged: list[str]) -> None:
    """Say what is trained, and who goes on with it; take back what was written after the checkpoint."""
    before = folder.settings
    now = session(loop.fabric, loop.step) | ({"damaged_checkpoints": damaged} if damaged else {})
    earlier = before.get("sessions", [])
    if earlier and (other := other_rounding(earlier[-1], now)):
        now["rounds_differently"] = other
    folder.go_on_from(loop.step)
    folder.say(
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
            "skipped": folder.skipped_images(),
            **now,
            "started": before.get("started", now["started"]),
            "sessions": [*earlier, now],
        }
    )


def _conclude(loop: TrainingLoop, folder: RunFolder | None) -> None:
    """Write the model, the page and the figures; the manifest, if all steps are done."""
    model = loop.kept_model()
    if folder is not None:
        save_backbone(model, folder.path)
        done = loop.step == loop.steps
        folder.say(state="finished" if done else "stopped", model_step=loop.step, **loop.speed())
        (folder.path / "README.md").write_text(readme(folder.settings), encoding="utf-8", errors="backslashreplace")
        if done:
            folder.finish()
        trained = TrainedRun.load(folder.path)
        trained.save(folder.path)
    # Together: who started the processes ends all of them when one ends with an error, as after Ctrl-C.
    loop.fabric.barrier()
