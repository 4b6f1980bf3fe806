"""The parameters of norm layers, in every family and alone."""

import pytest
import timm
import torch
from torch import nn

from tests.support.tiny_models import KINDS, MODELS, images
from tests.support.watching import watch
from tokenlens.families import SplitNorm, norm_parameters


@pytest.mark.parametrize("name", [name for name in sorted(KINDS) if not KINDS[name].special_blocks])
def test_parameters_give_the_norms_output(name):
    witness, _ = watch(MODELS[name](), images(name))
    kind = KINDS[name]
    assert len(witness.norms) == (4 if kind.residual else 2) * kind.norms + kind.final_norm
    for module, x, y in witness.norms.values():
        norm, x = norm_parameters(module), x.double()
        if norm.kind == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        special = list(range(len(kind.prefix)))
        for weight, bias, positions in (
            (norm.weight_prefix, norm.bias_prefix, special),
            (norm.weight_patch, norm.bias_patch, [i for i in range(x.shape[1]) if i not in special]),
        ):
            expected = x if weight is None else x * weight.double()
            expected = expected if bias is None else expected + bias.double()
            torch.testing.assert_close(y.double()[:, positions], expected[:, positions], atol=1e-5, rtol=1e-5)
        assert norm.specialized == (isinstance(module, SplitNorm) and module.cls is not module.patch)
        assert (norm.weight_prefix is norm.weight_patch) == (not norm.specialized or norm.weight_patch is None)
        assert norm.kind == ("rms" if any(kind in name for kind in ("rms", "aimv2")) else "layer")


def test_a_specialized_norm_has_separate_parameters():
    norm = nn.Module()
    norm.cls, norm.patch = nn.LayerNorm(4, eps=1e-6), nn.LayerNorm(4, eps=1e-6)
    nn.init.normal_(norm.cls.weight)
    found = norm_parameters(norm)
    assert (found.kind, found.eps) == ("layer", 1e-6)
    assert torch.equal(found.weight_prefix, norm.cls.weight)
    assert torch.equal(found.weight_patch, norm.patch.weight)
    assert torch.equal(found.bias_patch, norm.patch.bias)


class ShiftedRMSNorm(nn.Module):
    """A norm that stores γ − 1, as Gemma does."""

    def __init__(self, dim):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.randn(dim)), 1e-6

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)


def test_norm_parameters_of_a_norm_that_stores_its_weight_minus_one():
    norm = ShiftedRMSNorm(8)
    found = norm_parameters(norm)
    assert (found.kind, found.eps, found.bias_patch) == ("rms", 1e-6, None)
    assert torch.equal(found.weight_patch, 1 + norm.weight)


def test_norms_without_biases_and_without_weights():
    for norm in (timm.layers.RmsNorm(8), timm.layers.RmsNormFp32(8), nn.RMSNorm(8, eps=1e-6)):
        found = norm_parameters(norm)
        assert (found.kind, found.eps, found.bias_prefix) == ("rms", 1e-6, None)
    found = norm_parameters(nn.LayerNorm(8, elementwise_affine=False))
    assert found.kind == "layer"
    assert found.weight_patch is found.bias_prefix is None
    assert norm_parameters(nn.RMSNorm(8)).eps == torch.finfo(torch.float32).eps


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.Identity(), nn.GroupNorm(2, 8), timm.layers.SimpleNorm(8)])
def test_unknown_norms_are_named(norm):
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    with pytest.raises(LookupError, match=type(norm).__name__):
        norm_parameters(norm)
    assert all(torch.equal(value, norm.state_dict()[name]) for name, value in state.items())
