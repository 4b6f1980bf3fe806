"""The contract of a family: where the tokens of a kind of Vision Transformer are, and which module is behind each site.

Only families and ``specialization/`` know the inside of somebody's model. See docs/add-a-family.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from tokenlens.catalog import Catalog
from tokenlens.tokens import Site, TokenLayout

families = Catalog("tokenlens.families", "family", base="Family")


@dataclass(frozen=True)
class Tap:
    """The tensor of a site: the input or the output of a module.

    Of a tuple, as Hugging Face and ``nn.MultiheadAttention`` return, the first tensor is taken.

    Args:
        module: the module.
        side: its input or its output.
        plus: further modules whose outputs are added, where a block has several branches in parallel.
    """

    module: nn.Module
    side: Literal["input", "output"] = "output"
    plus: tuple[nn.Module, ...] = ()


@dataclass(frozen=True)
class BlockTaps:
    """The taps of one block.

    Args:
        sites: a tap for each site of the block. Those of ``norm1`` and ``norm2`` are the norm modules, whose input and
            output are both read. Sites that the block lacks are left out (a parallel block has no ``resid_mid``), and
            so are ``q``, ``k`` and ``v``, which are read at the attention kernel.
        attention: the module inside which the attention kernel runs, once per forward pass; None where attention is
            left out, because its pattern is not what the block mixes tokens with.
        parallel: number of attentions that run inside that module, side by side; the heads of all of them are joined.
        queries: number of tokens that attend, the first ones; None for all.
    """

    sites: Mapping[Site, Tap]
    attention: nn.Module | None
    parallel: int = 1
    queries: int | None = None


@dataclass(frozen=True)
class BlockComponents:
    """The modules of one block that can be specialized, as paths inside the block; empty where it has none.

    Args:
        norm: the norms over whole tokens, in order (not those of queries and keys).
        layer_scale: the gains per channel of both branches; a bare parameter is named like a module.
        qkv: the fused projection, or those of queries, keys and values.
        proj: the output projection of attention.
        mlp: the linear maps of the MLP.
        refused: the reason for each component that the block has, but not as separate modules.
    """

    norm: tuple[str, ...] = ()
    layer_scale: tuple[str, ...] = ()
    qkv: tuple[str, ...] = ()
    proj: tuple[str, ...] = ()
    mlp: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def of(self, component: str) -> tuple[str, ...]:
        """Return the paths of one component, or raise LookupError with the reason if it is refused."""
        if component in self.refused:
            raise LookupError(f"{component} cannot be specialized in this model: {self.refused[component]}")
        paths: tuple[str, ...] = getattr(self, component)
        return paths


@dataclass(frozen=True)
class Pooling:
    """The module in which a latent, a query that is a weight, pools the tokens by attention (a MAP head).

    Args:
        module: takes tokens (B, T, D), and returns the latent (B, D), or (B, latents, D).
        latents: number of latents.
        patches_only: whether it gets the patches without the special tokens.
    """

    module: nn.Module
    latents: int = 1
    patches_only: bool = False


class Family(ABC):
    """The knowledge about one kind of Vision Transformer; a family never converts or changes a model."""

    name: str = ""

    def matches(self, model: nn.Module) -> bool:
        """Return whether the model is of this family; not needed in a family that users pass themselves."""
        return False

    @abstractmethod
    def layout(self, model: nn.Module, image_size: tuple[int, int]) -> TokenLayout:
        """Return the token layout for images of (height, width) pixels; raise ValueError if they do not fit."""

    def block_layout(self, block: nn.Module, layout: TokenLayout) -> TokenLayout:
        """Return the tokens of one block of a model with this layout: the same, unless the block lacks some of them."""
        return layout

    def notes(self, model: nn.Module) -> list[str]:
        """Return sentences on what is left out of this model and why, for its reports."""
        return []

    @abstractmethod
    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        """Return the transformer blocks, first to last."""

    @abstractmethod
    def taps(self, block: nn.Module) -> BlockTaps:
        """Return the module behind each site of one block."""

    def components(self, block: nn.Module) -> BlockComponents:
        """Return the modules of one block that can be specialized; not needed for analysis.

        Raises:
            LookupError: if the family does not define this method.
        """
        raise LookupError(
            f"the family {type(self).__qualname__} does not define which modules of a block can be specialized; add a "
            "method components() (docs/add-a-family.md)"
        )

    def final_norm(self, model: nn.Module) -> nn.Module | None:
        """Return the norm over all tokens after the last block, or None if there is none."""
        return None

    def pooling(self, model: nn.Module) -> Pooling | None:
        """Return the module that pools the tokens by the attention of a latent, or None if there is none."""
        return None

    def forward(self, model: nn.Module, images: Tensor) -> Any:
        """Run the model as its users do, on images (B, 3, H, W)."""
        return model(images)


def residual_taps(
    block: nn.Module,
    attention: nn.Module,
    norms: tuple[nn.Module, nn.Module],
    branches: tuple[nn.Module, nn.Module],
    resid_mid: Tap | None = None,
) -> BlockTaps:
    """Return the taps of a block with two residual branches, attention and MLP.

    Args:
        block: the block.
        attention: the module inside which the attention kernel runs.
        norms: the norms of both branches.
        branches: the modules whose outputs are added to the residual stream.
        resid_mid: the residual stream between the branches; by default the input of the second norm.
    """
    sites = {
        Site.RESID_PRE: Tap(block, "input"),
        Site.NORM1: Tap(norms[0]),
        Site.ATTN_OUT: Tap(branches[0]),
        Site.RESID_MID: resid_mid or Tap(norms[1], "input"),
        Site.NORM2: Tap(norms[1]),
        Site.MLP_OUT: Tap(branches[1]),
        Site.RESID_POST: Tap(block),
    }
    return BlockTaps(sites, attention)


def find_family(model: nn.Module) -> Family:
    """Find the family of a model.

    Raises:
        LookupError: if there is none, or the model is compiled.
    """
    for path, module in model.named_modules():
        if is_a(module, "torch._dynamo.eval_frame.OptimizedModule") or module._compiled_call_impl is not None:
            raise LookupError(
                f"{path or 'the model'} is compiled (torch.compile); forward hooks do not fire reliably inside "
                "compiled code. Pass the original module: model._orig_mod, or a model before compile()."
            )
    for name in families.names():
        family: Family = families.get(name)()
        if family.matches(model):
            return family
    cls = type(model)
    inner = getattr(model, "module", None)
    wrapped = f"It wraps a {type(inner).__qualname__}; pass model.module. " if isinstance(inner, nn.Module) else ""
    raise LookupError(
        f"tokenlens has no family for {cls.__module__}.{cls.__qualname__}. {wrapped}Known families: "
        f"{', '.join(families.names())}. Write a Family with layout(), blocks() and taps(), and pass it as family=… "
        "(docs/add-a-family.md has a complete example)."
    )


def is_a(module: object, *classes: str) -> bool:
    """Return whether a module is an instance of one of these classes, given as import paths, without importing them.

    >>> is_a(nn.LayerNorm(4), "torch.nn.modules.normalization.LayerNorm")
    True
    """
    return any(f"{cls.__module__}.{cls.__qualname__}" in classes for cls in type(module).__mro__)


def as_height_width(size: Any) -> tuple[int, int]:
    """Convert an int or two of them to (height, width)."""
    if isinstance(size, int):
        return (size, size)
    height, width = size
    return (int(height), int(width))


def image_size_of(module: nn.Module) -> tuple[int, int] | None:
    """Return the (height, width) that a module states for its images, or None if it states none.

    Knows the attributes of timm, DINO and DINOv2, Hugging Face and torchvision.
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
            return as_height_width(size)
    published = getattr(module, "pretrained_cfg", None) or {}
    return as_height_width(published["input_size"][-2:]) if "input_size" in published else None


def linear_paths(block: nn.Module, name: str) -> tuple[str, ...]:
    """Return the paths of all ``nn.Linear`` modules in the child ``name`` of a block, in order."""
    child = block.get_submodule(name)
    return tuple(f"{name}.{path}" for path, module in child.named_modules() if isinstance(module, nn.Linear))


def grid_of(image_size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Return the patch grid of an image; raise ValueError if its sides are not multiples of the patch size."""
    if image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
        raise ValueError(
            f"images of {image_size[0]}×{image_size[1]} pixels do not divide into patches of "
            f"{patch_size[0]}×{patch_size[1]}"
        )
    return (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
