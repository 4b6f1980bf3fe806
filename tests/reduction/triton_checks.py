"""Checks of the Triton kernels, which ``test_triton_kernels.py`` runs in the interpreter and on a GPU."""

# Shapes: B images, T tokens, P patches, D channels, H heads, d channels per head.

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

pytest.importorskip("triton", reason="Triton is not installed")

import triton

import tokenlens
from tests.metrics._cases import images, model
from tokenlens.families import NormParameters
from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import AttentionCapture
from tokenlens.recording.recorder import Recorder
from tokenlens.reduction import triton_kernels
from tokenlens.reduction.choice import choose_kernels
from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.reduction.triton_kernels import TritonKernels
from tokenlens.tokens import TokenLayout

INTERPRETED = triton.knobs.runtime.interpret
DEVICE = "cpu" if INTERPRETED else "cuda"
BOTH = ("unit_patch_sum", "patch_sum")
LAYOUTS = [
    TokenLayout(grid=(3, 3), prefix=("cls", "reg", "reg")),
    TokenLayout(grid=(2, 7), prefix=("reg",)),
    TokenLayout(grid=(4, 4), prefix=()),
    TokenLayout(grid=(1, 1)),
    TokenLayout(grid=(1, 1), prefix=()),
    TokenLayout(grid=(2, 5), prefix=("cls", "reg"), patch_start=1),
    TokenLayout(grid=(9, 11), patch_start=0),
]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3).to(DEVICE, dtype)


def reduce_tokens(
    kernels: ReductionKernels, x: Tensor, sums: Any = BOTH, other: Tensor | None = None
) -> dict[str, Tensor]:
    """Run every reduction of tokens (B, T, D) or (B, H, T, d)."""
    return kernels.reduce_tokens(x, (*sums, "patch_abs_sum"), other)


def reduce_norm(kernels: ReductionKernels, x: Tensor, y: Tensor, parameters: NormParameters) -> list[Tensor]:
    """Run every reduction of a norm, and of its input and output."""
    wanted = (*BOTH, "patch_abs_sum")
    parts = kernels.reduce_norm(x, y, parameters, None, wanted, wanted)
    return [part[name] for part in parts for name in sorted(part)]


def norm_parameters(kind: Any, weight: Tensor | None) -> NormParameters:
    return NormParameters(kind, weight, None, weight, None, 1e-6)


def attention_call(layout: TokenLayout, dtype: torch.dtype = torch.float32, channels: int = 13) -> AttentionCall:
    """Make q and v with the strides of timm's blocks, and k with others."""
    qkv = random(2, layout.tokens, 3 * 4 * channels, dtype=dtype) / 2
    q, k, v = qkv.unflatten(-1, (3, 4, channels)).permute(2, 0, 3, 1, 4)
    k = k.clone(memory_format=torch.contiguous_format)
    lse_BHT = AttentionCall(q.double(), k.double(), v, 0.2).log_sum_exp().float()
    return AttentionCall(q, k, v, 0.2, lse_BHT=lse_BHT)


def reduce_attention(kernels: ReductionKernels, call: AttentionCall) -> list[Tensor]:
    """Compute the row of CLS, if there is one, and the columns of the prefix tokens, if there are any."""
    reduced = kernels.reduce_attention(call)
    assert ("cls_row" in reduced) == kernels.layout.has("cls")
    return [reduced[name] for name in sorted(reduced)]


def near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


