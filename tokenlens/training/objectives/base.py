"""The interface of training objectives, one file each in this folder."""

# Shapes: B images of a process's part of a batch, V views of one image, C channels of an image, H height, W width.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from PIL import Image
from torch import Tensor, nn

from tokenlens.catalog import Catalog, check_known

Views = Callable[[Image.Image], list[Tensor]]
"""The augmentation of one image: returns its views, each (C, H, W). It draws from random, numpy.random and torch's
default generator only, which are seeded for each sample."""


@dataclass(frozen=True)
class SingleView:
    """A transform of torchvision or timm as ``Views`` with one view; picklable if the transform is."""

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """Return a list of one tensor."""
        return [self.transform(image)]


class Progress(NamedTuple):
    """The position of a step in the training. A named tuple, because Fabric refuses frozen dataclasses as inputs.

    Args:
        step: optimizer step, from 0.
        steps: number of steps in total.
        steps_per_epoch: images over batch size.
        seed: seed of the recipe. What an objective draws in a step must depend on (seed, step) alone, so that a resumed
            run draws the same.
    """

    step: int
    steps: int
    steps_per_epoch: float
    seed: int

    @property
    def epoch(self) -> float:
        """Passes over the images so far."""
        return self.step / self.steps_per_epoch


@dataclass
class TrainingBatch:
    """A process's images of one part of a step.

    Args:
        views: V tensors (B, C, H, W); sizes differ between views.
        labels: class numbers (B,), or None.
        indices: numbers (B,) of the images in the training set.
        positions: positions (B,) in the step's whole batch, over all processes and accumulated parts. Positions i and
            size − 1 − i are always in the same part, mirrored: mixing ``x`` with ``x.flip(0)`` pairs the same images
            whatever the number of processes.
        size: size of the step's whole batch.
    """

    views: list[Tensor]
    labels: Tensor | None
    indices: Tensor
    positions: Tensor
    size: int

    def to(self, device: Any) -> TrainingBatch:
        """Return the batch with all tensors on a device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        labels = None if self.labels is None else moved(self.labels)
        views = [moved(view) for view in self.views]
        return TrainingBatch(views, labels, moved(self.indices), moved(self.positions), self.size)


@dataclass(frozen=True)
class Setting:
    """The training that an objective is part of.

    Args:
        image_size: pixels of a global view.
        classes: names of the classes; empty for images without labels.
        batch_size: images of one step.
        steps: optimizer steps.
        seed: seed of heads and teachers that start at random.
        make_backbone: returns another copy of the backbone, made from the same seed (for a teacher), for a number of
            classes.
        images: number of training images; 0 if unknown.
        images_sha256: hash that identifies them; empty if unknown.
    """

    image_size: int
    classes: tuple[str, ...]
    batch_size: int
    steps: int
    seed: int
    make_backbone: Callable[[int], nn.Module]
    images: int = 0
    images_sha256: str = ""


class Objective(nn.Module, ABC):
    """Backbone, heads, teachers and losses in one module: one wrapper (DDP, FSDP2) and one state dict cover all.

    A file of this folder holds one subclass; the file name is its public name. What is not trained has
    ``requires_grad=False``.

    Args:
        backbone: the model to train, made by timm, specialized or not, with as many outputs as ``classes`` returns.
        options: an instance of ``Options``.
        setting: see ``Setting``.
    """

    Options: ClassVar[type]
    """Frozen dataclass of the options, each with a default."""

    labelled: ClassVar[bool] = False
    """Whether the images need labels."""

    def __init__(self, backbone: nn.Module, options: Any, setting: Setting) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        self.setting = setting

    @classmethod
    def classes(cls, options: Any, classes: tuple[str, ...]) -> int:
        """Return the number of outputs of the backbone's classifier; 0 for none."""
        return 0

    @classmethod
    def has_fixed_views(cls, options: Any) -> bool:
        """Return whether the views of an image are always the same, so that they can be kept."""
        return False

    @classmethod
    @abstractmethod
    def views(cls, options: Any, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Views:
        """Return the augmentation, picklable; ``mean`` and ``std`` per channel normalize the views."""

    @abstractmethod
    def forward(self, batch: TrainingBatch, progress: Progress) -> dict[str, Tensor]:
        """Return the losses of one part of a step, means over its images; ``"loss"`` is minimized, the rest logged."""

    def prepare(self, samples: Callable[[int], Iterator[TrainingBatch]]) -> None:
        """Fit what depends on the images before training: in every process alike, and again when a run is resumed.

        Args:
            samples: yields batches of at most so many training images, spread evenly, always the same ones.
        """

    def after_backward(self, progress: Progress) -> None:
        """Change gradients before the optimizer's step, e.g. to freeze a layer at the start."""

    def after_step(self, progress: Progress) -> None:
        """Update what the optimizer does not, e.g. a teacher."""

    def result(self) -> nn.Module:
        """Return the backbone to keep, which is diagnosed during training and saved at the end."""
        return self.backbone


objectives = Catalog("tokenlens.training.objectives", "objective", base="Objective")


def make_options(name: str, values: Any) -> Any:
    """Create an objective's options from a mapping.

    Raises:
        LookupError: for an unknown objective or option; names the nearest ones.
        ValueError: for a value out of range.
    """
    kind = objectives.get(name).Options
    for option in values:
        check_known(option, kind.__dataclass_fields__, f"option of the objective {name}")
    return kind(**values)


def check_option(options: Any, name: str, holds: bool, expected: str) -> None:
    """Raise ValueError with the option's value and what is expected, unless ``holds``."""
    if not holds:
        raise ValueError(f"{name}={getattr(options, name)!r}: expected {expected}")
