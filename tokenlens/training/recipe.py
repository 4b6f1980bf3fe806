"""A complete training configuration, and how single values of it are changed by name."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenlens.catalog import Catalog, nearest


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training computes, but the data.

    Args:
        objective: one of ``tokenlens list objectives``.
        model: timm name of the backbone.
        model_options: handed to ``timm.create_model`` (``depth``, ``drop_path_rate``, ``dynamic_img_size`` …);
            ``img_size`` is ``image_size`` where it is not named.
        specialization: ``"paper"`` or another preset, what ``Specialization.to_dict`` gave, or None: the standard
            model.
        objective_options: fields of the objective's own options, those not named keep their defaults.
        image_size: pixels of a (global) view.
        batch_size: images of one optimizer step, over all processes and accumulated parts.
        accumulate: in how many parts a process goes through its share of a batch.
        epochs: passes over the training images; fractions are allowed. Exactly one of epochs and steps is given.
        steps: optimizer steps.
        optimizer: by its name in timm (``"adamw"``, ``"lamb"``).
        lr: at its highest, for this batch size: nothing scales it silently.
        lr_end: at the end of the cosine.
        warmup: share of the steps, in [0, 1), in which the learning rate rises linearly from 0.
        weight_decay: at the start; weights with one dimension, biases and what the model itself excepts (position
            embedding, CLS) have none.
        weight_decay_end: at the end of a cosine; None keeps it.
        betas: of the optimizer.
        layer_decay: factor of the learning rate from a block to the one before it; None is 1.
        clip_grad: largest norm of the gradient; None clips nothing.
        precision: of Lightning Fabric; ``"16-mixed"`` needs a GPU.
        strategy: ``"auto"`` (DDP with several processes), ``"ddp"`` or ``"fsdp2"``.
        seed: of the initial weights, the order of the images and every draw.
        workers: processes that read images, for each training process.
        log_every: steps between two rows of metrics.csv.
        checkpoint_minutes: between two checkpoints; there is always one at the end and at a clean stop.
        diagnose_every: steps between two looks at a fixed batch with the cheap diagnostics; 0 for never.
        diagnose_images: how many images that batch has.

    Raises:
        ValueError: for a value that cannot be.
    """

    objective: str
    model: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    specialization: str | Mapping[str, Any] | None = None
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    image_size: int = 224
    batch_size: int = 256
    accumulate: int = 1
    epochs: float | None = None
    steps: int | None = None
    optimizer: str = "adamw"
    lr: float = 1e-3
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
    log_every: int = 10
    checkpoint_minutes: float = 10.0
    diagnose_every: int = 0
    diagnose_images: int = 32

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"exactly one of epochs and steps is given, got epochs={self.epochs}, steps={self.steps}")
        for name in ("image_size", "batch_size", "accumulate", "log_every", "diagnose_images"):
            self._must(name, getattr(self, name) >= 1, "at least 1")
        for name in ("epochs", "steps", "lr", "checkpoint_minutes", "clip_grad"):
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

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``Recipe(**that)`` is the same recipe."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """What ``to_dict`` gave, after JSON made lists of tuples."""
        given: dict[str, Any] = {name: tuple(value) if name == "betas" else value for name, value in values.items()}
        return cls(**given)

    def with_settings(self, settings: Iterable[str], options: type | None = None) -> Recipe:
        """The recipe with some values changed, each written as ``name=value``.

        ``model_options.depth=6`` and ``objective_options.koleo=0`` reach inside; the value is a Python literal or a
        bare word, ``none`` for None. Giving epochs takes back steps, and the other way round.

        Args:
            options: the dataclass of the objective's options, which then are checked by name and type, too.

        Raises:
            LookupError: for a name that there is not, with the nearest ones.
            ValueError: for a value of another type.
        """
        changes: dict[str, Any] = {}
        inside: dict[str, dict[str, Any]] = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise ValueError(f"a setting is name=value, got {setting!r}")
            outer, dot, inner = name.strip().partition(".")
            types = {one.name: one.type for one in dataclasses.fields(self)}
            _known(outer, types, "setting")
            value = _literal(text.strip())
            if dot:
                if outer not in ("model_options", "objective_options"):
                    raise LookupError(
                        f"{outer!r} has nothing inside; the settings with a dot are model_options.… and "
                        "objective_options.…"
                    )
                if outer == "objective_options" and options is not None:
                    of_options = {one.name: one.type for one in dataclasses.fields(options)}
                    _known(inner, of_options, f"option of the objective {self.objective}")
                    value = _typed(name, value, of_options[inner])
                inside.setdefault(outer, {})[inner] = value
            else:
                changes[outer] = _typed(name, value, types[outer])
        for outer, values in inside.items():
            changes[outer] = {**changes.get(outer, getattr(self, outer)), **values}
        for given, other in (("epochs", "steps"), ("steps", "epochs")):
            if changes.get(given) is not None and other not in changes:
                changes[other] = None
        return dataclasses.replace(self, **changes)


def _known(name: str, names: Iterable[str], kind: str) -> None:
    names = list(names)
    if name not in names:
        close = nearest(name, names)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise LookupError(f"no {kind} is called {name!r}.{hint} Available: {', '.join(sorted(names))}.")


def _literal(text: str) -> Any:
    if text.lower() in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _typed(name: str, value: Any, annotation: Any) -> Any:
    """The value as the type that is declared for it, e.g. ``"float | None"``; ValueError if it is of another."""
    declared = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    kinds = {
        "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        "bool": lambda v: isinstance(v, bool),
        "str": lambda v: isinstance(v, str),
        "None": lambda v: v is None,
    }
    for one in (part.strip() for part in declared.split("|")):
        if one in kinds:
            if kinds[one](value):
                return float(value) if one == "float" else value
        elif one.startswith("Literal"):
            if value in ast.literal_eval(one.removeprefix("Literal")):
                return value
        elif one.startswith("Mapping") and isinstance(value, Mapping):
            return value
        elif one.startswith("tuple") and isinstance(value, tuple | list):
            return tuple(value)
    raise ValueError(f"{name}={value!r} is of type {type(value).__name__}; expected {declared}")


recipes = Catalog("tokenlens.training.recipes", "recipe")


def recipe_of(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        LookupError: if there is none, with the nearest names.
    """
    recipe: Recipe = recipes.module(name).RECIPE
    return recipe
