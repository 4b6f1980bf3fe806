"""Standard and specialized state dicts in specialized models."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.specialized_models import SEVERAL, outputs, perturb, preset_for
from tests.support.tiny_models import MODELS, images
from tokenlens import specialize
from tokenlens.specialization._state_dict import has_specialized_weights


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", SEVERAL)
def test_a_standard_state_dict_is_loaded_twice(name, assign):
    standard, x = MODELS[name](), images(name)
    twin = perturb(specialize(MODELS[name](), preset_for(name)))
    found = twin.load_state_dict(standard.state_dict(), assign=assign)
    assert not found.missing_keys
    assert not found.unexpected_keys
    with torch.no_grad():
        assert torch.equal(outputs(twin, x), outputs(standard, x))
    parameters = list(twin.parameters())
    assert len({parameter.data_ptr() for parameter in parameters}) == len(parameters), "no weights are shared"


@pytest.mark.parametrize("name", SEVERAL)
def test_a_specialized_state_dict_round_trips(name, tmp_path):
    one = perturb(specialize(MODELS[name](), preset_for(name)))
    save_file({key: value.contiguous() for key, value in one.state_dict().items()}, tmp_path / "weights.safetensors")
    two = specialize(MODELS[name](), preset_for(name))
    two.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        assert torch.equal(outputs(one, images(name)), outputs(two, images(name)))
    assert has_specialized_weights(one.state_dict())
    assert not has_specialized_weights(MODELS[name]().state_dict())


def test_state_dicts_of_other_specializations_and_of_wrapped_models():
    norms = specialize(MODELS["timm_vit"](), "norms")
    paper = specialize(MODELS["timm_vit"](), "qkv_all")
    paper.load_state_dict(norms.state_dict())  # its qkv is loaded twice
    with pytest.raises(RuntimeError, match=r"Unexpected key.*blocks\.0\.attn\.qkv\.cls\.weight"):
        norms.load_state_dict(paper.state_dict())
    wrapper = nn.ModuleDict({"backbone": paper, "head": nn.Linear(5, 2)})
    state = {f"backbone.{key}": value for key, value in MODELS["timm_vit"]().state_dict().items()}
    wrapper.load_state_dict(state | {f"head.{key}": value for key, value in wrapper["head"].state_dict().items()})
    state = paper.state_dict()
    del state["blocks.0.norm1.patch.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*blocks\.0\.norm1\.patch\.weight"):
        paper.load_state_dict(state)
