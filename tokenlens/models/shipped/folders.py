"""The models that come with tokenlens, a folder each: weights, configuration and model card, so without a download.

See docs/shipped-models.md; ``shipping/make.py`` writes the folders. Only the standard library is imported here, so that
timm's names can be registered in the middle of any import.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

CARD = "MODEL_CARD.md"

_FOLDERS = Path(__file__).parent


def names() -> tuple[str, ...]:
    """Their names, which are taken wherever a model's name is.

    >>> names()
    ('tokenlens_tiny', 'tokenlens_tiny_specialized')
    """
    return tuple(sorted(file.parent.name for file in _FOLDERS.glob(f"*/{CARD}")))


def folder_of(name: str) -> Path:
    """The folder of a model: ``model.safetensors`` (float16), ``config.json`` (timm's format) and ``MODEL_CARD.md``.

    Raises:
        LookupError: if no model of that name comes with tokenlens.
    """
    if name not in names():
        raise LookupError(f"no model called {name!r} comes with tokenlens; available: {', '.join(names())}")
    return _FOLDERS / name


def describe(name: str) -> str:
    """What the model is, in the first sentence of its card.

    >>> describe("tokenlens_tiny").startswith("Vision Transformer")
    True
    """
    lines = (folder_of(name) / CARD).read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line and not line.startswith("#"))


def origin() -> str:
    """Where the weights are from, in words."""
    return f"shipped with tokenlens {version('tokenlens-vit')}"
