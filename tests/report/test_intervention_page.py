"""The page of an intervention begins with maps of a photograph under each replacement."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.support.tiny_models import MODELS, images
from tokenlens.interventions import Intervention, intervene
from tokenlens.report import write_report
from tokenlens.report.replaced_strip import replaced_strip


@pytest.fixture(scope="module")
def found():
    options = {"replace": ["cls", "patch"], "by": ["itself", "zero"], "batch_size": 2}
    return intervene(MODELS["timm_vit"](), images("timm_vit", 6), **options)


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def test_maps_are_of_the_first_images_in_the_order_of_the_source(found):
    kept = found.photographs
    assert kept.names == tuple(f"image {i}" for i in range(4))
    assert [Image.open(io.BytesIO(jpeg)).size for jpeg in kept.jpegs] == [(32, 32)] * 4
    assert kept.components.shape == (4, 8, 4, 4, 3)
    itself = [k for k, (_, by, _, _) in enumerate(kept.conditions) if by == "itself"]
    assert (kept.components[:, itself] == kept.untouched[:, None]).all()
    assert np.allclose(kept.cosines[:, itself].astype(float), 1)
    rows = found.select("final_cosine", group="patch", part="all").set_index(["replace", "by", "block"])["value"]
    columns = found.table[(found.table["metric"] == "final_cosine") & (found.table["group"] == "patch")]
    columns = columns[columns["part"] == "all"]
    per_image = found.per_image.to_numpy()[:4, columns.index]
    for k, (replace, by, _, block) in enumerate(kept.conditions):
        place = rows.index.get_loc((replace, by, block))
        assert np.allclose(kept.cosines[:, k].astype(float).mean((1, 2)), per_image[:, place], atol=1e-3)


def test_the_strip_shows_the_first_group_with_a_row_per_replacement(found):
    strip = replaced_strip(found)
    assert strip.replaced == "CLS at resid_post"
    first = strip.photographs[0]
    assert [row.label for row in first.replacements] == ["itself", "zero"]
    assert [row.blocks for row in first.replacements] == [[0, 1], [0, 1]]
    assert (pixels(first.replacements[0].maps[0].picture) == pixels(first.untouched)).all()
    zero = first.replacements[1].maps[0]
    assert float(zero.mean) == pytest.approx(found.photographs.cosines[0, 2].astype(float).mean(), abs=0.0051)
    assert strip.numbers["cosine"][zero.first : zero.first + 16].mean() == pytest.approx(float(zero.mean), abs=0.0051)


def test_a_page_has_them_also_after_loading_and_without_pixels(found, tmp_path):
    folder = found.save(tmp_path / "run", report=False)
    read = Intervention.load(folder)
    assert read.photographs.conditions == found.photographs.conditions
    assert read.photographs.jpegs == found.photographs.jpegs
    text = write_report(read, tmp_path / "page").read_text(encoding="utf-8")
    assert text.index('class="strip"') < text.index("<figure")
    assert "data:image/jpeg" in text
    bare = intervene(MODELS["timm_vit"](), images("timm_vit", 2), by="zero", blocks=[0], photos=False)
    assert bare.photographs.jpegs == ()
    assert len(replaced_strip(bare).photographs) == 2
