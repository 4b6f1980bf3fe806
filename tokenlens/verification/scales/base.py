"""What `tokenlens verify` trains and measures, at one scale: one file each, with ``REGIME`` and why it is so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenlens.catalog import Catalog
from tokenlens.training.recipe import Recipe


@dataclass(frozen=True)
class RegimeProbe:
    """A probe that every trained model gets.

    Args:
        task: of ``tokenlens list probes``.
        source: what of the model stands for an image; None for segmentation.
        image_size: pixels.
        limit: at most so many images of each split; None for all.
    """

    task: str
    image_size: int
    source: str | None = None
    limit: int | None = None

    @property
    def name(self) -> str:
        """For folders and tables.

        >>> RegimeProbe("knn", 64, "cls").name
        'knn_cls_64'
        """
        return "_".join(filter(None, [self.task, self.source, str(self.image_size)]))


@dataclass(frozen=True)
class Pace:
    """How fast it went where it was tried, for a plan before anything is measured.

    Args:
        hardware: where that was, in words.
        train: images per second.
        first: minutes that only the first training takes, for the teacher's features.
        analyze: minutes for one model.
        probes: minutes of each probe for one model, by its task; 1 where it is not named.
    """

    hardware: str
    train: float
    first: float = 0.0
    analyze: float = 1.0
    probes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Regime:
    """All of a verification but the data.

    Args:
        recipe: of every training; seed and specialization are set for each.
        recipe_name: for the records.
        probes: of every trained model.
        pace: how long it takes.
        variants: names as ``tokenlens.verification.variants.specialization_of`` takes them.
        seeds: how many of each variant, from 0.
        train_images: at most so many images are trained on, the same number of each class; None for all.
        analyzed_images: at most so many images are analyzed.
        teacher_file: name of the teacher's weights in the data's folder ``weights``, for the objective ``distill``;
            where there is no such file, the published ones are fetched.
        start: weights that every training starts from, standard and specialized alike: a file, a run folder or the
            name of a model; None for random ones, another for each seed.
    """

    recipe: Recipe
    recipe_name: str
    probes: tuple[RegimeProbe, ...]
    pace: Pace
    variants: tuple[str, ...] = ("standard", "paper")
    seeds: int = 3
    train_images: int | None = None
    analyzed_images: int = 200
    teacher_file: str | None = None
    start: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what decides the numbers, but the start, which is known by its SHA-256 and not by its name."""
        told = asdict(self)
        del told["pace"], told["variants"], told["seeds"], told["start"]
        return told


regimes = Catalog("tokenlens.verification.scales", "regime")


def regime_of(name: str) -> Regime:
    """The regime of a name.

    Raises:
        LookupError: if there is none, with the nearest names.
    """
    regime: Regime = regimes.module(name).REGIME
    return regime
