"""The kernels of a device, and the variable that chooses others."""

import pytest
import torch

import tokenlens
from tests.metrics._cases import images, model
from tests.support.command_line import MODEL, TINY, refused
from tests.support.command_line import tokenlens as run
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


@pytest.mark.parametrize(
    ("value", "part"),
    [("cuda", "TOKENLENS_KERNELS must be torch or triton, got 'cuda'"), ("triton", "cannot be used on cpu")],
)
def test_what_cannot_be_used_is_refused(monkeypatch, tmp_path, value, part):
    monkeypatch.setenv("TOKENLENS_KERNELS", value)
    refused(run("analyze", MODEL, *TINY, "--device", "cpu", "--out", tmp_path / "run"), part, "unset it")
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_triton_on_a_gpu(monkeypatch):
    monkeypatch.delenv("TOKENLENS_KERNELS", raising=False)
    assert describe_kernels(torch.device("cuda")).startswith("triton ")
