"""The sums in C are those in torch operations, wherever they can be had, and nothing fails where they cannot."""

# Shapes: B images, T tokens, P patches, D channels, H heads, d channels a head.

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import tokenlens
from tests.metrics._cases import images, model
from tokenlens.recording.attention import AttentionCall, log_sum_exp
from tokenlens.reduction import compiled as compiled_sums
from tokenlens.reduction.compiled import CompiledSums, NotCompiled, how_summed, library, sums_for
from tokenlens.reduction.kernels import Sums
from tokenlens.tokens import TokenLayout

COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
compiled = pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs a C compiler with OpenMP")

CPU = torch.device("cpu")
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
    """q, k and v as timm's blocks lay them out, but k with strides of its own."""
    q, k, v = random(3, layout.tokens, 3 * 4 * 13, seed=seed).unflatten(-1, (3, 4, 13)).permute(2, 0, 3, 1, 4)
    k = k.clone(memory_format=torch.contiguous_format)
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


class Asked(Exception):
    """C was asked."""


class Nothing:
    """A library that is not to be asked."""

    def __getattr__(self, name: str) -> Any:
        def function(*_arguments: Any) -> None:
            raise Asked(name)

        return function


@compiled
def test_what_c_does_not_read_goes_to_torch():
    layout = LAYOUTS[1]
    ours, theirs = CompiledSums(layout, Nothing()), Sums(layout)
    wide = random(2, layout.tokens, 24)
    with pytest.raises(Asked):
        of_tokens(ours, wide)
    with pytest.raises(Asked):
        of_stages(ours, wide, wide[0, 0], True)
    elsewhere, turned = wide.as_subclass(Elsewhere), torch._neg_view(wide)
    for x in (wide.double(), wide[..., ::2], elsewhere, turned):
        for name, value in of_tokens(ours, x, BOTH, x.flip(1)).items():
            near(value, of_tokens(theirs, x, BOTH, x.flip(1))[name])
        for got, value in zip(of_stages(ours, x, x[0, 0], True), of_stages(theirs, x, x[0, 0], True), strict=True):
            near(got, value)
    for other in (wide.transpose(0, 1).contiguous().transpose(0, 1), wide[:1], elsewhere):
        near(of_tokens(ours, wide, BOTH, other)["products"], (wide * other).sum(-1))
    for weight in (random(1), wide[0, 0].as_subclass(Elsewhere), random(48)[::2]):
        for got, value in zip(of_stages(ours, wide, weight, True), of_stages(theirs, wide, weight, True), strict=True):
            near(got, value)


@compiled
def test_attention_that_c_does_not_read_goes_to_torch():
    layout = LAYOUTS[1]
    ours, theirs = CompiledSums(layout, Nothing()), Sums(layout)
    call = attention_call(layout)
    q, k, v, lse = call.q_BHTd, call.k_BHTd, call.v_BHTd, call.lse_BHT
    with pytest.raises(Asked):
        of_attention(ours, call)
    bias = random(1, 1, layout.tokens, layout.tokens)
    for other in (
        AttentionCall(q, k, v, 0.2, bias=bias, lse_BHT=log_sum_exp(q, k, 0.2, bias)),
        AttentionCall(q, k, v, pattern_BHTT=call.pattern(), lse_BHT=lse),
        AttentionCall(q.bfloat16(), k.bfloat16(), v, 0.2, lse_BHT=lse),
        AttentionCall(q, k.double(), v, 0.2, lse_BHT=lse),
        AttentionCall(q, k, v, 0.2, lse_BHT=lse.double()),
        AttentionCall(q, k, v, 0.2),
    ):
        for got, value in zip(of_attention(ours, other), of_attention(theirs, other), strict=True):
            near(got, value)
    per_head = random(2, 4, layout.tokens, 13)
    norms, rows = per_head.new_empty(2, 4, layout.tokens), per_head.new_empty(2, 4, len(layout.prefix) + 2, 13)
    ours.tokens(per_head, BOTH, norms, rows)
    near(norms, per_head.norm(dim=-1))


@compiled
@pytest.mark.parametrize("name", ["layer", "registers", "rotary"])
def test_c_takes_every_sum_of_a_model(monkeypatch, name):
    """What it leaves to torch is right and slow: nobody would notice but for the time."""
    library()  # checks itself against torch

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("left to torch")

    for method in ("tokens", "stages", "attention"):
        monkeypatch.setattr(Sums, method, refuse)
    tokenlens.analyze(model(name), images(name)[:3], batch_size=2, device="cpu")


@compiled
def test_c_writes_nowhere_else():
    """A place that is too small, in another precision or with gaps is refused before anything is written."""
    layout = LAYOUTS[0]
    sums, x, call = CompiledSums(layout, library()), random(4, layout.tokens, 16), attention_call(layout)
    good = {"norms": x.new_zeros(4, layout.tokens), "rows": x.new_zeros(4, 3, 16)}
    for name, wrong in (
        ("norms", x.new_zeros(2, layout.tokens)),
        ("norms", x.new_zeros(4, layout.tokens).double()),
        ("rows", x.new_zeros(4, 3, 32)[..., ::2]),
        ("magnitudes", x.new_zeros(2, 16)),
    ):
        with pytest.raises(ValueError, match="place"):
            sums.tokens(x, BOTH, **good | {name: wrong})
    with pytest.raises(ValueError, match="place"):
        sums.stages(layout.patches_of(x), None, None, x.new_zeros(2, 1, layout.patches), x.new_zeros(4, 1, 16))
    with pytest.raises(ValueError, match="place"):
        sums.attention(call, x.new_zeros(1, 4, layout.tokens), None)
    with pytest.raises(ValueError, match="tokens"):
        sums.tokens(x[:, 1:], BOTH, x.new_zeros(4, layout.tokens - 1), x.new_zeros(4, 3, 16))


