"""Kinds of Vision Transformer: for each, where its tokens are and which module is behind each site.

One file per family; this file holds the contract. A family is the only place, with ``specialization/``, that knows the
inside of somebody's model. See docs/add-a-family.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from tokenlens.catalog import Catalog
from tokenlens.families._norms import NormParameters, norm_parameters
from tokenlens.recording import Site
from tokenlens.tokens import TokenLayout

families = Catalog("tokenlens.families", "family", base="Family")


@dataclass(frozen=True)
class Tap:
    """Where a site's tensor passes: the input or the output of one module.

    A module that returns a tuple (Hugging Face, ``nn.MultiheadAttention``) is read at its first element.
    """

    module: nn.Module
    side: Literal["input", "output"] = "output"


@dataclass(frozen=True)
class BlockTaps:
    """The taps of one block.

    Args:
        sites: a tap for each site the block has. ``norm1`` and ``norm2`` name the norm modules themselves: both their
            input and their output are read. ``q``, ``k`` and ``v`` are not listed, they come from the attention kernel.
            A block that lacks a site (a parallel block has no ``resid_mid``) leaves it out.
        attention: the module inside which the attention kernel runs, once per forward.
    """

    sites: Mapping[Site, Tap]
    attention: nn.Module


class Family(ABC):
    """What tokenlens must know about one kind of Vision Transformer. Never converts or changes the model."""

    name: str = ""

    def matches(self, model: nn.Module) -> bool:
        """Whether this family owns the model. A family that is handed over by the user need not say."""
        return False

    @abstractmethod
    def layout(self, model: nn.Module, image_size: tuple[int, int]) -> TokenLayout:
        """Token groups and patch grid for images of (height, width) pixels; ValueError where they do not fit."""

    @abstractmethod
    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """The transformer blocks, first to last."""

    @abstractmethod
    def taps(self, block: nn.Module) -> BlockTaps:
        """The module behind each site of one block."""

    def final_norm(self, model: nn.Module) -> nn.Module | None:
        """The norm over all tokens after the last block; None where there is none (then the site is left out)."""
        return None

    def forward(self, model: nn.Module, images: Tensor) -> Any:
        """Run the model as its users do, on images (B, 3, H, W)."""
        return model(images)


def find_family(model: nn.Module) -> Family:
    """The family that owns a model.

    Raises:
        LookupError: if none does; the message names the model's class and what a family must provide.
    """
    for path, module in model.named_modules():
        if is_a(module, "torch._dynamo.eval_frame.OptimizedModule") or module._compiled_call_impl is not None:
            raise LookupError(
                f"{path or 'the model'} is compiled (torch.compile); forward hooks do not fire reliably inside "
                "compiled code. Hand over the original module: model._orig_mod, or a model without a call of compile()."
            )
    for name in families.names():
        family: Family = families.get(name)()
        if family.matches(model):
            return family
    cls = type(model)
    inner = getattr(model, "module", None)
    wrapped = f"It wraps a {type(inner).__qualname__}; hand over model.module. " if isinstance(inner, nn.Module) else ""
    raise LookupError(
        f"no family of tokenlens owns a {cls.__module__}.{cls.__qualname__}. {wrapped}Known families: "
        f"{', '.join(families.names())}. A Family must provide layout(), blocks() and taps(); write one and hand it "
        "over as family=… (docs/add-a-family.md shows one in full)."
    )


def is_a(module: object, *classes: str) -> bool:
    """Whether a module is an instance of one of these classes, given as import paths; imports nothing.

    >>> is_a(nn.LayerNorm(4), "torch.nn.modules.normalization.LayerNorm")
    True
    """
    return any(f"{cls.__module__}.{cls.__qualname__}" in classes for cls in type(module).__mro__)


def as_pair(size: Any) -> tuple[int, int]:
    """An int or a pair as (height, width)."""
    if isinstance(size, int):
        return (size, size)
    height, width = size
    return (int(height), int(width))


def grid_of(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """The patch grid of an image; ValueError if the sides are no multiples of the patch's."""
    if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
        raise ValueError(
            f"images of {image_size[0]}×{image_size[1]} pixels do not divide into patches of "
            f"{patch_size[0]}×{patch_size[1]}"
        )
    return (image_size[0] // patch_size[0], image_size[1] // patch_size[1])


__all__ = [
    "BlockTaps", "Family", "NormParameters", "Tap", "as_pair", "families", "find_family", "grid_of", "is_a",
    "norm_parameters",
]
