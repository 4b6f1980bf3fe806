"""Kinds of Vision Transformer: for each, where its tokens are and which module is behind each site.

One file per family; this file holds the contract. A family is the only place, with ``specialization/``, that knows the
inside of somebody's model. See docs/add-a-family.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from tokenlens.catalog import Catalog
from tokenlens.families._norms import NormParameters, norm_parameters
from tokenlens.tokens import Site, TokenLayout

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


@dataclass(frozen=True)
class BlockComponents:
    """Which modules of one block can be specialized: paths inside the block, by component.

    Args:
        norm: the norms that see whole tokens, in order (not those of queries and keys).
        layer_scale: the gains per channel of both branches; a bare parameter is named like a module.
        qkv: the fused projection, or those of queries, keys and values.
        proj: the attention's output projection.
        mlp: the linear maps of the MLP.
        refused: for a component that the block has, but not as modules of their own, why not.

    A component that the block lacks is left empty.
    """

    norm: tuple[str, ...] = ()
    layer_scale: tuple[str, ...] = ()
    qkv: tuple[str, ...] = ()
    proj: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def of(self, component: str) -> tuple[str, ...]:
        """The paths of one component; LookupError with the reason where it is refused."""
        if component in self.refused:
            raise LookupError(f"{component} cannot be specialized in this model: {self.refused[component]}")
        paths: tuple[str, ...] = getattr(self, component)
        return paths


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

    def components(self, block: nn.Module) -> BlockComponents:
        """The modules of one block that can be specialized; a family that is only for analysis need not say.

        Raises:
            LookupError: if the family does not say.
        """
        raise LookupError(
            f"the family {type(self).__qualname__} does not say which modules of a block can be specialized; give it "
            "a method components() (docs/add-a-family.md)"
        )

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


def image_size_of(module: nn.Module) -> tuple[int, int] | None:
    """(height, width) of the images a module takes, as it says itself; None where it does not.

    Read from timm, DINO and DINOv2, Hugging Face and torchvision.
    """
    config = getattr(module, "config", None)
    for owner, attribute in (
        (getattr(module, "patch_embed", None), "img_size"),
        (config, "image_size"),
        (getattr(config, "vision_config", None), "image_size"),
        (module, "image_size"),
        (module, "img_size"),
    ):
        size = getattr(owner, attribute, None)
        if isinstance(size, Mapping):
            size = (size["height"], size["width"])
        if isinstance(size, int | Sequence):
            return as_pair(size)
    published = getattr(module, "pretrained_cfg", None) or {}
    return as_pair(published["input_size"][-2:]) if "input_size" in published else None


def linear_paths(block: nn.Module, name: str) -> tuple[str, ...]:
    """Paths inside a block of all ``nn.Linear`` modules in its child ``name``, in order."""
    child = block.get_submodule(name)
    return tuple(f"{name}.{path}" for path, module in child.named_modules() if isinstance(module, nn.Linear))


def grid_of(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """The patch grid of an image; ValueError if the sides are no multiples of the patch's."""
    if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
        raise ValueError(
            f"images of {image_size[0]}×{image_size[1]} pixels do not divide into patches of "
            f"{patch_size[0]}×{patch_size[1]}"
        )
    return (image_size[0] // patch_size[0], image_size[1] // patch_size[1])


__all__ = [
    "BlockComponents",
    "BlockTaps",
    "Family",
    "NormParameters",
    "Tap",
    "as_pair",
    "families",
    "find_family",
    "grid_of",
    "image_size_of",
    "is_a",
    "linear_paths",
    "norm_parameters",
]
