"""The contract of a scale: what ``tokenlens verify`` trains and measures. Each file here defines ``SCALE``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenlens.catalog import Catalog
from tokenlens.training.recipe import Recipe


@dataclass(frozen=True)
class ScaleProbe:
    """A probe that is run on every trained model.

    Args:
        task: a name of ``tokenlens list probes``.
        source: the features that represent an image; None for segmentation.
        image_size: pixels.
        limit: the most images of each split; None for all.
        draw: number of the probe's random draws; the numbers of several draws are averaged.
    """

    task: str
    image_size: int
    source: str | None = None
    limit: int | None = None
    draw: int = 0

    @property
    def name(self) -> str:
        """Name for folders and tables.

        >>> ScaleProbe("knn", 64, "cls").name
        'knn_cls_64'
        """
        draw = f"draw{self.draw}" if self.draw else None
        return "_".join(filter(None, [self.task, self.source, str(self.image_size), draw]))


@dataclass(frozen=True)
class Pace:
    """Measured speeds, for a plan before anything has been run.

    Args:
        hardware: the machine that was measured.
        train: images per second.
        first: extra minutes of the first training, which computes the teacher's features.
        analyze: minutes per model.
        probes: minutes per model of each probe, by its task; 1 for tasks that are not listed.
    """

    hardware: str
    train: float
    first: float = 0.0
    analyze: float = 1.0
    probes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """The configuration of a verification, apart from its data.

    Args:
        recipe: the recipe of every training; each training sets its own seed and specialization.
        recipe_name: the name that run folders show.
        probes: the probes of every trained model.
        pace: expected speed.
        variants: names that ``tokenlens.verification.variants.recipe_of_variant`` takes.
        seeds: trainings per variant, with seeds from 0.
        ablation_seeds: the most trainings of each variant other than standard and paper; None for as many.
        train_images: the most images to train on, the same number per class; None for all.
        analyzed_images: the most images to analyze.
        teacher_file: for the objective ``distill``, the file of the teacher's weights in the data's folder ``weights``;
            without such a file the published weights are downloaded.
        start: weights that every training starts from, standard and specialized alike: a file, a run folder or the
            name of a model; ``"teacher"`` for the teacher's weights; None for random weights, different for each seed.
        start_blocks: keep only the first so many blocks of the start; None for all.
    """

    recipe: Recipe
    recipe_name: str
    probes: tuple[ScaleProbe, ...]
    pace: Pace
    variants: tuple[str, ...] = ("standard", "paper")
    seeds: int = 3
    ablation_seeds: int | None = None
    train_images: int | None = None
    analyzed_images: int = 200
    teacher_file: str | None = None
    start: str | None = None
    start_blocks: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything that determines the numbers, except the start, which its SHA-256 identifies; JSON-able."""
        fields = asdict(self)
        for name in ("pace", "variants", "seeds", "ablation_seeds", "start"):
            del fields[name]
        return fields


scales = Catalog("tokenlens.verification.scales", "scale")


def scale_of(name: str) -> Scale:
    """Return a scale by its name.

    Raises:
        LookupError: if there is none, with the nearest names.
    """
    scale: Scale = scales.module(name).SCALE
    return scale
