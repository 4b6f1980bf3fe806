"""The nearest patch of another image is the one with the largest cosine."""

import numpy as np
import pytest

import tokenlens
from tests.support.tiny_models import build, images
from tokenlens.overlays.correspondence import correspondence_frame, find_correspondence, find_correspondences


@pytest.fixture(scope="module")
def recording():
    return tokenlens.record(build("timm_dinov2_registers"), images("timm_dinov2_registers", 3))


def test_the_nearest_patch_agrees_with_numpy(recording):
    x_NPD = recording.layout.patches_of(recording[0, "resid_mid"].double()).numpy()
    unit_NPD = x_NPD / np.linalg.norm(x_NPD, axis=-1, keepdims=True)
    found = find_correspondence(recording, (2, 1), source=2, target=0, block=0, site="resid_mid")
    cosine_P = unit_NPD[0] @ unit_NPD[2][9]
    np.testing.assert_allclose(found.cosine_hw.ravel(), cosine_P, atol=1e-6)
    assert found.nearest == divmod(int(cosine_P.argmax()), 4)
    assert found.cosine == pytest.approx(cosine_P.max(), abs=1e-6)


def test_a_patch_is_nearest_to_itself(recording):
    found = find_correspondence(recording, (3, 0), source=1, target=1, site="k")
    assert found.nearest == (3, 0)
    assert found.cosine == pytest.approx(1, abs=1e-5)


def test_all_other_images_by_default(recording):
    found = find_correspondences(recording, [(0, 0), (1, 1)], source=1)
    assert [(each.patch, each.target) for each in found] == [((0, 0), 0), ((0, 0), 2), ((1, 1), 0), ((1, 1), 2)]
    frame = correspondence_frame(recording, found)
    assert frame["other_image"].tolist() == [recording.names[0], recording.names[2]] * 2
    assert frame["cosine"].tolist() == [each.cosine for each in found]


def test_what_is_not_there_is_named(recording):
    with pytest.raises(LookupError, match=r"row 0 to 3 and column 0 to 3, got \(4, 0\)"):
        find_correspondence(recording, (4, 0))
    single = tokenlens.record(build("timm_vit"), images("timm_vit", 1))
    with pytest.raises(LookupError, match="needs another image, but the recording has 1"):
        find_correspondences(single, [(0, 0)])
