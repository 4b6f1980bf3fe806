"""Specialized models, and those that come with tokenlens, by name in timm. Importing this file registers them.

It is imported right after timm, maybe in the middle of the import of this very package: on top it imports timm alone,
and what needs the standard library alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import timm
from timm.models import PretrainedCfg, generate_default_cfgs, load_pretrained, register_model
from torch import nn

from tokenlens.models import shipped

if TYPE_CHECKING:
    from tokenlens.specialization import Specialization

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
        architecture,
        pretrained=pretrained and not two_sets,
        pretrained_cfg=config,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        **kwargs,
    )
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
        model,
        pretrained_cfg=config,
        num_classes=model.num_classes,
        in_chans=getattr(model, "in_chans", 3),
        filter_fn=adapt,
    )


def _register(architecture: str) -> None:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return specialized_vit(pretrained, **{"architecture": architecture} | kwargs)

    entry_point.__name__ = entry_point.__qualname__ = f"{architecture}_specialized"
    entry_point.__doc__ = f"{architecture}, specialized as in the paper, or by ``specialization=…``."
    register_model(entry_point)


def _register_shipped(name: str) -> None:
    def entry_point(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        if isinstance(pretrained_cfg, str):
            raise RuntimeError(f"{name} has no weights tagged {pretrained_cfg!r}; its name goes without a tag")
        # timm's scripts hand over what `_published` told them; a folder brings its own, so theirs goes on top of it.
        given = asdict(pretrained_cfg) if isinstance(pretrained_cfg, PretrainedCfg) else dict(pretrained_cfg or {})
        overlay = {key: value for key, value in given.items() if value is not None and key not in _OF_THE_FOLDER}
        overlay |= pretrained_cfg_overlay or {}
        folder = shipped.folder_of(name)
        if pretrained and not {"file", "state_dict"} & overlay.keys():
            from tokenlens.models.checkpoints import read_checkpoint

            # In float32, so that resampling for another size does not round to float16 again.
            overlay |= {"state_dict": read_checkpoint(folder / "model.safetensors").tensors, "source": ""}
        model = timm.create_model(f"local-dir:{folder}", pretrained, pretrained_cfg_overlay=overlay, **kwargs)
        vars(model)["pretrained_cfg"].pop("state_dict", None)  # timm would keep a copy of all weights there
        return model

    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = shipped.describe(name)
    register_model(entry_point)


def _published(name: str) -> dict[str, Any]:
    """What timm's list of pretrained models tells of a model that comes with tokenlens."""
    folder = shipped.folder_of(name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
    known = {field.name for field in fields(PretrainedCfg)}
    return {key: value for key, value in config.items() if key in known} | {"file": str(folder / "model.safetensors")}


_OF_THE_FOLDER = ("architecture", "tag", "file", "source")
"""What a shipped model's own folder says better than timm's list."""

default_cfgs = generate_default_cfgs({name: _published(name) for name in shipped.names()})  # timm looks for that name

for _name in SIZES:
    _register(_name)
for _name in shipped.names():
    _register_shipped(_name)
