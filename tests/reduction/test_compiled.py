"""The reductions in C give the numbers of the torch operations, and leave to these what they cannot read."""

# Shapes: B images, T tokens, P patches, D channels, H heads, d channels a head.

import shutil
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenlens
from tests.metrics._cases import images, model
from tokenlens.recording.attention import AttentionCall, log_sum_exp
from tokenlens.reduction.compilation import library
from tokenlens.reduction.compiled import CompiledKernels
from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.tokens import TokenLayout

COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
needs_compiler = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs a C compiler with OpenMP"
)

LAYOUTS = [
    TokenLayout(grid=(4, 5)),
    TokenLayout(grid=(3, 3), prefix=("cls", "reg", "reg")),
    TokenLayout(grid=(2, 7), prefix=("reg",)),
    TokenLayout(grid=(4, 4), prefix=()),
    TokenLayout(grid=(1, 1)),
    TokenLayout(grid=(2, 5), prefix=("cls", "reg"), patch_start=1),
    TokenLayout(grid=(9, 11), patch_start=0),
]
BOTH = ("unit_patch_sum", "patch_sum")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


def reduce_tokens(
    kernels: ReductionKernels, x: Tensor, which: Any = BOTH, other: Tensor | None = None
) -> dict[str, Tensor]:
    """Run every reduction of tokens (B, T, D)."""
    layout = kernels.layout
    outputs = {
        "norms": x.new_empty(x.shape[:2]),
        "rows": x.new_empty(len(x), len(layout.prefix) + len(which), x.shape[-1]),
        "magnitudes": x.new_empty(len(x), x.shape[-1]),
    }
    if other is not None:
        outputs |= {"other": other, "products": x.new_empty(x.shape[:2])}
    kernels.reduce_tokens(x, which, **outputs)
    return outputs


def reduce_norm(kernels: ReductionKernels, x: Tensor, weight: Tensor | None, centred: bool) -> list[Tensor]:
    """Run every reduction of a norm's input (B, T, D)."""
    stages, patches = 1 if weight is None else 2, kernels.layout.patches
    means = x.new_zeros(len(x), patches) if centred else None
    lengths, total = x.new_empty(len(x), stages, patches), x.new_empty(len(x), stages, x.shape[-1])
    kernels.reduce_norm(kernels.layout.patches_of(x), weight, means, lengths, total)
    return [lengths, total] if means is None else [means, lengths, total]


def reduce_attention(kernels: ReductionKernels, call: AttentionCall) -> list[Tensor]:
    """Compute the row of CLS, if there is one, and the columns of the prefix tokens."""
    shape, layout = call.q_BHTd.shape, kernels.layout
    row = call.q_BHTd.new_zeros(*shape[:2], layout.tokens)
    columns = call.q_BHTd.new_zeros(*shape[:2], len(layout.prefix))
    kernels.reduce_attention(call, row if layout.has("cls") else None, columns if layout.prefix else None)
    return [row, columns]


def attention_call(layout: TokenLayout, seed: int = 0) -> AttentionCall:
    """Make q and v with the strides of timm's blocks, and k with others."""
    q, k, v = random(3, layout.tokens, 3 * 4 * 13, seed=seed).unflatten(-1, (3, 4, 13)).permute(2, 0, 3, 1, 4)
    k = k.clone(memory_format=torch.contiguous_format)
    return AttentionCall(q, k, v, scale=0.2, lse_BHT=log_sum_exp(q, k, 0.2))


def near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


