"""Writing a specialized model of timm's kind: weights and a configuration, all that is needed to rebuild it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from timm.models import save_for_hf
from torch import nn

from tokenlens.specialization._plan import plan_of


def save(model: nn.Module, folder: str | os.PathLike[str], name: str = "model.safetensors") -> Path:
    """Write ``config.json`` and the weights, in the format of timm's ``save_for_hf`` and of the Hugging Face hub.

    ``timm.create_model("local-dir:FOLDER", pretrained=True)`` rebuilds the model wherever tokenlens is imported, and so
    does ``hf-hub:`` after an upload; ``timm.models.push_to_hf_hub(model, …)`` writes the same. The weights are written
    first elsewhere and then moved, so that an interrupt leaves no half file.

    Args:
        model: specialized, made by timm.
        folder: is made where it is not there.
        name: of the file of weights.

    Returns:
        The file of weights.

    Raises:
        ValueError: if the model is not specialized or not one that timm made.
    """
    if plan_of(model) is None:
        raise ValueError(f"this {type(model).__qualname__} is not specialized; specialize it first")
    if "specialized" not in (getattr(model, "pretrained_cfg", None) or {}):
        raise ValueError(
            f"this {type(model).__qualname__} was not made by timm.create_model, so no configuration can rebuild it; "
            "save its state dict, and load that into the standard model after specialize()"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        made = Path(temporary)
        save_for_hf(model, str(made), safe_serialization=True)
        shutil.move(made / "model.safetensors", folder / name)
        shutil.move(made / "config.json", folder / "config.json")
    return folder / name