class Doubled(VisionTransformer):
    """Runs its first block on every image twice."""

    def forward_features(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        x = self.blocks[0](torch.cat([x, x.flip(-1)]))[: len(x)]
        return self.norm(self.blocks[1](x))


class Mixed(Doubled):
    """Computes in two precisions."""

    def forward_features(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        x = self.norm_pre(self._pos_embed(self.patch_embed(x)))
        return self.norm(self.blocks[1](self.blocks[0].double()(x.double()).float()))


@pytest.mark.parametrize(("kind", "said"), [(Doubled, "2 images in a forward pass of 1"), (Mixed, "precision")])
def test_models_that_do_something_else_are_refused(kind, said):
    vit = kind(img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0).eval()
    with pytest.raises((ValueError, RuntimeError), match=said):
        tokenlens.analyze(vit, images("layer")[:2, :, :16, :16], batch_size=2)


@compiled
def test_long_sums_do_not_lose_digits():
    """A channel that is the same everywhere, as in massive activations, over a grid of 128 × 128."""
    layout = TokenLayout(grid=(128, 128))
    x = torch.full((1, layout.tokens, 3), 0.1) * torch.tensor([1.0, -3.3, 700.0])
    got = of_tokens(CompiledSums(layout, library()), x)
    expected = x[:, 1:].double()
    exact = torch.cat([(expected / expected.norm(dim=-1, keepdim=True)).sum(1), expected.sum(1)])
    torch.testing.assert_close(got["rows"][0, 1:].double(), exact, rtol=1e-5, atol=0)
    torch.testing.assert_close(got["magnitudes"].double(), expected.abs().sum(1), rtol=1e-5, atol=0)


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
        of_stages(Sums(layout), x, random(16), True),
        strict=True,
    ):
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
@pytest.mark.parametrize(
    "broken",
    [
        lambda content: b"broken off",
        lambda content: content[: len(content) // 2],
        lambda content: content[: len(content) // 4] + bytes(len(content) - len(content) // 4),
        lambda content: b"",
    ],
    ids=["text", "half", "zeros", "empty"],
)
def test_a_broken_file_in_the_cache_is_made_anew(anew, broken):
    """Not even loaded: some such files would end the process."""
    library()
    (kept,) = anew.iterdir()
    content = kept.read_bytes()
    kept.unlink()  # not written over: this process has it open
    kept.write_bytes(broken(content))
    kept.chmod(0o700)
    forget()
    library()
    assert kept.read_bytes()[:1000] == content[:1000]
    assert kept.stat().st_size == len(content)
    assert list(anew.iterdir()) == [kept]


@compiled
def test_without_a_cache_that_can_be_written(anew, monkeypatch, tmp_path):
    blocked = tmp_path / "a_file"
    blocked.write_text("")
    monkeypatch.setenv("TOKENLENS_CACHE", str(blocked))
    assert isinstance(sums_for(LAYOUTS[0], CPU), CompiledSums)


@compiled
def test_a_cache_that_others_can_write_to_is_not_trusted(anew):
    library()
    (kept,) = anew.iterdir()
    for path in (kept, anew):
        mode = path.stat().st_mode
        path.chmod(mode | 0o022)
        forget()
        written = kept.stat().st_mtime_ns
        assert isinstance(sums_for(LAYOUTS[0], CPU), CompiledSums)
        assert (kept.stat().st_mtime_ns == written) == (path == anew)  # made anew, or left alone
        path.chmod(mode)


@compiled
def test_without_a_home_or_any_room(anew, monkeypatch):
    def no_home(*_: Any) -> None:
        raise RuntimeError("Could not determine home directory.")

    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled_sums, "cache_folder", no_home)
    assert isinstance(sums_for(LAYOUTS[0], CPU), CompiledSums)
    forget()
    monkeypatch.setattr(compiled_sums.tempfile, "mkdtemp", no_room)
    assert "No space left" in refused()


def test_with_a_compiler_that_cannot_be_read(anew, monkeypatch):
    monkeypatch.setenv("CC", 'cc "unfinished')
    assert "No closing quotation" in refused()


@compiled
def test_whatever_torch_makes_by_default(anew):
    """The sums are still compared in float32 and on the CPU."""
    script = (
        "import torch; torch.set_default_dtype(torch.float64); torch.set_default_device('meta');"
        "from tokenlens.reduction.compiled import library; library();"
        "assert torch.full((3,), 1e-40, dtype=torch.float32, device='cpu').mul(0.5).min() > 0"  # not flushed to 0
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & set(compiled_sums._FLAGS)


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
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("fabsf(token[d])", "token[d]"),
        ("h * k_strides[1]", "0"),
        ("prefix[r] * token_stride", "0"),
        ("prefix[r] * k_strides[2]", "0"),
    ],
)
def test_wrong_sums_are_refused(anew, monkeypatch, tmp_path, right, wrong):
    source = compiled_sums._SOURCE.read_text(encoding="utf-8")
    assert right in source
    changed = tmp_path / "sums.c"
    changed.write_text(source.replace(right, wrong), encoding="utf-8")
    monkeypatch.setattr(compiled_sums, "_SOURCE", changed)
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
