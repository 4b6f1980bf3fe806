"""Finished trainings with their setting, variant and seed, and their losses and norm differentiation by step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tokenlens.storage.hashing import file_sha256
from tokenlens.training.recipe import Recipe
from tokenlens.training.trained_run import CHANGEABLE_ON_RESUME, TrainedRun
from tokenlens.verification.variants import START, TWIN, TWIN_SEEDS, variant_of

NOT_LOSSES = {"step", "epoch", "lr", "weight_decay", "grad_norm", "images_per_second"}
"""Columns of metrics.csv that are no losses."""

CURVES = ("setting", "variant", "seed", "step", "epoch", "source", "value")
EMERGENCE = ("setting", "variant", "seed", "step", "value", "n")


@dataclass(frozen=True)
class TrainedModel:
    """A finished training.

    Attributes:
        run: its run folder.
        setting: everything that it has in common with the models that it may be compared with.
        variant: name of its specialization.
        seed: the seed that matches it with models of other variants.
        sha256: hash of its weights, by which its analyses and probes are found.
    """

    run: TrainedRun
    setting: str
    variant: str
    seed: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return a description for verify.json."""
        return {
            "folder": str(self.run.path),
            "variant": self.variant,
            "seed": self.seed,
            "sha256": self.sha256,
            "setting": self.setting,
            "parameters": self.run.settings["parameters"]["model"],
            "seconds": self.run.settings["seconds"],
        }


def read_trainings(folders: Iterable[Path]) -> tuple[list[TrainedModel], list[tuple[str, str]]]:
    """Read run folders of trainings.

    Returns:
        The finished ones, and the folders that are not used with the reason.
    """
    runs, left_out = [], []
    for folder in folders:
        run = TrainedRun.load(folder)
        if run.finished:
            runs.append(run)
        else:
            left_out.append((str(folder), f"{run.state} at step {run.step} of {run.settings['steps']}"))
    names: dict[str, str] = {}  # settings with the same text can differ, so they are identified by their digest
    texts: list[str] = []
    for run in runs:
        digest, text = digest_of(_common(run.settings)), describe_setting(run.settings)
        if digest not in names:
            texts.append(text)
            same = texts.count(text)
            names[digest] = text + (f" [{same}]" if same > 1 else "")
    models: dict[tuple[str, str, int], TrainedModel] = {}
    for run in runs:
        setting = names[digest_of(_common(run.settings))]
        key = (setting, *variant_and_seed(run))
        if key in models:
            left_out.append((str(run.path), f"the same training as {models[key].run.path}"))
        else:
            models[key] = TrainedModel(run, *key, file_sha256(run.path / "model.safetensors"))
    return [*models.values()], left_out


def starts_of(models: Iterable[TrainedModel]) -> dict[str, list[TrainedModel]]:
    """Return what the trainings started from, by SHA-256: one stand-in model per setting."""
    found: dict[str, dict[str, TrainedModel]] = {}
    for model in models:
        start = model.run.settings.get("start")
        if start:
            stand_in = replace(model, variant=START, seed=0, sha256=start["sha256"])
            found.setdefault(start["sha256"], {}).setdefault(model.setting, stand_in)
    return {sha256: list(settings.values()) for sha256, settings in found.items()}


def variant_and_seed(run: TrainedRun) -> tuple[str, int]:
    """Return the variant and matching seed of a training; its folder's name tells a twin from a standard model."""
    variant, seed = variant_of(run.recipe.specialization), int(run.recipe.seed)
    if run.path.name.endswith(f"{TWIN}_seed{seed - TWIN_SEEDS}"):
        return TWIN, seed - TWIN_SEEDS
    return variant, seed


def describe_setting(settings: Mapping[str, Any]) -> str:
    """Return objective, model, image size, data, steps and start of a training in words.

    Args:
        settings: content of its run.json.
    """
    recipe = settings["recipe"]
    options = ", ".join(f"{name} {value}" for name, value in recipe["model_options"].items())
    model = f"{recipe['model']} ({options})" if options else recipe["model"]
    model += ", attention bias" if recipe.get("attention_bias") else ""
    start = settings.get("start")
    # Only the last two parts of a path: the rest describes the machine rather than the weights.
    continued = f", continued from {'/'.join(Path(start['given']).parts[-2:])}" if start else ""
    return (
        f"{recipe['objective']}, {model}, {recipe['image_size']} px, {settings['data']['count']:,} images, "
        f"{settings['steps']:,} steps of {recipe['batch_size']}{continued}"
    )


def digest_of(value: Any) -> str:
    """Return a short digest of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _common(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that determines a training except its seed and specialization."""
    ignored = ("seed", "specialization", "diagnose_every", "diagnose_images", *CHANGEABLE_ON_RESUME)
    start = settings.get("start")
    recipe = Recipe.from_dict(settings["recipe"]).to_dict()  # with the fields that older versions did not have
    return {
        "recipe": {name: value for name, value in recipe.items() if name not in ignored},
        "data": settings["data"]["sha256"],
        "steps": settings["steps"],
        "start": start and start["sha256"],
    }


def collect_losses(models: Iterable[TrainedModel]) -> pd.DataFrame:
    """Return every loss in the metrics.csv of the trainings, with the columns of ``CURVES``."""
    frames = []
    for model in models:
        metrics = model.run.metrics
        for name in metrics.columns:
            if name not in NOT_LOSSES:
                frames.append(_label(model, metrics[["step", "epoch"]].assign(source=name, value=metrics[name])))
    return _concatenate(frames, CURVES)


def collect_emergence(models: Iterable[TrainedModel]) -> pd.DataFrame:
    """Return how far norm1 lowers the CLS–patch cosine, by training step.

    Returns:
        The columns of ``EMERGENCE``: the fall on a fixed batch of ``n`` images, averaged over blocks.
    """
    frames = []
    for model in models:
        diagnostics = model.run.diagnostics
        rows = diagnostics[
            (diagnostics["metric"] == "norm_differentiation")
            & (diagnostics["part"] == "total")
            & (diagnostics["site"] == "norm1")
            & (diagnostics["group"] == "cls-patch")
        ]
        frames.append(_label(model, rows.groupby("step", as_index=False).agg(value=("value", "mean"), n=("n", "max"))))
    return _concatenate(frames, EMERGENCE)


def _label(model: TrainedModel, frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(setting=model.setting, variant=model.variant, seed=model.seed)


def _concatenate(frames: list[pd.DataFrame], columns: tuple[str, ...]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(filled, ignore_index=True)[list(columns)]
