"""The still picture is what the widget shows, and stays in the notebook."""

import base64
import io

import IPython.display
import numpy as np
import pytest
from PIL import Image

import tokenlens
from tests.support.tiny_models import build, images

pytest.importorskip("anywidget", reason="the extra [notebook] is not installed")


@pytest.fixture
def widget():
    return tokenlens.explore(build("timm_dinov2_registers"), images("timm_dinov2_registers"), other=build("timm_vit"))


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_it_follows_the_selection(widget):
    first = pixels(widget.still())
    assert first.shape[1] == 1000
    assert first.std() > 20
    assert (pixels(widget.still()) == first).all()
    widget.select(token="reg2")
    other = pixels(widget.still())
    assert other.shape != first.shape or (other != first).any()


class Handle:
    def __init__(self) -> None:
        self.updates: list = []

    def update(self, bundle, **options) -> None:
        self.updates.append((bundle, options))


def test_it_is_displayed_below_the_widget_and_drawn_again_after_a_choice(widget, monkeypatch):
    handle, displayed = Handle(), []

    def display(bundle, **options):
        displayed.append((bundle, options))
        return handle if options.get("display_id") else None

    monkeypatch.setattr(IPython.display, "display", display)
    widget._ipython_display_()
    (live, _), (still, options) = displayed
    assert "application/vnd.jupyter.widget-view+json" in live
    assert "image/png" not in live
    assert "application/vnd.jupyter.widget-view+json" not in still
    assert "block 1, norm1, token cls" in still["text/plain"]
    width = options["metadata"]["image/png"]["width"]
    assert f'img[width="{width}"]' in str(widget._css), "the style sheet hides it by its width"
    widget.select(block=0)
    ((bundle, _),) = handle.updates
    assert base64.b64decode(bundle["image/png"]) == widget.still()
    assert "block 0" in bundle["text/plain"]
