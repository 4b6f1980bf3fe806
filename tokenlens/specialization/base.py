"""The contract of a component, and what all modules with two sets of weights have in common."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokenlens.catalog import Catalog
from tokenlens.families.base import Family
from tokenlens.specialization._functions import Positions

components = Catalog("tokenlens.specialization", "component", base="Component")


class SpecializedModule(nn.Module):
    """A module with one set of weights for the prefix tokens and one for the patches, called once with (B, T, D).

    Both start as the weights of the standard module. They are held by the children ``cls`` and ``patch``, two modules
    of the standard kind that are never called themselves: hooks belong on the specialized module.

    Args:
        standard: the module that is replaced; it becomes ``patch``, a copy of it ``cls``.
        positions: of the prefix tokens in the sequence, negative ones from its end.
    """

    def __init__(self, standard: nn.Module, positions: Positions) -> None:
        super().__init__()
        self.cls = copy.deepcopy(standard)
        self.patch = standard
        self.positions = positions
        self.training = standard.training

    def keys(self, path: str) -> dict[str, tuple[str, str]]:
        """For each name in a standard model's state dict the two names it has here; ``path`` is the module's own."""
        return {f"{path}.{key}": (f"{path}.cls.{key}", f"{path}.patch.{key}") for key in self.patch.state_dict()}

    def install(self, owner: nn.Module, name: str) -> None:
        """Take the place of the standard module."""
        setattr(owner, name, self)

    def remove(self, owner: nn.Module, name: str) -> None:
        """Put a standard module back, with the mean of both sets."""
        setattr(owner, name, self.merged())

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The child ``patch`` with the mean of both sets."""
        other = dict(self.cls.named_parameters())
        for name, parameter in self.patch.named_parameters():
            parameter.copy_((parameter + other[name]) / 2)
        return self.patch

    def extra_repr(self) -> str:
        return f"prefix tokens at {', '.join(map(str, self.positions))}"


class Component(ABC):
    """One kind of module that can hold two sets of weights. A file of ``tokenlens/specialization/`` defines one.

    The file's name is the component's name, and the field of ``Specialization`` that says in which blocks.
    """

    takes_final_norm = False
    """Whether the model's final norm belongs to it, too (then it goes with the last block)."""

    @abstractmethod
    def paths(self, family: Family, block: nn.Module) -> Sequence[str]:
        """Paths of the modules (or bare parameters) inside one block; none where the block has no such thing.

        Raises:
            LookupError: where the block has it, but not as modules of their own.
        """

    @abstractmethod
    def specialized(self, owner: nn.Module, name: str, positions: Positions) -> SpecializedModule:
        """The module that takes the place of ``owner.name``, not yet installed.

        Raises:
            LookupError: for a module that it does not know.
        """


def autocast_to(dtype: torch.dtype, tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """As autocast casts the arguments of an operation: floating point, but not float64, differentiably.

    Done before a custom function is entered, because what autocast casts inside it would be kept in its cache without
    a way back to the weight, and a second use of the weight would get no gradient.
    """
    return [x.to(dtype) if x is not None and x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors]


def autocasting(x: Tensor) -> bool:
    """Whether autocast would cast this tensor."""
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64


def refused(owner: nn.Module, name: str, why: str) -> LookupError:
    """The error for a module that cannot hold two sets."""
    cls = type(getattr(owner, name))
    return LookupError(f"{name} of a {type(owner).__qualname__}, a {cls.__module__}.{cls.__qualname__}, {why}")
