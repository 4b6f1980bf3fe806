"""A special token between patches: all numbers are those of the same model with the token in front."""

import numpy as np
import pandas as pd
import pytest

import tokenlens
from tests.support.tiny_models import MODELS, images
from tokenlens.analysis import Analysis
from tokenlens.families.timm_beit import TimmBeit
from tokenlens.families.timm_vit import TimmViT
from tokenlens.overlays.maps import attention_map, cosine_map, norm_map
from tokenlens.overlays.selection import attention_of, tokens_at
from tokenlens.tokens import TokenLayout

ORDER = [1, 2, 3, 4, 5, 6, 0, *range(7, 17)]


def in_the_middle(kind):
    """Return a model with its CLS moved between the patches, before the first block, and a family that knows it."""
    model = MODELS[kind]()
    model.blocks[0].register_forward_pre_hook(lambda _module, args: (args[0][:, ORDER], *args[1:]))
    base = {"timm_vit": TimmViT, "timm_vit_unfused": TimmViT, "timm_beit": TimmBeit}[kind]

    class Middle(base):
        def layout(self, model, image_size):
            return TokenLayout.from_positions((4, 4), {"cls": [6]}, patch_size=(8, 8))

    return model, Middle()


@pytest.mark.parametrize("kind", ["timm_vit", "timm_vit_unfused"])
def test_numbers_do_not_depend_on_where_the_special_token_stands(kind, tmp_path):
    x = images(kind, 5)
    expected = tokenlens.analyze(MODELS[kind](), x, metrics="all", pretrained=False)
    model, family = in_the_middle(kind)
    found = tokenlens.analyze(model, x, metrics="all", family=family, pretrained=False)
    assert found.layout.positions("cls") == (6,)
    columns = ["value", "sd", "ci_low", "ci_high"]
    pd.testing.assert_frame_equal(found.table.drop(columns=columns), expected.table.drop(columns=columns))
    np.testing.assert_allclose(found.table[columns], expected.table[columns], rtol=2e-4, atol=2e-5)
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_allclose(found.arrays[name].values, array.values, rtol=2e-4, atol=2e-5, err_msg=name)
    found.save(tmp_path / "run", report=False)
    assert Analysis.load(tmp_path / "run").layout == found.layout


def test_maps_of_a_recording_are_on_the_grid():
    x = images("timm_vit", 2)
    expected, (model, family) = tokenlens.record(MODELS["timm_vit"](), x), in_the_middle("timm_vit")
    found = tokenlens.record(model, x, family=family)
    for token in ("cls", (2, 1)):
        maps = []
        for recording in (expected, found):
            x_XTD, row_T = tokens_at(recording, 1, 1, "resid_post"), attention_of(recording, 1, 1, token)
            norms = norm_map(x_XTD, recording.layout).norms_hw
            maps.append((cosine_map(x_XTD, recording.layout, token), attention_map(row_T, recording.layout), norms))
        for one, other in zip(*maps, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
