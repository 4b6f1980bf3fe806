"""The Jupyter widget: sends views to the browser and receives selections."""

# Shapes: h, w the patch grid.

from __future__ import annotations

import asyncio
import base64
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
from tokenlens.explorer.panels import Panel, panels_of, set_scales
from tokenlens.explorer.still import WIDTH_PX, draw_still
from tokenlens.figures.style import COLOURS, DIVERGING, SEQUENTIAL
from tokenlens.overlays.maps import photograph
from tokenlens.overlays.selection import image_title, model_title, token_title
from tokenlens.recording.recording import Recording

_HERE = Path(__file__).parent

STILL_SECONDS = 1.5
"""How long the selection must rest before the still picture is drawn again."""

STILL_METADATA = {"image/png": {"width": WIDTH_PX}}
"""The width by which ``explorer.css`` recognizes the picture, to hide it below the live widget."""


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
    others: Any = traitlets.List().tag(sync=True)
    views: Any = traitlets.List().tag(sync=True)
    colours = traitlets.Dict().tag(sync=True)

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.exploration = Exploration(recordings)
        self._shown_images: tuple[int | None, int | None] = (None, None)
        self._still: Any = None
        self._timer: asyncio.TimerHandle | None = None
        start = self.exploration.start()
        super().__init__(
            selection=_plain(start),
            choices=self._choices(),
            colours={"sequential": _table(SEQUENTIAL), "diverging": _table(DIVERGING), "mark": COLOURS["cls"]},
        )
        self._show()

    def select(self, **changes: Any) -> Explorer:
        """Select another image, block, site, head, token, …, e.g. ``select(block=3, token=(4, 9))``.

        ``other=2`` searches the nearest patch in that image; ``shared=True`` draws all models on one scale.

        Raises:
            LookupError: if no model has it; the selection is unchanged then.
        """
        self.selection = _plain(self.exploration.choose(Selection(**self.selection), **changes))
        self._update_still()
        return self

    def still(self) -> bytes:
        """Return a still picture of what the widget shows, as PNG."""
        selection, views, models = self._current()
        return draw_still(self.exploration, selection, views, models)

    def _ipython_display_(self, **_options: Any) -> None:
        """Display the widget and, for readers without a kernel, a picture below it, which the live widget hides."""
        from IPython.display import display

        bundle: Any = super()._repr_mimebundle_()
        display(bundle[0] if isinstance(bundle, tuple) else bundle, raw=True)
        self._still = display(*self._still_bundle(), raw=True, display_id=True, metadata=STILL_METADATA)

    def _still_bundle(self) -> list[dict[str, Any]]:
        return [{"image/png": base64.b64encode(self.still()).decode(), "text/plain": repr(self)}]

    def _update_still(self) -> None:
        """Draw the picture in the notebook again."""
        self._timer = None
        if self._still is not None:
            self._still.update(*self._still_bundle(), raw=True, metadata=STILL_METADATA)

    def _update_still_later(self) -> None:
        """Draw the picture again when the selection has rested, because that takes longer than a new view."""
        if self._still is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._timer = asyncio.get_running_loop().call_later(STILL_SECONDS, self._update_still)
        except RuntimeError:  # no kernel, so nothing is saved either
            self._timer = None

    @traitlets.validate("selection")
    def _check(self, proposal: Any) -> dict[str, Any]:
        return _plain(self.exploration.choose(self.exploration.start(), **proposal["value"]))

    @traitlets.observe("selection")
    def _changed(self, _change: Any) -> None:
        self._show()
        self._update_still_later()

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

    def _current(self) -> tuple[Selection, list[View], list[list[Panel]]]:
        """Return the selection, its views, and their panels with scales."""
        chosen = self.exploration.choose(self.exploration.start(), **self.selection)
        views = self.exploration.views(chosen)
        other = "" if chosen.other is None else self.exploration.images[chosen.other]
        return chosen, views, set_scales([panels_of(view, chosen, other) for view in views], chosen.shared)

    def _show(self) -> None:
        chosen, views, models = self._current()
        with self.hold_sync():
            if (chosen.image, chosen.other) != self._shown_images:
                self._shown_images = chosen.image, chosen.other
                recordings = self.exploration.recordings
                self.photographs = [_jpeg(photograph(r, chosen.image)) for r in recordings]
                self.others = [] if chosen.other is None else [_jpeg(photograph(r, chosen.other)) for r in recordings]
            self.views = [
                _packed(view, panels) | {"site": chosen.site} for view, panels in zip(views, models, strict=True)
            ]

    def __repr__(self) -> str:
        models = " and ".join(model_title(recording) for recording in self.exploration.recordings)
        selection = Selection(**self.selection)
        image = image_title(self.exploration.recordings[0], selection.image)
        return f"Explorer({models}: {image}, block {selection.block}, {selection.site}, token {selection.token})"


def _plain(selection: Selection) -> dict[str, Any]:
    """Convert a selection to JSON-compatible values; a patch becomes a list."""
    fields = asdict(selection)
    return fields if isinstance(selection.token, str) else fields | {"token": list(selection.token)}


def _packed(view: View, panels: Sequence[Panel]) -> dict[str, Any]:
    """Convert a view for the browser: values to little-endian float32 bytes, numbers to text."""
    return {
        "block": view.block,
        "token": view.token if isinstance(view.token, str) else list(view.token),
        "panels": [
            {
                "key": panel.key,
                "title": panel.title,
                "unit": panel.unit,
                "colours": panel.colours,
                "limits": list(panel.limits),
                "labels": list(panel.labels),
                "values": np.ascontiguousarray(panel.values, dtype="<f4").tobytes(),
            }
            for panel in panels
        ],
        "nearest": None if view.match is None else list(view.match.nearest),
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
