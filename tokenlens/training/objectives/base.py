"""What is minimised: one file per training objective, found in this folder."""

# Shapes: B images of a process's part of a batch, V views of one image, C channels of an image, H height, W width.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from PIL import Image
from torch import Tensor, nn

from tokenlens.catalog import Catalog, nearest

Views = Callable[[Image.Image], list[Tensor]]
"""The augmentation of one image: its views, each (C, H, W). It draws from random, numpy.random and torch's default
generator only; the data set seeds all three for each sample."""


class Progress(NamedTuple):
    """Where in the training a step is. A named tuple, because Fabric refuses frozen dataclasses as inputs of a module.

    Args:
        step: of the optimizer, from 0.
        steps: how many there will be.
        steps_per_epoch: images over batch size.
        seed: of the recipe. What an objective draws in a step comes from (seed, step), never from the state that
            earlier steps left behind: so a resumed run draws the same.
    """

    step: int
    steps: int
    steps_per_epoch: float
    seed: int

    @property
    def share(self) -> float:
        """Of the training that is done, 0 at the first step and 1 at the last."""
        return self.step / max(1, self.steps - 1)

    @property
    def epoch(self) -> float:
        """Passes over the images so far."""
        return self.step / self.steps_per_epoch


@dataclass
class TrainingBatch:
    """A process's images of one part of a step.

    Args:
        views: V tensors (B, C, H, W); sizes differ between views.
        labels: (B,) class numbers, or None.
        indices: (B,) which images of the training set these are.
        positions: (B,) places in the step's whole batch, over all processes and accumulated parts. Place i and place
            size − 1 − i are always in the same part, mirrored: part[::-1] is the part's own pairing, so that mixing an
            image with its mirror gives the same pairs however many processes there are.
        size: of the step's whole batch.
    """

    views: list[Tensor]
    labels: Tensor | None
    indices: Tensor
    positions: Tensor
    size: int

    def to(self, device: Any) -> TrainingBatch:
        """All tensors on a device."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        labels = None if self.labels is None else moved(self.labels)
        views = [moved(view) for view in self.views]
        return TrainingBatch(views, labels, moved(self.indices), moved(self.positions), self.size)


@dataclass(frozen=True)
class Setting:
    """What an objective may know about the training it is made for.

    Args:
        image_size: pixels of a global view.
        classes: names of the classes; empty where the images have no labels.
        batch_size: images of one step.
        steps: optimizer steps.
        seed: of heads and teachers that start at random.
        make_backbone: another copy of the backbone, freshly made from the same seed (for a teacher); takes the number
            of classes.
        images: how many training images there are; 0 where nobody said.
        images_sha256: which ones, as the data's description says; empty where nobody said.
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
    """Backbone, heads, teachers and losses in one module, so that one wrapper (DDP, FSDP2) and one state dict hold all.

    A file of this folder holds one subclass; its file name is its public name. ``forward`` returns the losses by name;
    ``"loss"`` is minimised, the others are logged. What is not trained has ``requires_grad=False``.

    Args:
        backbone: the model that is trained, made by timm, specialized or not, with as many classes as ``classes`` says.
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
        """How many outputs the backbone's own classifier has; 0 for none."""
        return 0

    @classmethod
    @abstractmethod
    def views(cls, options: Any, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Views:
        """The augmentation; ``mean`` and ``std`` per channel normalise the views. Must be picklable (workers)."""

    @abstractmethod
    def forward(self, batch: TrainingBatch, progress: Progress) -> dict[str, Tensor]:
        """The losses of one part of a step, means over its images; ``"loss"`` is minimised."""

    def after_backward(self, progress: Progress) -> None:
        """Between the gradients and the optimizer's step, e.g. to hold a layer still at the start."""

    def after_step(self, progress: Progress) -> None:
        """After the optimizer's step, e.g. to move a teacher."""

    def result(self) -> nn.Module:
        """The backbone that is worth keeping: what is diagnosed while training and saved at the end."""
        return self.backbone


objectives = Catalog("tokenlens.training.objectives", "objective", base="Objective")


def options_of(name: str, values: Any) -> Any:
    """An objective's options from a mapping.

    Raises:
        LookupError: for an unknown objective or option, with the nearest names.
        ValueError: for a value that cannot be.
    """
    kind = objectives.get(name).Options
    known = list(kind.__dataclass_fields__)
    for option in values:
        if option not in known:
            close = nearest(option, known)
            hint = f" Did you mean {', '.join(close)}?" if close else ""
            raise LookupError(f"the objective {name} has no option {option!r}.{hint} Available: {', '.join(known)}.")
    return kind(**values)
