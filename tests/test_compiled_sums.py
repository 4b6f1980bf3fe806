"""The sums in C are those in torch operations, wherever they can be had, and nothing fails where they cannot."""

# Shapes: B images, T tokens, P patches, D channels, H heads, d channels a head.

from __future__ import annotations

import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenlens
from tokenlens import compiled_sums
from tokenlens.attention import AttentionCall, log_sum_exp
from tokenlens.compiled_sums import CompiledSums, NotCompiled, how_summed, library, sums_for
from tokenlens.sums import Sums
from tokenlens.tokens import TokenLayout

from .metrics._cases import images, model

COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
compiled = pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs a C compiler with OpenMP")

CPU = torch.device("cpu")
LAYOUTS = [
    TokenLayout(grid=(4, 5)),
    TokenLayout(grid=(3, 3), prefix=("cls", "reg", "reg")),
    TokenLayout(grid=(2, 7), prefix=("reg",)),
    TokenLayout(grid=(4, 4), prefix=()),
    TokenLayout(grid=(1, 1)),
]
BOTH = ("unit_patch_sum", "patch_sum")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2 + 0.3


def of_tokens(sums: Sums, x: Tensor, which: Any = BOTH, other: Tensor | None = None) -> dict[str, Tensor]:
    """All that is taken of tokens (B, T, D)."""
    layout = sums.layout
    places = {
        "norms": x.new_empty(x.shape[:2]),
        "rows": x.new_empty(len(x), len(layout.prefix) + len(which), x.shape[-1]),
        "magnitudes": x.new_empty(len(x), x.shape[-1]),
    }
    if other is not None:
        places |= {"other": other, "products": x.new_empty(x.shape[:2])}
    sums.tokens(x, which, **places)
    return places


def of_stages(sums: Sums, x: Tensor, weight: Tensor | None, centred: bool) -> list[Tensor]:
    """All that is taken of a norm's input (B, T, D)."""
    stages, patches = 1 if weight is None else 2, sums.layout.patches
    means = x.new_zeros(len(x), patches) if centred else None
    lengths, total = x.new_empty(len(x), stages, patches), x.new_empty(len(x), stages, x.shape[-1])
    sums.stages(sums.layout.patches_of(x), weight, means, lengths, total)
    return [lengths, total] if means is None else [means, lengths, total]


def of_attention(sums: Sums, call: AttentionCall) -> list[Tensor]:
    """The row of CLS, where there is one, and the columns of the prefix."""
    shape, layout = call.q_BHTd.shape, sums.layout
    row = call.q_BHTd.new_zeros(*shape[:2], layout.tokens)
    columns = call.q_BHTd.new_zeros(*shape[:2], len(layout.prefix))
    sums.attention(call, row if layout.has("cls") else None, columns if layout.prefix else None)
    return [row, columns]


def attention_call(layout: TokenLayout, seed: int = 0) -> AttentionCall:
    """q, k and v as timm's blocks lay them out."""
    q, k, v = random(3, layout.tokens, 3 * 4 * 13, seed=seed).unflatten(-1, (3, 4, 13)).permute(2, 0, 3, 1, 4)
    return AttentionCall(q, k, v, scale=0.2, lse_BHT=log_sum_exp(q, k, 0.2))


def near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-5, atol=1e-5)


@compiled
@pytest.mark.parametrize("channels", [1, 8, 45])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_in_c_as_in_torch_in_float64(layout, channels):
    x, other = random(3, layout.tokens, channels), random(3, layout.tokens, channels, seed=1)
    ours, theirs = CompiledSums(layout, library()), Sums(layout)
    for which in (BOTH, BOTH[:1], BOTH[1:], ()):
        for beside in (None, other):
            got = of_tokens(ours, x, which, beside)
            expected = of_tokens(theirs, x.double(), which, None if beside is None else beside.double())
            for name in got:
                near(got[name], expected[name])
    for weight in (None, random(channels, seed=2)):
        for centred in (True, False) if channels > 1 else (False,):  # one channel minus its mean is nothing
            expected = of_stages(theirs, x.double(), None if weight is None else weight.double(), centred)
            for got, value in zip(of_stages(ours, x, weight, centred), expected, strict=True):
                near(got, value)


