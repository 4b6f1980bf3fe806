"""Find the models that come with tokenlens: one folder each, written by ``shipping/make.py``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

CARD = "MODEL_CARD.md"
NOTICE = "NOTICE"

_FOLDERS = Path(__file__).parent


def list_names() -> tuple[str, ...]:
    """Return the names of the models.

    >>> list_names()
    ('tokenlens_tiny', 'tokenlens_tiny_specialized')
    """
    return tuple(sorted(file.parent.name for file in _FOLDERS.glob(f"*/{CARD}")))


def find_folder(name: str) -> Path:
    """Return a model's folder.

    It holds ``model.safetensors`` (float16), ``config.json`` (timm's format), ``MODEL_CARD.md`` and ``NOTICE``.

    Raises:
        LookupError: if no model of that name comes with tokenlens.
    """
    if name not in list_names():
        raise LookupError(f"no model called {name!r} comes with tokenlens; available: {', '.join(list_names())}")
    return _FOLDERS / name


def describe(name: str) -> str:
    """Return the first sentence of a model's card.

    >>> describe("tokenlens_tiny").startswith("Vision Transformer")
    True
    """
    lines = (find_folder(name) / CARD).read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line and not line.startswith("#"))


def describe_source() -> str:
    """Return how results name the source of the weights."""
    return f"shipped with tokenlens {version('tokenlens-vit')}"
