"""The kernels of a device, and the variable that chooses others."""

import pytest
import torch

import tokenlens
from tests.metrics._cases import images, model
from tokenlens.reduction.choice import describe_kernels, kernels_for
from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.tokens import TokenLayout

CPU = torch.device("cpu")


def test_torch_on_the_cpu(monkeypatch):
    monkeypatch.delenv("TOKENLENS_KERNELS", raising=False)
    assert type(kernels_for(TokenLayout(grid=(1, 1)), CPU)) is ReductionKernels
    assert describe_kernels(CPU) == "torch"


def test_the_provenance_states_the_choice(monkeypatch):
    monkeypatch.setenv("TOKENLENS_KERNELS", "torch")
    result = tokenlens.analyze(model("layer"), images("layer")[:1], metrics="token_norm", device="cpu")
    assert result.provenance["kernels"] == "torch (TOKENLENS_KERNELS=torch)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_triton_on_a_gpu(monkeypatch):
    monkeypatch.delenv("TOKENLENS_KERNELS", raising=False)
    assert describe_kernels(torch.device("cuda")).startswith("triton ")
