"""A complete training configuration."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenlens.catalog import Catalog


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training, except the data.

    Args:
        objective: one of ``tokenlens list objectives``.
        model: timm name of the backbone.
        model_options: options of ``timm.create_model`` (``depth``, ``drop_path_rate``, ``dynamic_img_size`` …);
            ``img_size`` defaults to ``image_size``.
        specialization: ``"paper"`` or another preset, what ``Specialization.to_dict`` returned, or None for the
            standard model.
        attention_bias: whether every attention has a learned key and value (Sun et al., arXiv 2402.17762).
        objective_options: options of the objective; the others keep their defaults.
        image_size: pixels of a (global) view.
        batch_size: images of one optimizer step, over all processes and accumulated parts.
        accumulate: number of parts in which a process goes through its share of a batch.
        epochs: passes over the training images, fractions allowed. Exactly one of epochs and steps is given.
        steps: optimizer steps.
        optimizer: timm name of the optimizer (``"adamw"``, ``"lamb"``).
        lr: highest learning rate, for this batch size: it is not scaled.
        lr_vectors: highest learning rate of the backbone's weights with one dimension (γ and β of norms, LayerScale,
            biases); it follows the same schedule. None is ``lr``.
        lr_end: learning rate at the end of the cosine.
        warmup: share of the steps, in [0, 1), in which the learning rate rises linearly from 0.
        weight_decay: weight decay at the start. Weights with one dimension, biases and what the model itself exempts
            (position embedding, CLS) have none.
        weight_decay_end: weight decay at the end of a cosine; None keeps it constant.
        betas: betas of the optimizer.
        layer_decay: factor of the learning rate from a block to the one before it; None is 1.
        clip_grad: largest norm of the gradient; None for no clipping.
        precision: precision of Lightning Fabric; ``"16-mixed"`` needs a GPU.
        strategy: ``"auto"`` (DDP with several processes), ``"ddp"`` or ``"fsdp2"``.
        seed: seed of the initial weights, the order of the images and every random draw.
        workers: processes that read images, for each training process.
        preload: decode every image once and keep its views on the device, instead of reading it in each epoch. Only for
            objectives whose views do not depend on chance.
        log_every: steps between two rows of metrics.csv.
        checkpoint_minutes: minutes between two checkpoints; there is always one at the end and at a clean stop.
        diagnose_every: steps between two diagnostics of a fixed batch; 0 for none.
        diagnose_images: images of that batch.

    Raises:
        ValueError: for a value out of range.
    """

    objective: str
    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    specialization: str | Mapping[str, Any] | None = None
    attention_bias: bool = False
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 224
    batch_size: int = 256
    accumulate: int = 1
    epochs: float | None = None
    steps: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_vectors: float | None = None
    lr_end: float = 1e-6
    warmup: float = 0.05
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float | None = None
    clip_grad: float | None = None
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    seed: int = 0
    workers: int = 0
    preload: bool = False
    log_every: int = 10
    checkpoint_minutes: float = 10.0
    diagnose_every: int = 0
    diagnose_images: int = 32

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"exactly one of epochs and steps is given, got epochs={self.epochs}, steps={self.steps}")
        for name in ("image_size", "batch_size", "accumulate", "log_every", "diagnose_images"):
            self._must(name, getattr(self, name) >= 1, "at least 1")
        for name in ("epochs", "steps", "lr", "lr_vectors", "checkpoint_minutes", "clip_grad"):
            value = getattr(self, name)
            self._must(name, value is None or (value > 0 and math.isfinite(value)), "above 0")
        for name in ("lr_end", "weight_decay", "weight_decay_end", "seed", "workers", "diagnose_every"):
            value = getattr(self, name)
            self._must(name, value is None or value >= 0, "at least 0")
        self._must("betas", len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)")
        self._must("warmup", 0 <= self.warmup < 1, "a share of the steps, in [0, 1)")
        self._must("layer_decay", self.layer_decay is None or 0 < self.layer_decay <= 1, "in (0, 1]")
        for name, allowed in (
            ("precision", ("32-true", "bf16-mixed", "16-mixed")),
            ("strategy", ("auto", "ddp", "fsdp2")),
        ):
            self._must(name, getattr(self, name) in allowed, f"one of {', '.join(allowed)}")

    def _must(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name}={getattr(self, name)!r}: expected {expected}")

    def count_steps(self, images: int) -> int:
        """Return the number of optimizer steps of a training on this many images."""
        return self.steps or max(1, round((self.epochs or 0) * images / self.batch_size))

    def to_dict(self) -> dict[str, Any]:
        """Return all values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Create a recipe from what ``to_dict`` returned; JSON turns tuples into lists."""
        given: dict[str, Any] = {name: tuple(value) if name == "betas" else value for name, value in values.items()}
        return cls(**given)


recipes = Catalog("tokenlens.training.recipes", "recipe")


def get_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        LookupError: if there is none, with the nearest names.
    """
    recipe: Recipe = recipes.module(name).RECIPE
    return recipe