@compiled
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_attention_in_c_as_in_torch_in_float64(layout):
    call = attention_call(layout)
    precise = AttentionCall(call.q_BHTd.double(), call.k_BHTd.double(), call.v_BHTd.double(), scale=0.2)
    got = of_attention(CompiledSums(layout, library()), call)
    for ours, theirs in zip(got, of_attention(Sums(layout), precise), strict=True):
        near(ours, theirs)
    # q and k that lie head by head, as other libraries have them.
    by_head = AttentionCall(call.q_BHTd.contiguous(), call.k_BHTd.contiguous(), call.v_BHTd, 0.2, lse_BHT=call.lse_BHT)
    for ours, theirs in zip(of_attention(CompiledSums(layout, library()), by_head), got, strict=True):
        assert torch.equal(ours, theirs)


class Elsewhere(Tensor):
    """Stands for tensors whose numbers are not where ``data_ptr`` says."""

    def data_ptr(self) -> int:
        raise AssertionError("asked where its numbers are")


@compiled
def test_what_c_does_not_read_goes_to_torch():
    layout = LAYOUTS[1]
    ours, theirs = CompiledSums(layout, library()), Sums(layout)
    wide = random(2, layout.tokens, 24)
    elsewhere = wide.as_subclass(Elsewhere)
    turned = wide.transpose(0, 1).contiguous().transpose(0, 1)
    for x in (wide.double(), wide[..., ::2], wide[..., :5], turned, elsewhere):
        for name, value in of_tokens(ours, x, BOTH, x.flip(1)).items():
            near(value, of_tokens(theirs, x, BOTH, x.flip(1))[name])
        for got, value in zip(of_stages(ours, x, x[0, 0], True), of_stages(theirs, x, x[0, 0], True), strict=True):
            near(got, value)
    call = attention_call(layout)
    for other in (
        AttentionCall(call.q_BHTd, call.k_BHTd, call.v_BHTd, 0.2, bias=random(1, 1, layout.tokens, layout.tokens)),
        AttentionCall(call.q_BHTd, call.k_BHTd, call.v_BHTd, pattern_BHTT=call.pattern()),
        AttentionCall(call.q_BHTd.bfloat16(), call.k_BHTd.bfloat16(), call.v_BHTd, 0.2, lse_BHT=call.lse_BHT),
    ):
        for got, value in zip(of_attention(ours, other), of_attention(theirs, other), strict=True):
            near(got, value)


@compiled
@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_what_is_not_a_number_shows_as_in_torch(bad):
    """A token of zeros has no direction; NaN and infinity reach the sums, and no other image."""
    layout = LAYOUTS[0]
    x = random(3, layout.tokens, 16)
    x[1, 4] = bad
    got, expected = (of_tokens(sums, x) for sums in (CompiledSums(layout, library()), Sums(layout)))
    for name in ("norms", "rows", "magnitudes"):
        sums_only = got[name][:, 1:] if name == "rows" else got[name]  # in torch NaN reaches the picked CLS, too
        as_torch = expected[name][:, 1:] if name == "rows" else expected[name]
        assert torch.equal(torch.isfinite(sums_only), torch.isfinite(as_torch))
        assert torch.isfinite(got[name][::2]).all()
    for ours, theirs in zip(
        of_stages(CompiledSums(layout, library()), x, random(16), True),
        of_stages(Sums(layout), x, random(16), True), strict=True,
    ):  # fmt: skip
        assert torch.equal(torch.isfinite(ours), torch.isfinite(theirs))


@compiled
def test_neither_threads_nor_other_images_change_a_bit():
    layout, threads = LAYOUTS[1], torch.get_num_threads()
    sums, x, call = CompiledSums(layout, library()), random(7, layout.tokens, 40), attention_call(layout)

    def everything(x: Tensor) -> list[Tensor]:
        return [*of_tokens(sums, x, BOTH, x).values(), *of_stages(sums, x, x[0, 0], True), *of_attention(sums, call)]

    try:
        torch.set_num_threads(1)
        alone = everything(x)
        torch.set_num_threads(3)
        together = everything(x)
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(alone, together, strict=True):
        assert torch.equal(one, three)
    for name, value in of_tokens(sums, x[2:3], BOTH, x[2:3]).items():
        assert torch.equal(value, of_tokens(sums, x, BOTH, x)[name][2:3])