def all_near(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        near(one, other)


@contextmanager
def no_torch_form(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse to leave a reduction to torch: the numbers would be right, only the time would show it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("left to torch")

    with monkeypatch.context() as patch:
        for method in ("reduce_tokens", "_stages_from_input", "reduce_attention"):
            patch.setattr(ReductionKernels, method, refuse)
        yield


SHAPES = [(layout, 45, torch.float32) for layout in LAYOUTS]
SHAPES += [(LAYOUTS[3], 192, dtype) for dtype in (torch.bfloat16, torch.float16)]
SHAPES += [(LAYOUTS[5], 1, torch.float32), (LAYOUTS[5], 1152, torch.bfloat16)]


@pytest.mark.parametrize(("layout", "channels", "dtype"), SHAPES, ids=str)
def test_tokens_and_norms_agree_with_float64(monkeypatch, layout, channels, dtype):
    x, other = (random(2, layout.tokens, channels, seed=seed, dtype=dtype) for seed in (0, 1))
    fast, reference = TritonKernels(layout), ReductionKernels(layout)
    for sums, second in ((BOTH, other.float()), (BOTH[:1], None), (BOTH[1:], other), ((), None)):
        with no_torch_form(monkeypatch):
            got = reduce_tokens(fast, x, sums, second)
        expected = reduce_tokens(reference, x.double(), sums, None if second is None else second.double())
        for name in got:
            near(got[name], expected[name])
    weight = random(channels, seed=2)
    kinds = ("layer", "rms") if channels > 1 else ("rms",)  # one channel minus its mean is nothing
    for kind, gamma in itertools.product(kinds, (None, weight.to(dtype))):
        precise = None if gamma is None else gamma.double()
        with no_torch_form(monkeypatch):
            got = reduce_norm(fast, x, other, norm_parameters(kind, gamma))
        all_near(got, reduce_norm(reference, x.double(), other.double(), norm_parameters(kind, precise)))


def test_any_strides_are_read():
    layout = LAYOUTS[0]
    wide = random(2, layout.tokens, 40)
    heads = random(2, layout.tokens, 3 * 20).unflatten(-1, (3, 20)).transpose(1, 2)
    fast, reference = TritonKernels(layout), ReductionKernels(layout)
    by_token = wide.transpose(0, 1).contiguous().transpose(0, 1)
    for x, other in ((wide[..., ::2], wide[..., 1::2]), (by_token, wide), (heads, None)):
        got, expected = (reduce_tokens(kernels, x, BOTH, other) for kernels in (fast, reference))
        for name in got:
            near(got[name], expected[name])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attention_agrees_with_float64(monkeypatch, layout):
    for dtype, channels in ((torch.float32, 13), (torch.bfloat16, 64)):
        call = attention_call(layout, dtype, channels)
        precise = AttentionCall(call.q_BHTd.double(), call.k_BHTd.double(), call.v_BHTd.double(), scale=0.2)
        with no_torch_form(monkeypatch):
            got = reduce_attention(TritonKernels(layout), call)
        all_near(got, reduce_attention(ReductionKernels(layout), precise))


def test_what_the_kernels_do_not_read_is_left_to_torch():
    layout = LAYOUTS[0]
    fast, reference = TritonKernels(layout), ReductionKernels(layout)
    x = random(2, layout.tokens, 24).double()
    for name, value in reduce_tokens(fast, x, BOTH, x.flip(1)).items():
        assert torch.equal(value, reduce_tokens(reference, x, BOTH, x.flip(1))[name])
    parameters = norm_parameters("layer", x[0, 0])
    assert all(map(torch.equal, reduce_norm(fast, x, x, parameters), reduce_norm(reference, x, x, parameters)))
    call = attention_call(layout)
    q, k, v, lse = call.q_BHTd, call.k_BHTd, call.v_BHTd, call.lse_BHT
    bias = random(1, 1, layout.tokens, layout.tokens)
    for other in (
        AttentionCall(q, k, v, 0.2, bias=bias, lse_BHT=AttentionCall(q, k, v, 0.2, bias=bias).log_sum_exp()),
        AttentionCall(q, k, v, pattern_BHTT=call.pattern(), lse_BHT=lse),
        AttentionCall(q.double(), k.double(), v.double(), 0.2),
        AttentionCall(q, k, v, 0.2),
    ):
        all_near(reduce_attention(fast, other), reduce_attention(reference, other))


def test_a_wrong_number_of_tokens_is_refused():
    """Otherwise the kernels would write beyond the end of their outputs."""
    kernels, x = TritonKernels(LAYOUTS[0]), random(1, 5, 8)
    with pytest.raises(ValueError, match="5 tokens"):
        reduce_tokens(kernels, x)
    with pytest.raises(ValueError, match="tokens"):
        reduce_attention(kernels, attention_call(LAYOUTS[1]))


@pytest.mark.parametrize("tile", [128, 256])
def test_long_sums_do_not_lose_digits(monkeypatch, tile):
    """A constant channel, as in massive activations, over 4100 tokens, in many tiles."""
    layout = TokenLayout(grid=(1, 4097), prefix=("cls", "reg", "reg"))
    monkeypatch.setattr(triton_kernels, "_PROGRAMS", 4100 // tile)
    monkeypatch.setattr(triton_kernels, "_SMALLEST_TILE", 128)  # larger steps than on a GPU, which saves time
    x = torch.full((1, layout.tokens, 3), 0.1, device=DEVICE) * torch.tensor([1.0, -3.3, 700.0], device=DEVICE)
    got, precise = reduce_tokens(TritonKernels(layout), x), layout.patches_of(x).double()
    exact = torch.stack([(precise / precise.norm(dim=-1, keepdim=True)).sum(1), precise.sum(1)], dim=1)
    torch.testing.assert_close(torch.stack([got[name] for name in BOTH], 1).double(), exact, rtol=5e-6, atol=0)
    torch.testing.assert_close(got["patch_abs_sum"].double(), precise.abs().sum(1), rtol=5e-6, atol=0)
    q = random(1, 1, layout.tokens, 16)
    call = AttentionCall(q, q, q, 0.1)
    call.lse_BHT = call.log_sum_exp()
    all_near(reduce_attention(TritonKernels(layout), call), reduce_attention(ReductionKernels(layout), call))


def test_the_same_numbers_every_time():
    layout = LAYOUTS[-1]
    kernels, x, call = TritonKernels(layout), random(2, layout.tokens, 192), attention_call(layout)
    first, second = ([*reduce_tokens(kernels, x).values(), *reduce_attention(kernels, call)] for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of the interpreter, which uses NumPy
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_nan_and_infinity_propagate(bad):
    """NaN, infinity, and a token of zeros, which has no direction, reach the sums of their image and nothing else."""
    layout = TokenLayout(grid=(4, 5))
    x = random(3, layout.tokens, 16)
    x[1, 4] = bad
    got, expected = (reduce_tokens(kernels, x) for kernels in (TritonKernels(layout), ReductionKernels(layout)))
    assert torch.equal(got["prefix"][:, 0], x[:, 0])
    for name, value in got.items():
        assert torch.equal(torch.isfinite(value), torch.isfinite(expected[name]))
        assert torch.isfinite(value[::2]).all()


# -- only on a GPU


@pytest.mark.skipif(INTERPRETED, reason="takes 4 GB")
def test_offsets_beyond_two_to_the_31():
    layout, stride = LAYOUTS[0], 2**31 + 64
    memory = torch.empty(stride + 12 * 40, dtype=torch.bfloat16, device=DEVICE)
    x = memory.as_strided((2, layout.tokens, 40), (stride, 40, 1))
    x.copy_(random(2, layout.tokens, 40, dtype=torch.bfloat16))
    got, expected = (reduce_tokens(kernels, x) for kernels in (TritonKernels(layout), ReductionKernels(layout)))
    for name in got:
        near(got[name], expected[name])


@pytest.mark.skipif(INTERPRETED, reason="the kernels of PyTorch on a GPU")
def test_the_log_sum_exp_of_every_attention_kernel():
    layout = LAYOUTS[-1]
    qkv = random(2, layout.tokens, 3 * 4 * 64, dtype=torch.bfloat16)
    q, k, v = qkv.unflatten(-1, (3, 4, 64)).permute(2, 0, 3, 1, 4)
    found = []
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        capture = AttentionCapture(2, layout.tokens)
        try:
            with torch.no_grad(), sdpa_kernel(backend), capture:
                torch.nn.functional.scaled_dot_product_attention(q, k, v)
        except RuntimeError:  # this GPU or PyTorch lacks it
            continue
        call = capture.call
        assert call is not None
        assert call.lse_BHT is not None
        got = reduce_attention(TritonKernels(layout), call)
        precise = AttentionCall(q.double(), k.double(), v.double(), call.scale)
        for one, other in zip(got, reduce_attention(ReductionKernels(layout), precise), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5)
        found.append(backend)
    assert found


# -- a whole model


def on_device(name: str) -> Any:
    return model(name).to(DEVICE)


@pytest.mark.parametrize("name", ["registers", "rotary"])
def test_analyze_gives_the_numbers_of_the_torch_form(monkeypatch, name):
    results = []
    for kernels in ("torch", "triton"):
        monkeypatch.setenv("TOKENLENS_KERNELS", kernels)
        results.append(tokenlens.analyze(on_device(name), images(name)[:3], batch_size=2, device=DEVICE))
        assert kernels in results[-1].provenance["kernels"]
    tables = [result.table for result in results]
    keys = ["metric", "part", "site", "group", "block", "head", "n"]
    assert tables[0][keys].equals(tables[1][keys])
    value = [torch.tensor(table["value"].to_numpy()) for table in tables]
    torch.testing.assert_close(value[1], value[0], rtol=1e-5, atol=2e-6, equal_nan=True)


class Launches(TorchDispatchMode):
    """Counts the operations that launch a kernel: those that return or change a tensor, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in func._schema.returns if "Tensor" in str(value.type)]
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in tensors)
        if tensors and not is_view and "empty" not in func.__name__:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not INTERPRETED, reason="counts the calls of the interpreter")
@pytest.mark.parametrize("name", ["registers"])
def test_few_launches_a_block(monkeypatch, name):
    """At most 30 operations a block over a plain forward pass, with the default metrics and several tiles an image."""
    from triton.runtime.interpreter import InterpretedFunction

    passes: list[list[str]] = []
    run, launch = Recorder.run, InterpretedFunction.run

    def counted_run(self: Recorder, pixels: Tensor) -> Any:
        with Launches() as launches:
            passes.append(launches.names)
            return run(self, pixels)

    def counted_launch(self: Any, *args: Any, **kwargs: Any) -> None:
        passes[-1].append(self.__name__)
        with _disable_current_modes():  # the interpreter itself works with tensors
            launch(self, *args, **kwargs)

    monkeypatch.setenv("TOKENLENS_KERNELS", "triton")
    choose_kernels(torch.device("cpu"))  # tries a kernel
    monkeypatch.setattr(triton_kernels, "_SMALLEST_TILE", 8)
    monkeypatch.setattr(Recorder, "run", counted_run)
    monkeypatch.setattr(InterpretedFunction, "run", counted_launch)
    vit, pixels = model(name), images(name)[:6]  # the last pass is after those whose maps are kept
    with no_torch_form(monkeypatch):
        tokenlens.analyze(vit, pixels, batch_size=2, device="cpu")
    with torch.no_grad(), Launches() as plain:
        vit(pixels[-2:])
    over = len(passes[-1]) - len(plain.names)
    kernels = [found for found in passes[-1] if found.startswith("_")]
    from collections import Counter

    print(Counter(passes[-1]) - Counter(plain.names))
    print(f"{name}: {over} operations over {len(plain.names)} in {len(vit.blocks)} blocks, {len(kernels)} kernels")
    assert kernels
    assert over <= 30 * len(vit.blocks)
