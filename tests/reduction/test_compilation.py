"""The library of reductions in C is compiled once, verified, and replaced by torch operations where it cannot be."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenlens
from tests.metrics._cases import images, model
from tests.reduction.test_compiled import COMPILER, needs_compiler
from tokenlens.reduction import compilation
from tokenlens.reduction.compilation import NotCompiled, describe_kernels, kernels_for, library
from tokenlens.reduction.compiled import CompiledKernels
from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.tokens import TokenLayout

CPU = torch.device("cpu")
LAYOUT = TokenLayout(grid=(4, 5))


@pytest.fixture
def new_process(monkeypatch, tmp_path) -> Path:
    """Pretend to be a new process with an empty cache."""
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("TOKENLENS_COMPILE", raising=False)
    forget()
    yield tmp_path / "compiled"
    forget()


def forget() -> None:
    """Forget the compiler and the library of this process."""
    compilation._library_or_reason.cache_clear()
    compilation._compiler.cache_clear()


def refused() -> str:
    """Return why there is no library, after checking that torch operations are used and described."""
    with pytest.raises(NotCompiled) as caught:
        library()
    assert type(kernels_for(LAYOUT, CPU)) is ReductionKernels
    assert describe_kernels(CPU) == f"torch ({caught.value})"
    return str(caught.value)


@needs_compiler
def test_the_library_is_compiled_once_and_cached(new_process, monkeypatch):
    random_state = torch.get_rng_state()
    assert isinstance(kernels_for(LAYOUT, CPU), CompiledKernels)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert describe_kernels(CPU).startswith("C for float32, compiled by ")
    (kept,) = new_process.iterdir()
    assert kept.suffix == ".so"
    written = kept.stat().st_mtime_ns
    forget()
    library()
    assert [path.stat().st_mtime_ns for path in new_process.iterdir()] == [written]
    assert type(kernels_for(LAYOUT, torch.device("meta"))) is ReductionKernels
    assert describe_kernels(torch.device("cuda")) == "torch"
    # Another compiler, or other options, make another file.
    monkeypatch.setenv("CC", f"{COMPILER} -g0")
    forget()
    library()
    assert len(list(new_process.iterdir())) == 2


@needs_compiler
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
def test_a_broken_file_in_the_cache_is_compiled_again(new_process, broken):
    """It is not even loaded: some such files would end the process."""
    library()
    (kept,) = new_process.iterdir()
    content = kept.read_bytes()
    kept.unlink()  # not overwritten: this process has it open
    kept.write_bytes(broken(content))
    kept.chmod(0o700)
    forget()
    library()
    assert kept.read_bytes()[:1000] == content[:1000]
    assert kept.stat().st_size == len(content)
    assert list(new_process.iterdir()) == [kept]


@needs_compiler
def test_a_cache_that_cannot_be_written_or_that_others_can_write_is_not_used(new_process, monkeypatch, tmp_path):
    (tmp_path / "a_file").write_text("")
    with monkeypatch.context() as patch:
        patch.setenv("TOKENLENS_CACHE", str(tmp_path / "a_file"))
        assert isinstance(kernels_for(LAYOUT, CPU), CompiledKernels)
    forget()
    library()
    (kept,) = new_process.iterdir()
    for path in (kept, new_process):
        mode = path.stat().st_mode
        path.chmod(mode | 0o022)
        forget()
        written = kept.stat().st_mtime_ns
        assert isinstance(kernels_for(LAYOUT, CPU), CompiledKernels)
        assert (kept.stat().st_mtime_ns == written) == (path == new_process)  # compiled again, or left alone
        path.chmod(mode)


@needs_compiler
def test_without_a_home_or_disk_space(new_process, monkeypatch):
    def fail(error: Exception) -> Any:
        raise error

    monkeypatch.setattr(compilation, "cache_folder", lambda *_: fail(RuntimeError("no home directory")))
    assert isinstance(kernels_for(LAYOUT, CPU), CompiledKernels)
    forget()
    monkeypatch.setattr(compilation.tempfile, "mkdtemp", lambda *_, **__: fail(OSError(28, "No space left on device")))
    assert "No space left" in refused()


@needs_compiler
def test_with_other_defaults_of_torch(new_process):
    """The library is still verified in float32 on the CPU."""
    script = (
        "import torch; torch.set_default_dtype(torch.float64); torch.set_default_device('meta');"
        "from tokenlens.reduction.compilation import library; library();"
        "assert torch.full((3,), 1e-40, dtype=torch.float32, device='cpu').mul(0.5).min() > 0"  # not flushed to 0
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations"} & set(compilation._FLAGS)


def test_compiling_can_be_disabled(new_process, monkeypatch):
    monkeypatch.setenv("TOKENLENS_COMPILE", "0")
    assert "TOKENLENS_COMPILE" in refused()
    assert not new_process.exists()
    found = tokenlens.analyze(model("layer"), images("layer")[:2])
    assert found.provenance["kernels"] == "torch (disabled by TOKENLENS_COMPILE)"


@pytest.mark.skipif(sys.platform == "win32", reason="shell scripts stand in for compilers")
def test_without_a_compiler_or_with_one_that_fails(new_process, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda _name: None)
        assert refused() == "no C compiler was found"
    for command, message in (('cc "unfinished', "No closing quotation"), (str(tmp_path / "none"), "does not run")):
        forget()
        monkeypatch.setenv("CC", command)
        assert message in refused()
    for message, script in (
        ("no -fopenmp here", 'test "$1" = --version || { echo "error: no -fopenmp here" >&2; exit 1; }'),
        ("cannot be used", 'test "$1" = --version || for last; do case $last in *.so) echo x > $last; esac; done'),
        ("cannot be used", "exit 0"),
    ):
        forget()
        (tmp_path / "cc").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "cc").chmod(0o755)
        monkeypatch.setenv("CC", str(tmp_path / "cc"))
        assert message in refused()
        assert not list(new_process.iterdir())


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("fabsf(token[d])", "token[d]"),
        ("h * k_strides[1]", "0"),
        ("prefix[r] * token_stride", "0"),
        ("prefix[r] * k_strides[2]", "0"),
    ],
)
def test_wrong_results_are_refused(new_process, monkeypatch, tmp_path, right, wrong):
    source = compilation._SOURCE.read_text(encoding="utf-8")
    assert right in source
    changed = tmp_path / "kernels.c"
    changed.write_text(source.replace(right, wrong), encoding="utf-8")
    monkeypatch.setattr(compilation, "_SOURCE", changed)
    assert "its results are wrong" in refused()
