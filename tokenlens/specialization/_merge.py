"""Turn a specialized model back into a standard one, by averaging its weights."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenlens.families import SplitNorm
from tokenlens.families.base import Family, find_family, image_size_of
from tokenlens.recording.recorder import evaluating
from tokenlens.specialization._plan import find_owner, get_plan, remove_plan
from tokenlens.specialization._save import describe_as_standard
from tokenlens.specialization._state_dict import refuse_standard_names
from tokenlens.specialization.base import SpecializedModule

NOISE_IMAGES = 8


@dataclass(frozen=True)
class MergeResult:
    """A merged model, and how merging changed its final features (after the last block and the final norm).

    Args:
        model: the merged model, the same module as before.
        change: for each token group ‖after − before‖ / ‖before‖, over all tokens of the group in all images; 0 if both
            weights were equal.
        cosine: for each token group the mean over tokens of cos(before, after), in [−1, 1].
        images: number and kind of the images on which that was measured.
    """

    model: nn.Module
    change: dict[str, float]
    cosine: dict[str, float]
    images: str


def merge(model: nn.Module, images: Tensor | None = None, *, family: Family | None = None) -> MergeResult:
    """Average the weights for special tokens and patches in place, and measure how that changes the features.

    Args:
        model: a specialized model.
        images: preprocessed images (B, 3, height, width); by default 8 images of Gaussian noise, which tell whether the
            weights differ, and little about photographs.
        family: the family that was passed to ``specialize``.

    Raises:
        ValueError: if the model is not specialized.
    """
    plan = get_plan(model)
    if plan is None:
        raise ValueError(f"this {type(model).__qualname__} is not specialized, so there is nothing to merge")
    family = family or find_family(model)
    what = f"{NOISE_IMAGES} images of Gaussian noise" if images is None else f"{len(images)} images"
    if images is None:
        size = image_size_of(model) or (224, 224)
        parameter = next(model.parameters())
        noise = torch.randn(NOISE_IMAGES, 3, *size, generator=torch.Generator().manual_seed(0))
        images = noise.to(parameter.device, parameter.dtype)
    before_BTD = _compute_features(model, family, images)
    for planned in plan.modules:
        owner, name = find_owner(model, planned.path)
        module = getattr(owner, name)
        assert isinstance(module, SpecializedModule)
        module.remove(owner, name)
    refuse_standard_names(model)
    describe_as_standard(model)
    remove_plan(model)
    after_BTD = _compute_features(model, family, images)
    layout = family.layout(model, (images.shape[-2], images.shape[-1]))
    change, cosine = {}, {}
    for group in layout.groups:
        positions = torch.tensor(layout.positions(group), device=images.device)
        before, after = before_BTD.index_select(1, positions), after_BTD.index_select(1, positions)
        change[group] = float((after - before).norm() / before.norm())
        cosine[group] = float(nn.functional.cosine_similarity(before, after, dim=-1).mean())
    return MergeResult(model, change, cosine, what)


def _compute_features(model: nn.Module, family: Family, images: Tensor) -> Tensor:
    """Return the final features (B, T, D) in float64."""
    outputs: list[Tensor] = []
    norm = family.final_norm(model)
    split = isinstance(norm, SplitNorm)

    def keep(_module: nn.Module, _args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        x = output if isinstance(output, Tensor) else output[0]
        outputs.append((norm(x) if norm is not None and split else x).double())

    hook = (family.blocks(model)[-1] if norm is None or split else norm).register_forward_hook(keep)
    try:
        with evaluating(model):
            family.forward(model, images)
    finally:
        hook.remove()
    return outputs[-1]