def all_near(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        near(one, other)


@needs_compiler
@pytest.mark.parametrize("channels", [1, 8, 45])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_tokens_and_norms_agree_with_float64(layout, channels):
    x, other = random(3, layout.tokens, channels), random(3, layout.tokens, channels, seed=1)
    compiled, reference = CompiledKernels(layout, library()), ReductionKernels(layout)
    for which in (BOTH, BOTH[:1], BOTH[1:], ()):
        for second in (None, other):
            got = reduce_tokens(compiled, x, which, second)
            expected = reduce_tokens(reference, x.double(), which, None if second is None else second.double())
            for name in got:
                near(got[name], expected[name])
    for weight in (None, random(channels, seed=2)):
        for centred in (True, False) if channels > 1 else (False,):  # one channel minus its mean is nothing
            expected = reduce_norm(reference, x.double(), None if weight is None else weight.double(), centred)
            all_near(reduce_norm(compiled, x, weight, centred), expected)


@needs_compiler
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attention_agrees_with_float64(layout):
    call = attention_call(layout)
    precise = AttentionCall(call.q_BHTd.double(), call.k_BHTd.double(), call.v_BHTd.double(), scale=0.2)
    got = reduce_attention(CompiledKernels(layout, library()), call)
    all_near(got, reduce_attention(ReductionKernels(layout), precise))
    # q and k contiguous by head, as in other libraries.
    by_head = AttentionCall(call.q_BHTd.contiguous(), call.k_BHTd.contiguous(), call.v_BHTd, 0.2, lse_BHT=call.lse_BHT)
    for compiled, reference in zip(reduce_attention(CompiledKernels(layout, library()), by_head), got, strict=True):
        assert torch.equal(compiled, reference)


class Elsewhere(Tensor):
    """A tensor whose numbers are not at ``data_ptr``."""

    def data_ptr(self) -> int:
        raise AssertionError("read by C")


class CalledC(Exception):
    """C was called."""


class NoLibrary:
    """A library that must not be called."""

    def __getattr__(self, name: str) -> Any:
        def function(*_arguments: Any) -> None:
            raise CalledC(name)

        return function


@needs_compiler
def test_tokens_that_c_cannot_read_are_left_to_torch():
    layout = LAYOUTS[1]
    compiled, reference = CompiledKernels(layout, NoLibrary()), ReductionKernels(layout)
    wide = random(2, layout.tokens, 24)
    with pytest.raises(CalledC):
        reduce_tokens(compiled, wide)
    with pytest.raises(CalledC):
        reduce_norm(compiled, wide, wide[0, 0], True)
    elsewhere, turned = wide.as_subclass(Elsewhere), torch._neg_view(wide)
    for x in (wide.double(), wide[..., ::2], elsewhere, turned):
        for name, value in reduce_tokens(compiled, x, BOTH, x.flip(1)).items():
            near(value, reduce_tokens(reference, x, BOTH, x.flip(1))[name])
        all_near(reduce_norm(compiled, x, x[0, 0], True), reduce_norm(reference, x, x[0, 0], True))
    for other in (wide.transpose(0, 1).contiguous().transpose(0, 1), wide[:1], elsewhere):
        near(reduce_tokens(compiled, wide, BOTH, other)["products"], (wide * other).sum(-1))
    for weight in (random(1), wide[0, 0].as_subclass(Elsewhere), random(48)[::2]):
        all_near(reduce_norm(compiled, wide, weight, True), reduce_norm(reference, wide, weight, True))


@needs_compiler
def test_attention_that_c_cannot_read_is_left_to_torch():
    layout = LAYOUTS[1]
    compiled, reference = CompiledKernels(layout, NoLibrary()), ReductionKernels(layout)
    call = attention_call(layout)
    q, k, v, lse = call.q_BHTd, call.k_BHTd, call.v_BHTd, call.lse_BHT
    with pytest.raises(CalledC):
        reduce_attention(compiled, call)
    bias = random(1, 1, layout.tokens, layout.tokens)
    for other in (
        AttentionCall(q, k, v, 0.2, bias=bias, lse_BHT=log_sum_exp(q, k, 0.2, bias)),
        AttentionCall(q, k, v, pattern_BHTT=call.pattern(), lse_BHT=lse),
        AttentionCall(q.bfloat16(), k.bfloat16(), v, 0.2, lse_BHT=lse),
        AttentionCall(q, k.double(), v, 0.2, lse_BHT=lse),
        AttentionCall(q, k, v, 0.2, lse_BHT=lse.double()),
        AttentionCall(q, k, v, 0.2),
    ):
        all_near(reduce_attention(compiled, other), reduce_attention(reference, other))
    per_head = random(2, 4, layout.tokens, 13)
    norms, rows = per_head.new_empty(2, 4, layout.tokens), per_head.new_empty(2, 4, len(layout.prefix) + 2, 13)
    compiled.reduce_tokens(per_head, BOTH, norms, rows)
    near(norms, per_head.norm(dim=-1))


@needs_compiler
@pytest.mark.parametrize("name", ["layer", "registers", "rotary"])
def test_c_computes_every_reduction_of_a_model(monkeypatch, name):
    """A reduction that falls back to torch is correct but slow, so only its time would show."""
    library()  # compares itself with torch

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("left to torch")

    for method in ("reduce_tokens", "reduce_norm", "reduce_attention"):
        monkeypatch.setattr(ReductionKernels, method, refuse)
    tokenlens.analyze(model(name), images(name)[:3], batch_size=2, device="cpu")


@needs_compiler
def test_wrong_outputs_are_refused():
    """Outputs that are too small, in another precision or not contiguous are refused before C writes."""
    layout = LAYOUTS[0]
    kernels, x, call = CompiledKernels(layout, library()), random(4, layout.tokens, 16), attention_call(layout)
    good = {"norms": x.new_zeros(4, layout.tokens), "rows": x.new_zeros(4, 3, 16)}
    for name, wrong in (
        ("norms", x.new_zeros(2, layout.tokens)),
        ("norms", x.new_zeros(4, layout.tokens).double()),
        ("rows", x.new_zeros(4, 3, 32)[..., ::2]),
        ("magnitudes", x.new_zeros(2, 16)),
    ):
        with pytest.raises(ValueError, match="output"):
            kernels.reduce_tokens(x, BOTH, **good | {name: wrong})
    with pytest.raises(ValueError, match="output"):
        kernels.reduce_norm(layout.patches_of(x), None, None, x.new_zeros(2, 1, layout.patches), x.new_zeros(4, 1, 16))
    with pytest.raises(ValueError, match="output"):
        kernels.reduce_attention(call, x.new_zeros(1, 4, layout.tokens), None)
    with pytest.raises(ValueError, match="tokens"):
        kernels.reduce_tokens(x[:, 1:], BOTH, x.new_zeros(4, layout.tokens - 1), x.new_zeros(4, 3, 16))


@needs_compiler
def test_long_sums_do_not_lose_digits():
    """A constant channel, as in massive activations, over a grid of 128 × 128."""
    layout = TokenLayout(grid=(128, 128))
    x = torch.full((1, layout.tokens, 3), 0.1) * torch.tensor([1.0, -3.3, 700.0])
    got = reduce_tokens(CompiledKernels(layout, library()), x)
    expected = x[:, 1:].double()
    exact = torch.cat([(expected / expected.norm(dim=-1, keepdim=True)).sum(1), expected.sum(1)])
    torch.testing.assert_close(got["rows"][0, 1:].double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(got["magnitudes"].double(), expected.abs().sum(1), rtol=1e-5, atol=0)


@needs_compiler
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_nan_and_infinity_propagate_as_in_torch(bad):
    """NaN and infinity, and a token of zeros, which has no direction, reach the sums but no other image."""
    layout = LAYOUTS[0]
    x = random(3, layout.tokens, 16)
    x[1, 4] = bad
    got, expected = (
        reduce_tokens(kernels, x) for kernels in (CompiledKernels(layout, library()), ReductionKernels(layout))
    )
    for name in ("norms", "rows", "magnitudes"):
        sums_only = got[name][:, 1:] if name == "rows" else got[name]  # in torch NaN also reaches the selected CLS
        as_torch = expected[name][:, 1:] if name == "rows" else expected[name]
        assert torch.equal(torch.isfinite(sums_only), torch.isfinite(as_torch))
        assert torch.isfinite(got[name][::2]).all()
    for compiled, reference in zip(
        reduce_norm(CompiledKernels(layout, library()), x, random(16), True),
        reduce_norm(ReductionKernels(layout), x, random(16), True),
        strict=True,
    ):
        assert torch.equal(torch.isfinite(compiled), torch.isfinite(reference))


@needs_compiler
def test_neither_threads_nor_other_images_change_a_bit():
    layout, threads = LAYOUTS[1], torch.get_num_threads()
    kernels, x, call = CompiledKernels(layout, library()), random(7, layout.tokens, 40), attention_call(layout)

    def everything(x: Tensor) -> list[Tensor]:
        return [
            *reduce_tokens(kernels, x, BOTH, x).values(),
            *reduce_norm(kernels, x, x[0, 0], True),
            *reduce_attention(kernels, call),
        ]

    try:
        torch.set_num_threads(1)
        alone = everything(x)
        torch.set_num_threads(3)
        together = everything(x)
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(alone, together, strict=True):
        assert torch.equal(one, three)
    for name, value in reduce_tokens(kernels, x[2:3], BOTH, x[2:3]).items():
        assert torch.equal(value, reduce_tokens(kernels, x, BOTH, x)[name][2:3])
