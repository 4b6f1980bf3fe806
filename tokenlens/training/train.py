"""Train a model by a recipe."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from tokenlens.training.recipe import Recipe, get_recipe

if TYPE_CHECKING:
    from tokenlens.images.labelled.classes import LabelledImages
    from tokenlens.models.checkpoints import Checkpoint
    from tokenlens.specialization import Specialization
    from tokenlens.training.trained_run import TrainedRun


def train(
    recipe: str | Recipe,
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
    progress: Callable[[int, int, Mapping[str, float]], None] | None = None,
    checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    name: str | None = None,
    report: bool = True,
) -> TrainedRun:
    """Train a model by a recipe, or resume a training that stopped or was killed.

    The same call on an unfinished run resumes it from its last checkpoint and reaches the same weights, bit by bit on
    the same hardware. On a finished run it returns that run.

    Args:
        recipe: a name from ``tokenlens list recipes``, or a ``Recipe``.
        data: a folder with train/ and val/, of classes or of images; a tar file of one; webdataset shards; a Hugging
            Face data set; or images that ``tokenlens.images.labelled.classes.open_labelled`` opened.
        out: the run folder; by default ``runs/NAME[_PRESET]_seedN``.
        specialize: preset or specialization to use instead of the recipe's; None keeps the recipe's.
        seed: seed to use instead of the recipe's, at least 0.
        settings: changes to the recipe, each ``"name=value"``, e.g. ``"epochs=3"`` or ``"model_options.depth=4"``.
        device: ``"auto"`` (cuda, then mps, then cpu), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
        devices: processes on each machine, one device each. Without torchrun they are started by running the same
            script again, so the call must be in a file. Under torchrun its processes are used instead.
        nodes: number of machines; they must share the run folder.
        resume: whether an unfinished run in the folder may be resumed.
        overwrite: remove a run in the folder and start over.
        max_minutes: stop at a checkpoint after this time; None for no limit.
        progress: called after each step with the steps done, the steps in total, and the numbers ``loss``,
            ``images_per_second`` (since the last row of metrics.csv) and ``eta_seconds``.
        checkpoint: weights to start from instead of random ones, loaded before the model is specialized: a file, a run
            folder, a model that ships with tokenlens, or a checkpoint that was read already.
        name: name of the training in its run folder; by default the recipe's.
        report: whether to draw the figures and the page at the end.

    Returns:
        The run: finished, or stopped after ``max_minutes``. If its page could not be drawn,
        ``run.settings["report_error"]`` says why.

    Raises:
        LookupError: for an unknown recipe, model, objective, option or setting; names the nearest ones.
        ValueError: for invalid values or data, a folder that holds another configuration or is in use, a loss of NaN or
            infinity (``NonFiniteLossError``), or if Lightning Fabric or lightly is not installed.
        FileExistsError: if the folder holds something else, or a run that may not be resumed.
        OSError: if the disk is full; the last good checkpoint is kept.
        TrainingInterrupted: a KeyboardInterrupt, after Ctrl-C or SIGTERM, once the checkpoint is written.
    """
    for package in ("lightning_fabric", "lightly"):
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"training needs {package}, which is not installed: pip install 'tokenlens-vit[train]'")
    from tokenlens.training.fit import default_folder, fit
    from tokenlens.training.overrides import override

    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = override(chosen, settings, specialize, seed)
    name = name or (recipe if isinstance(recipe, str) else f"{chosen.objective}_{chosen.model}")
    return fit(
        chosen,
        data,
        default_folder(chosen, name) if out is None else out,
        name=name,
        device=device,
        devices=devices,
        nodes=nodes,
        resume=resume,
        overwrite=overwrite,
        max_minutes=max_minutes,
        progress=progress,
        checkpoint=checkpoint,
        report=report,
    )