# -- where there is none, or a wrong one


@pytest.fixture
def anew(monkeypatch, tmp_path) -> Path:
    """As in a new process with an empty cache."""
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TOKENLENS_COMPILE", raising=False)
    forget()
    yield tmp_path / "compiled"
    forget()


def forget() -> None:
    """What this process knows of its compiler."""
    compiled_sums._found.cache_clear()
    compiled_sums._compiler.cache_clear()


def program(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def refused() -> str:
    """Why there is no library; sums are taken in torch operations, and say so."""
    with pytest.raises(NotCompiled) as caught:
        library()
    assert type(sums_for(LAYOUTS[0], CPU)) is Sums
    assert how_summed(CPU) == f"torch ({caught.value})"
    return str(caught.value)


@compiled
def test_compiled_once_and_kept(anew, monkeypatch):
    assert isinstance(sums_for(LAYOUTS[0], CPU), CompiledSums)
    assert how_summed(CPU).startswith("C for float32, compiled by ")
    (kept,) = anew.iterdir()
    assert kept.suffix == ".so"
    written = kept.stat().st_mtime_ns
    forget()
    library()
    assert [path.stat().st_mtime_ns for path in anew.iterdir()] == [written]
    assert type(sums_for(LAYOUTS[0], torch.device("meta"))) is Sums
    assert how_summed(torch.device("cuda")) == "torch"
    # Another compiler, or other words for it, makes another file.
    monkeypatch.setenv("CC", f"{COMPILER} -g0")
    forget()
    library()
    assert len(list(anew.iterdir())) == 2


@compiled
def test_a_broken_file_in_the_cache_is_made_anew(anew):
    library()
    (kept,) = anew.iterdir()
    kept.unlink()  # not written over: this process has it open
    kept.write_bytes(b"broken off")
    forget()
    library()
    assert kept.stat().st_size > 1000
    assert list(anew.iterdir()) == [kept]


@compiled
def test_without_a_cache_that_can_be_written(anew, monkeypatch, tmp_path):
    blocked = tmp_path / "a_file"
    blocked.write_text("")
    monkeypatch.setenv("TOKENLENS_CACHE", str(blocked))
    assert isinstance(sums_for(LAYOUTS[0], CPU), CompiledSums)


def test_forbidden(anew, monkeypatch):
    monkeypatch.setenv("TOKENLENS_COMPILE", "0")
    assert "TOKENLENS_COMPILE" in refused()
    assert not anew.exists()


def test_without_a_compiler(anew, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert refused() == "no C compiler was found"


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts stand in for compilers")
def test_with_a_compiler_that_fails(anew, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", str(tmp_path / "not_there"))
    assert "does not run" in refused()
    for says, text in (
        ("no -fopenmp here", 'test "$1" = --version || { echo "error: no -fopenmp here" >&2; exit 1; }'),
        ("cannot be used", 'test "$1" = --version || for last; do case $last in *.so) echo x > $last; esac; done'),
        ("cannot be used", "exit 0"),
    ):
        forget()
        monkeypatch.setenv("CC", program(tmp_path, "cc", text))
        assert says in refused()
        assert not list(anew.iterdir())


@compiled
def test_wrong_sums_are_refused(anew, monkeypatch, tmp_path):
    wrong = tmp_path / "sums.c"
    wrong.write_text(compiled_sums._SOURCE.read_text().replace("fabsf(token[d])", "token[d]"))
    monkeypatch.setattr(compiled_sums, "_SOURCE", wrong)
    assert "its sums are wrong" in refused()


@compiled
def test_choosing_draws_no_random_numbers(anew):
    before = torch.get_rng_state()
    library()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_provenance_says_how(anew, monkeypatch):
    monkeypatch.setenv("TOKENLENS_COMPILE", "0")
    found = tokenlens.analyze(model("layer"), images("layer")[:2])
    assert found.provenance["sums"] == "torch (TOKENLENS_COMPILE forbids compiling)"
