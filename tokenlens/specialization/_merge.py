"""A standard model again: the mean of both sets of weights, and how much that changes."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenlens.families.base import Family, find_family, image_size_of
from tokenlens.recording.recorder import evaluating
from tokenlens.specialization._plan import forget_plan, owner_of, plan_of
from tokenlens.specialization._state_dict import refuse_standard_names
from tokenlens.specialization._timm_config import describe_as_standard
from tokenlens.specialization.base import SpecializedModule

NOISE_IMAGES = 8


@dataclass(frozen=True)
class Merged:
    """A standard model, and what merging changed in its final features (after the last block and the final norm).

    Args:
        model: the same module, with one set of weights everywhere.
        change: for each token group ‖after − before‖ / ‖before‖, over all tokens of the group in all images; 0 where
            the two sets were equal.
        cosine: for each token group the mean over tokens of cos(before, after), in [−1, 1].
        images: how many images that was measured on, and what they were.
    """

    model: nn.Module
    change: dict[str, float]
    cosine: dict[str, float]
    images: str


def merge(model: nn.Module, images: Tensor | None = None, *, family: Family | None = None) -> Merged:
    """Average the two sets of every specialized module, in place, and measure what that changes.

    Args:
        model: specialized.
        images: (B, 3, height, width), preprocessed; by default 8 images of Gaussian noise, which say whether the two
            sets differ, and little about photographs.
        family: as it was handed to ``specialize``.

    Raises:
        ValueError: if the model is not specialized.
    """
    plan = plan_of(model)
    if plan is None:
        raise ValueError(f"this {type(model).__qualname__} is not specialized: it has one set of weights already")
    family = family or find_family(model)
    what = f"{NOISE_IMAGES} images of Gaussian noise" if images is None else f"{len(images)} images"
    if images is None:
        size = image_size_of(model) or (224, 224)
        parameter = next(model.parameters())
        noise = torch.randn(NOISE_IMAGES, 3, *size, generator=torch.Generator().manual_seed(0))
        images = noise.to(parameter.device, parameter.dtype)
    before_BTD = _features(model, family, images)
    for replacement in plan.replacements:
        owner, name = owner_of(model, replacement.path)
        module = getattr(owner, name)
        assert isinstance(module, SpecializedModule)
        module.remove(owner, name)
    refuse_standard_names(model)
    describe_as_standard(model)
    forget_plan(model)
    after_BTD = _features(model, family, images)
    layout = family.layout(model, (images.shape[-2], images.shape[-1]))
    change, cosine = {}, {}
    for group in layout.groups:
        positions = torch.tensor(layout.positions(group), device=images.device)
        before, after = before_BTD.index_select(1, positions), after_BTD.index_select(1, positions)
        change[group] = float((after - before).norm() / before.norm())
        cosine[group] = float(nn.functional.cosine_similarity(before, after, dim=-1).mean())
    return Merged(model, change, cosine, what)


def _features(model: nn.Module, family: Family, images: Tensor) -> Tensor:
    """The final features (B, T, D), in float64."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        kept.append((output if isinstance(output, Tensor) else output[0]).double())

    handle = (family.final_norm(model) or family.blocks(model)[-1]).register_forward_hook(keep)
    try:
        with evaluating(model):
            family.forward(model, images)
    finally:
        handle.remove()
    return kept[-1]
