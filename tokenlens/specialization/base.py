"""The base class of components, and the base class of modules with separate weights for special tokens and patches."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from tokenlens.catalog import Catalog
from tokenlens.families.base import Family
from tokenlens.specialization._functions import Positions

components = Catalog("tokenlens.specialization", "component", base="Component")


class SpecializedModule(nn.Module):
    """A module with separate weights for special tokens and patches, called once with all tokens (B, T, D).

    Both start as the weights of the standard module. The children ``cls`` and ``patch`` hold them: two modules of the
    standard kind that are never called themselves, so register hooks on the specialized module.

    Args:
        standard: the module to replace; it becomes ``patch``, and a copy of it ``cls``.
        positions: positions of the special tokens in the sequence; negative ones count from its end.
    """

    def __init__(self, standard: nn.Module, positions: Positions) -> None:
        super().__init__()
        self.cls = copy.deepcopy(standard)
        self.patch = standard
        self.positions = positions
        self.training = standard.training

    def map_names(self, path: str) -> dict[str, tuple[str, str]]:
        """Map each state-dict name of the standard module at ``path`` to its names here: for ``cls`` and ``patch``."""
        return {f"{path}.{key}": (f"{path}.cls.{key}", f"{path}.patch.{key}") for key in self.patch.state_dict()}

    def install(self, owner: nn.Module, name: str) -> None:
        """Replace the standard module ``owner.name`` by this one."""
        setattr(owner, name, self)

    def remove(self, owner: nn.Module, name: str) -> None:
        """Replace this module by a standard one with the mean of both weights."""
        setattr(owner, name, self.merge())

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """Set the weights of ``patch`` to the mean of both, and return it."""
        cls = dict(self.cls.named_parameters())
        for name, parameter in self.patch.named_parameters():
            parameter.copy_((parameter + cls[name]) / 2)
        return self.patch

    def extra_repr(self) -> str:
        """Return the special positions, for ``repr``."""
        return f"special tokens at {', '.join(map(str, self.positions))}"


class Component(ABC):
    """A kind of module that can be specialized, defined by one file of ``tokenlens/specialization/``.

    The file's name is the component's name, and the field of ``Specialization`` that selects its blocks.
    """

    takes_final_norm = False
    """Whether the component includes the model's final norm, which is specialized with the last block."""

    def paths(self, family: Family, block: nn.Module) -> Sequence[str]:
        """Return the paths of the modules or bare parameters inside a block, by default those that the family names.

        Raises:
            LookupError: if the block has the component, but not as modules of their own.
        """
        return family.components(block).of(type(self).__module__.rpartition(".")[2])

    @abstractmethod
    def specialize(self, owner: nn.Module, name: str, positions: Positions) -> SpecializedModule:
        """Return a module to replace ``owner.name``; the caller installs it.

        Raises:
            LookupError: for a module whose computation the component does not know.
        """


def unsupported_module(owner: nn.Module, name: str, reason: str) -> LookupError:
    """Return the error for a module that cannot be specialized."""
    cls = type(getattr(owner, name))
    return LookupError(f"{name} of a {type(owner).__qualname__}, a {cls.__module__}.{cls.__qualname__}, {reason}")
