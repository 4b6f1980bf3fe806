"""The Jupyter widget: sends views to the browser and receives selections."""

# Shapes: h, w the patch grid.

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import matplotlib
import numpy as np
import traitlets
from numpy.typing import NDArray
from PIL import Image

from tokenlens.explorer.exploration import Exploration, Number, Selection, View, grid_share
from tokenlens.figures.style import COLOURS, DIVERGING, SEQUENTIAL
from tokenlens.overlays.maps import photograph
from tokenlens.overlays.selection import image_title, model_title, token_title
from tokenlens.recording.recording import Recording

_HERE = Path(__file__).parent


class Explorer(anywidget.AnyWidget):
    """The widget returned by ``tokenlens.explore``.

    Args:
        recordings: recordings of the same images, one per model.

    Attributes:
        selection: what is shown, a dict with the fields of ``Selection``; set by the browser and by ``select``.
        exploration: computes the views, without a browser.
    """

    _esm = _HERE / "explorer.js"
    _css = _HERE / "explorer.css"

    selection = traitlets.Dict().tag(sync=True)
    choices = traitlets.Dict().tag(sync=True)
    photographs: Any = traitlets.List().tag(sync=True)
    views: Any = traitlets.List().tag(sync=True)
    colours = traitlets.Dict().tag(sync=True)

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.exploration = Exploration(recordings)
        self._shown_image: int | None = None
        start = self.exploration.start()
        super().__init__(
            selection=_plain(start),
            choices=self._choices(),
            colours={"sequential": _table(SEQUENTIAL), "diverging": _table(DIVERGING), "mark": COLOURS["cls"]},
        )
        self._show()

    def select(self, **changes: Any) -> Explorer:
        """Select another image, block, site, head or token, e.g. ``select(block=3, token=(4, 9))``.

        Raises:
            LookupError: if no model has it; the selection is unchanged then.
        """
        self.selection = _plain(self.exploration.choose(Selection(**self.selection), **changes))
        return self

    @traitlets.validate("selection")
    def _check(self, proposal: Any) -> dict[str, Any]:
        return _plain(self.exploration.choose(self.exploration.start(), **proposal["value"]))

    @traitlets.observe("selection")
    def _changed(self, _change: Any) -> None:
        self._show()

    def _choices(self) -> dict[str, Any]:
        exploration = self.exploration
        return {
            "images": exploration.images,
            "blocks": exploration.blocks,
            "sites": exploration.sites,
            "heads": exploration.heads,
            "prefix": [{"name": name, "title": token_title(name)} for name in exploration.prefix],
            "models": [
                {
                    "title": model_title(recording),
                    "grid": list(recording.layout.grid),
                    "share": list(grid_share(recording)),
                }
                for recording in exploration.recordings
            ],
        }

    def _show(self) -> None:
        chosen = self.exploration.choose(self.exploration.start(), **self.selection)
        with self.hold_sync():
            if chosen.image != self._shown_image:
                self._shown_image = chosen.image
                self.photographs = [_jpeg(photograph(r, chosen.image)) for r in self.exploration.recordings]
            self.views = [_packed(view) | {"site": chosen.site} for view in self.exploration.views(chosen)]

    def __repr__(self) -> str:
        models = " and ".join(model_title(recording) for recording in self.exploration.recordings)
        selection = Selection(**self.selection)
        image = image_title(self.exploration.recordings[0], selection.image)
        return f"Explorer({models}: {image}, block {selection.block}, {selection.site}, token {selection.token})"


def _plain(selection: Selection) -> dict[str, Any]:
    """Convert a selection to JSON-compatible values; a patch becomes a list."""
    fields = asdict(selection)
    return fields if isinstance(selection.token, str) else fields | {"token": list(selection.token)}


def _packed(view: View) -> dict[str, Any]:
    """Convert a view for the browser: maps to little-endian float32 bytes, numbers to text."""

    def bytes_of(map_hw: NDArray[Any] | None) -> bytes | None:
        return None if map_hw is None else np.ascontiguousarray(map_hw, dtype="<f4").tobytes()

    others = None
    if view.cosine_hw is not None:
        others = np.abs(view.cosine_hw)
        if not isinstance(view.token, str):
            others[view.token] = 0
    return {
        "block": view.block,
        "token": view.token if isinstance(view.token, str) else list(view.token),
        "title": token_title(view.token),
        "cosine": bytes_of(view.cosine_hw),
        "cosine_limit": 1.0 if others is None else max(float(others.max()), 0.01),
        "attention": bytes_of(view.attention_hw),
        "cls_attention": bytes_of(view.cls_attention_hw),
        "high": None if view.high_hw is None else np.argwhere(view.high_hw).tolist(),
        "numbers": [[number.label, _text(number)] for number in view.numbers],
        "notes": view.notes,
    }


def _text(number: Number) -> str:
    if number.label == "high-norm token":
        return "yes" if number.value else "no"
    if number.label.startswith("cosine"):
        return f"{number.value:+.3f}".replace("-", "−")
    if number.unit == "%":
        return f"{number.value:.2f} %"
    return f"{number.value:.4g}"


def _jpeg(pixels: NDArray[np.float32]) -> bytes:
    written = io.BytesIO()
    Image.fromarray((pixels * 255).round().astype(np.uint8)).save(written, "JPEG", quality=92)
    return written.getvalue()


def _table(name: str) -> bytes:
    """Return a colour map as 256 × RGBA bytes."""
    table: NDArray[np.uint8] = matplotlib.colormaps[name](np.arange(256), bytes=True)
    return table.tobytes()
