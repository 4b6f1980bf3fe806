"""The kernels of a device, and the variable that chooses others."""

import pytest
import torch

import tokenlens
from tests.metrics._cases import images, model
from tokenlens.reduction.choice import choose_kernels
from tokenlens.reduction.kernels import ReductionKernels

CPU = torch.device("cpu")


def test_torch_on_the_cpu(monkeypatch):
    monkeypatch.delenv("TOKENLENS_KERNELS", raising=False)
    assert choose_kernels(CPU) == (ReductionKernels, "torch")


def test_the_provenance_states_the_choice(monkeypatch):
    monkeypatch.setenv("TOKENLENS_KERNELS", "torch")
    result = tokenlens.analyze(model("layer"), images("layer")[:1], metrics="token_norm", device="cpu")
    assert result.provenance["kernels"] == "torch (TOKENLENS_KERNELS=torch)"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_triton_on_a_gpu(monkeypatch):
    monkeypatch.delenv("TOKENLENS_KERNELS", raising=False)
    assert choose_kernels(torch.device("cuda"))[1].startswith("triton ")
