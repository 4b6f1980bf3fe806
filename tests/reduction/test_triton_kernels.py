"""The Triton kernels give the numbers of the torch operations in the interpreter, compile, and run on a GPU."""

from __future__ import annotations

import inspect
import platform
from typing import Any

import pytest
import torch

from tests.support.command_line import REPOSITORY, finished, process

triton = pytest.importorskip("triton", reason="Triton is not installed")

CHECKS = REPOSITORY / "tests" / "reduction" / "triton_checks.py"


def run_checks(**env: str) -> None:
    command = ("-m", "pytest", "-p", "no:cacheprovider", CHECKS)
    exit_code, stdout, stderr = finished(process(*command, cwd=REPOSITORY, PYTEST_ADDOPTS="", **env), seconds=300)
    assert exit_code == 0, f"{stdout[-6000:]}{stderr[-2000:]}"


@pytest.mark.skipif(
    tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8),
    reason="loops fail in the interpreter of Triton 3.6 with NumPy 2.4",
)
def test_numbers_in_the_interpreter():
    """In another process: whether kernels are compiled or interpreted is decided when Triton is imported."""
    run_checks(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_numbers_on_a_gpu():
    run_checks(TRITON_INTERPRET="0")


def compile_for_a_gpu(kernel: Any, pointers: dict[str, str], constants: dict[str, int], num_warps: int) -> Any:
    """Compile a kernel for an H100, which needs no GPU; pointers that are not given are None, other arguments int32."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(inspect.signature(kernel.fn).parameters)
    types = {name: "constexpr" if name in constants or name.endswith("_ptr") else "i32" for name in names}
    types |= {"scale": "fp32"} if "scale" in names else {}
    types |= pointers
    constant = {(i,): constants.get(name) for i, name in enumerate(names) if types[name] == "constexpr"}
    source = ASTSource(kernel, types, constant)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton brings NVIDIA's assembler for x86 only")
@pytest.mark.parametrize("channels", [45, 1536])
def test_the_kernels_compile(monkeypatch, tmp_path, channels):
    """The interpreter accepts some programs that the compiler refuses."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from tokenlens.reduction import triton_kernels

    blocks = triton_kernels._blocks(channels)
    constants = {"CHANNELS": channels, "x_channel": 1, "other_channel": 1, **blocks}
    num_warps = constants.pop("num_warps")
    f32 = [f"{name}_ptr" for name in ("norms", "prefix", "sums", "lengths", "mean", "weight")]
    tokens = dict.fromkeys(f32[:3], "*fp32")
    sums = {"SUMS": 5, "UNIT": 0, "PLAIN": 1, "ABS": 2, "CENTRED": 3, "WEIGHTED": 4}
    norm = constants | {"PREFIXES": 1} | sums
    update = norm | dict.fromkeys(sums, -1)
    attention = constants | {"PREFIXES": 5, "BLOCK_R": 8, "q_channel": 1, "k_channel": 1}
    for kernel, pointers, given in (
        (triton_kernels._token_kernel, {"x_ptr": "*bf16"} | dict.fromkeys(f32, "*fp32"), norm),
        (
            triton_kernels._token_kernel,
            {"x_ptr": "*fp16", "other_ptr": "*fp32", "products_ptr": "*fp32", **tokens},
            update,
        ),
        (
            triton_kernels._attention_kernel,
            {"q_ptr": "*bf16", "k_ptr": "*bf16"} | dict.fromkeys(("lse_ptr", "row_ptr", "columns_ptr"), "*fp32"),
            attention,
        ),
    ):
        compiled = compile_for_a_gpu(kernel, pointers, given, num_warps)
        assert compiled.asm["cubin"]
        assert ".local" not in compiled.asm["ptx"]
