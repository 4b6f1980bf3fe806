"""Merging specialized models back into standard ones."""

import pytest
import torch

from tests.support.specialized_models import SEVERAL, preset_for
from tests.support.tiny_models import MODELS, images
from tests.support.watching import hooks
from tokenlens import merge, specialize
from tokenlens.specialization._plan import get_plan


@pytest.mark.parametrize("name", SEVERAL)
def test_merge_undoes_an_untrained_specialization(name):
    standard, x = MODELS[name](), images(name)
    merged = merge(specialize(MODELS[name](), preset_for(name)), x)
    assert merged.model.state_dict().keys() == standard.state_dict().keys()
    assert [key for key, _ in merged.model.named_modules()] == [key for key, _ in standard.named_modules()]
    assert all(torch.equal(value, merged.model.state_dict()[key]) for key, value in standard.state_dict().items())
    assert set(merged.change.values()) == {0}
    assert min(merged.cosine.values()) > 0.9999
    assert get_plan(merged.model) is None
    assert hooks(merged.model) == hooks(standard)
    assert getattr(merged.model, "pretrained_cfg", None) == getattr(standard, "pretrained_cfg", None)
    specialize(merged.model, "norms")


def test_merge_takes_the_mean_and_says_what_that_changes():
    model = specialize(MODELS["timm_vit"](), "norms")
    with torch.no_grad():
        model.norm.cls.bias += 2
        model.norm.patch.bias -= 1
    middle = (model.norm.cls.bias + model.norm.patch.bias) / 2
    merged = merge(model)
    torch.testing.assert_close(merged.model.norm.bias, middle)
    assert merged.images == "8 images of Gaussian noise"
    assert merged.change.keys() == merged.cosine.keys() == {"cls", "patch"}
    # Both sides move by 1.5 in each channel.
    assert merged.change["cls"] > 0.1
    assert merged.change["patch"] > 0.1
    with pytest.raises(ValueError, match="is not specialized, so there is nothing to merge"):
        merge(model)
