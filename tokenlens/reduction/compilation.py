"""Compile the reductions in C when they are first needed, cache the library, and choose the kernels for a device."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokenlens.recording.attention import AttentionCall, log_sum_exp
from tokenlens.reduction.compiled import CompiledKernels
from tokenlens.reduction.kernels import ReductionKernels
from tokenlens.storage.cache import cache_folder
from tokenlens.tokens import TokenLayout

_SOURCE = Path(__file__).with_name("kernels.c")
# Sums may be reordered, which lets the compiler vectorize. No -ffast-math: NaN and infinity must propagate, and loading
# a library linked with it makes the whole process flush denormal numbers to zero.
_FLAGS = (
    *("-std=c11", "-O3", "-march=native", "-fopenmp", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"),
    *("-fno-math-errno", "-ffp-contract=fast", "-fprefetch-loop-arrays", "-shared", "-fPIC"),
)


class NotCompiled(Exception):
    """The compiled kernels cannot be used; the message says why."""


def kernels_for(layout: TokenLayout, device: torch.device) -> ReductionKernels:
    """Return the fastest kernels for a device."""
    if device.type == "cpu":
        with contextlib.suppress(NotCompiled):
            return CompiledKernels(layout, library())
    return ReductionKernels(layout)


def describe_kernels(device: torch.device) -> str:
    """Describe the kernels for a device for the provenance: the compiler, or why torch operations are used."""
    if device.type != "cpu":
        return "torch"
    try:
        library()
    except NotCompiled as error:
        return f"torch ({error})"
    return f"C for float32, compiled by {_compiler()[1]}"


def library() -> ctypes.CDLL:
    """Load the compiled functions, compiling them if necessary.

    Raises:
        NotCompiled: without a C compiler, where files cannot be written or loaded, or with ``TOKENLENS_COMPILE=0``.
    """
    found = _library_or_reason()
    if isinstance(found, NotCompiled):
        raise found
    return found


@functools.cache
def _library_or_reason() -> ctypes.CDLL | NotCompiled:
    try:
        return _load_or_compile()
    except NotCompiled as error:
        return error
    except (OSError, RuntimeError, ValueError) as error:  # no home folder, a full disk, a read-only system, …
        return NotCompiled(str(error))


@functools.cache
def _compiler() -> tuple[list[str], str]:
    """Return the command of the C compiler and its version."""
    installed = [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path is not None]
    command = shlex.split(os.environ.get("CC", "")) or installed[:1]
    if not command:
        raise NotCompiled("no C compiler was found")
    try:
        version = _run([*command, "--version"])
    except (OSError, subprocess.SubprocessError):
        raise NotCompiled(f"the C compiler {command[0]} does not run") from None
    return command, version.partition("\n")[0]


def _run(command: list[str]) -> str:
    options: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "check": True}
    return str(subprocess.run(command, timeout=120, **options).stdout)


def _processor() -> str:
    """Describe the processor that is compiled for; machines with different ones can share a home folder."""
    lines: set[str] = set()
    with contextlib.suppress(OSError):
        lines.update(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines())
    kept = sorted(line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part")))
    return "\n".join([platform.machine(), *kept])


def _load_or_compile() -> ctypes.CDLL:
    """Load the library from the cache, or compile it into the cache or, if that is not writable, a temporary folder."""
    if os.environ.get("TOKENLENS_COMPILE", "1").lower() in ("0", "false", "no", "off"):
        raise NotCompiled("disabled by TOKENLENS_COMPILE")
    if not hasattr(os, "geteuid"):
        raise NotCompiled("compiling needs a POSIX system")
    command, version = _compiler()
    parts = (_SOURCE.read_text(encoding="utf-8"), *_FLAGS, *command, version, _processor())
    name = f"kernels_{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    try:
        cache = cache_folder("compiled")
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _only_ours(cache):
            raise PermissionError(f"others may write to {cache}")
        with contextlib.suppress(OSError):
            return _open(_check_seal(cache / name))
        folder = tempfile.mkdtemp(dir=cache)
    except (OSError, RuntimeError):
        cache, folder = None, tempfile.mkdtemp()
    new = Path(folder) / name
    try:
        _run([*command, *_FLAGS, str(_SOURCE), "-o", str(new), "-lm"])
        _seal(new)
        opened = _open(new)
        if cache is not None:
            with contextlib.suppress(OSError):
                new.replace(cache / name)  # atomic, also where several processes compile at once
        return opened
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[-200:]).strip()
        raise NotCompiled(f"{command[0]} fails: {reason}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise NotCompiled(f"the output of {command[0]} cannot be used: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _only_ours(path: Path) -> bool:
    """Return whether nobody else can write to the path, whose content will be executed."""
    status = path.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _seal(path: Path) -> None:
    """Append the file's hash, which loaders ignore, and flush it to disk."""
    with path.open("r+b") as file:
        digest = hashlib.sha256(file.read()).digest()
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o700)


def _check_seal(path: Path) -> Path:
    """Return the path if only we can write to it and its hash matches; loading a truncated library kills the process.

    Raises:
        OSError: otherwise.
    """
    content = path.read_bytes()
    if not _only_ours(path) or hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise OSError(f"{path} has been changed")
    return path


def _open(path: Path) -> ctypes.CDLL:
    """Load a library whose results agree with those of the torch operations.

    Raises:
        OSError: if it cannot be loaded, or its results are wrong.
    """
    opened = ctypes.CDLL(str(path))
    layout = TokenLayout(grid=(3, 4), prefix=("cls", "reg", "reg"), patch_start=1)
    try:
        found = _try_all(CompiledKernels(layout, opened))
    except AttributeError as error:  # a function is missing
        raise OSError(str(error)) from None
    expected = _try_all(ReductionKernels(layout))
    if not all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in zip(found, expected, strict=True)):
        raise OSError("its results are wrong")
    return opened


def _try_all(kernels: ReductionKernels) -> list[Tensor]:
    """Run every reduction on made-up activations."""
    layout = kernels.layout
    images, channels, heads, patches, prefixes = 2, 21, 3, layout.patches, len(layout.prefix)
    count = images * layout.tokens * 3 * channels
    numbers = torch.linspace(0, 99, count, dtype=torch.float32, device="cpu").sin() + 0.1
    qkv_BTC = numbers.reshape(images, layout.tokens, 3 * channels)
    x, other = qkv_BTC[..., :channels], qkv_BTC[..., channels : 2 * channels]
    norms, products = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    rows, magnitudes = x.new_empty(images, prefixes + 2, channels), x.new_empty(images, channels)
    means, lengths = x.new_empty(images, patches), x.new_empty(images, 2, patches)
    stage_sums = x.new_empty(images, 2, channels)
    kernels.reduce_tokens(x, ("unit_patch_sum", "patch_sum"), norms, rows, magnitudes, other, products)
    kernels.reduce_norm(layout.patches_of(x), x[0, 0], means, lengths, stage_sums)
    q, k, v = qkv_BTC.unflatten(-1, (3, heads, channels // heads)).permute(2, 0, 3, 1, 4)
    call = AttentionCall(q, k, v, 0.4, lse_BHT=log_sum_exp(q, k, 0.4))
    row, columns = x.new_empty(images, heads, layout.tokens), x.new_empty(images, heads, prefixes)
    kernels.reduce_attention(call, row, columns)
    return [norms, products, rows, magnitudes, means, lengths, stage_sums, row, columns]
