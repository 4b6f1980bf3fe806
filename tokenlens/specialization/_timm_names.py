"""Specialized models by name in timm. Importing this file registers them.

It is imported right after timm, maybe in the middle of the import of this very package: on top it imports timm alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import timm
from timm.models import load_pretrained, register_model
from torch import nn

if TYPE_CHECKING:
    from tokenlens.specialization._specialization import Specialization

SIZES = (
    *(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")),
    *(f"deit3_{size}_patch16_224" for size in ("small", "base", "large")),
    *(f"vit_{size}_patch14_{kind}" for size in ("small", "base", "large") for kind in ("dinov2", "reg4_dinov2")),
)
"""timm's architectures of the paper's kinds and sizes; each is registered again with ``_specialized`` added."""


@register_model
def specialized_vit(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    architecture: str | None = None,
    specialization: str | Mapping[str, Any] | Specialization | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Any Vision Transformer of timm, specialized.

    Args:
        pretrained: load weights: those published for the architecture, or those beside a saved specialized model.
        pretrained_cfg: as timm hands it over; of a saved specialized model it says the architecture and specialization.
        pretrained_cfg_overlay: as timm hands it over.
        architecture: timm's name of the standard model, with or without a weights tag.
        specialization: a preset's name, or what ``Specialization.to_dict`` gave.
        kwargs: of the standard model.

    Raises:
        ValueError: without an architecture.
    """
    from tokenlens.specialization import has_two_sets, specialize

    config = dict(pretrained_cfg) if isinstance(pretrained_cfg, Mapping) else pretrained_cfg
    saved = config.pop("specialized", None) if isinstance(config, dict) else None
    if saved is not None:
        architecture, specialization = saved["architecture"], saved["specialization"]
    if architecture is None:
        raise ValueError("specialized_vit needs architecture=…, the name of a standard model of timm")
    two_sets = saved is not None or has_two_sets((pretrained_cfg_overlay or {}).get("state_dict") or {})
    model = timm.create_model(
        architecture, pretrained=pretrained and not two_sets, pretrained_cfg=config,
        pretrained_cfg_overlay=pretrained_cfg_overlay, **kwargs,
    )  # fmt: skip
    specialize(model, "paper" if specialization is None else specialization)
    if pretrained and two_sets:
        _load(model)
    return model


def _load(model: Any) -> None:
    """As timm's own factory loads weights, after the model was specialized."""
    config = model.pretrained_cfg
    modules = (sys.modules.get(cls.__module__) for cls in type(model).__mro__)
    adapt = next((found for module in modules if (found := getattr(module, "checkpoint_filter_fn", None))), None)
    load_pretrained(
        model, pretrained_cfg=config, num_classes=model.num_classes, in_chans=getattr(model, "in_chans", 3),
        filter_fn=adapt,
    )  # fmt: skip


def _register(architecture: str) -> None:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return specialized_vit(pretrained, **{"architecture": architecture} | kwargs)

    entry_point.__name__ = entry_point.__qualname__ = f"{architecture}_specialized"
    entry_point.__doc__ = f"{architecture}, specialized as in the paper, or by ``specialization=…``."
    register_model(entry_point)


for _name in SIZES:
    _register(_name)
