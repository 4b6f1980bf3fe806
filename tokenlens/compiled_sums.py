"""The same sums in C, each tensor read once: compiled when first needed, where the machine has a C compiler."""

# Shapes: B images, T tokens, P patches, R prefix tokens, S stages of a norm, D channels, H heads, d channels a head.

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
from torch import Tensor, nn

from tokenlens.attention import AttentionCall, log_sum_exp
from tokenlens.cache import cache_folder
from tokenlens.sums import Sums
from tokenlens.tokens import TokenLayout

_SOURCE = Path(__file__).with_name("sums.c")
# Sums may be taken in any order, which lets the compiler use vectors. Not -ffast-math: NaN and infinity must show, and
# loading a library made with that would change how the whole process treats the smallest numbers.
_FLAGS = (
    "-std=c11", "-O3", "-march=native", "-fopenmp", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math",
    "-fno-math-errno", "-ffp-contract=fast", "-fprefetch-loop-arrays", "-shared", "-fPIC",
)  # fmt: skip

_INT, _LONG, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_THREE = ctypes.c_int64 * 3
_FUNCTIONS = {
    "tokenlens_tokens": (
        _INT, _LONG, _LONG, _LONG, _POINTER, _LONG, _LONG, _LONG, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _LONG,
        _LONG, _LONG, _POINTER, _POINTER, _POINTER,
    ),
    "tokenlens_stages": (
        _INT, _LONG, _LONG, _LONG, _POINTER, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER,
    ),
    "tokenlens_scores": (
        _INT, _LONG, _LONG, _LONG, _LONG, _POINTER, _POINTER, _POINTER, _POINTER, _FLOAT, _POINTER, _POINTER, _LONG,
        _LONG, _POINTER, _LONG, _LONG, _POINTER, _POINTER,
    ),
}  # fmt: skip


class NotCompiled(Exception):
    """Why the sums are taken in torch operations."""


class CompiledSums(Sums):
    """Takes the sums in C where it can, which is for float32 on the CPU, and in torch operations elsewhere."""

    def __init__(self, layout: TokenLayout, library: ctypes.CDLL) -> None:
        super().__init__(layout)
        self._library = library
        self._prefix = (ctypes.c_int64 * len(layout.prefix))(*layout.prefix_positions)
        self._first_patch = layout.positions("patch")[0]
        self._cls = layout.positions("cls")[0] if layout.has("cls") else -1

    def tokens(
        self,
        x: Tensor,
        sums: tuple[str, ...] = (),
        norms: Tensor | None = None,
        rows: Tensor | None = None,
        magnitudes: Tensor | None = None,
        other: Tensor | None = None,
        products: Tensor | None = None,
    ) -> None:
        """As ``Sums.tokens``, in one pass over ``x``."""
        alike = other is None or (_readable(other) and other.stride() == x.stride())
        if x.dim() != 3 or not _readable(x) or not alike:
            super().tokens(x, sums, norms, rows, magnitudes, other, products)
            return
        prefixes = len(self.layout.prefix)
        unit, plain = (
            prefixes + sums.index(name) if name in sums else -1 for name in ("unit_patch_sum", "patch_sum")
        )
        self._library.tokenlens_tokens(
            torch.get_num_threads(), *x.shape, x.data_ptr(), *x.stride()[:-1], self._first_patch, self.layout.patches,
            self._prefix, prefixes, _address(norms), _address(rows), prefixes + len(sums), unit, plain,
            _address(magnitudes), _address(other), _address(products),
        )  # fmt: skip

    def stages(
        self,
        patches_BPD: Tensor,
        weight_D: Tensor | None,
        means_BP: Tensor | None,
        lengths_BSP: Tensor,
        sums_BSD: Tensor,
    ) -> None:
        """As ``Sums.stages``, in one pass over the patches."""
        if not _readable(patches_BPD) or (weight_D is not None and not _readable(weight_D)):
            super().stages(patches_BPD, weight_D, means_BP, lengths_BSP, sums_BSD)
            return
        self._library.tokenlens_stages(
            torch.get_num_threads(), *patches_BPD.shape, patches_BPD.data_ptr(), *patches_BPD.stride()[:-1],
            _address(weight_D), _address(means_BP), lengths_BSP.data_ptr(), sums_BSD.data_ptr(),
        )  # fmt: skip

    def attention(self, call: AttentionCall, row_BHT: Tensor | None, columns_BHR: Tensor | None) -> None:
        """As ``Sums.attention``, in one pass over q and k."""
        q, k, lse = call.q_BHTd, call.k_BHTd, call.lse_BHT
        fused = call.pattern_BHTT is None and call.bias is None and lse is not None and lse.dtype == torch.float32
        if not fused or not _readable(q) or not _readable(k):
            super().attention(call, row_BHT, columns_BHR)
            return
        assert lse is not None
        scores_BHRP = None
        if columns_BHR is not None:
            scores_BHRP = self._workspace.of((*columns_BHR.shape[1:], self.layout.patches), q)
        self._library.tokenlens_scores(
            torch.get_num_threads(), *q.shape, q.data_ptr(), _strides(q), k.data_ptr(), _strides(k), call.scale,
            lse.data_ptr(), _strides(lse), self._first_patch, self.layout.patches, self._prefix, len(self._prefix),
            self._cls, _address(row_BHT), _address(scores_BHRP),
        )  # fmt: skip
        if row_BHT is not None:
            torch.softmax(row_BHT, -1, out=row_BHT)
        if scores_BHRP is not None:
            torch.mean(scores_BHRP.exp_(), dim=-1, out=columns_BHR)


def _readable(x: Tensor) -> bool:
    """Whether C finds the numbers where ``data_ptr`` says; a subclass may keep them elsewhere (DTensor, FakeTensor)."""
    plain = type(x) in (Tensor, nn.Parameter)
    return plain and x.dtype == torch.float32 and x.device.type == "cpu" and x.stride(-1) == 1


def _strides(x: Tensor) -> Any:
    """The first three, for C."""
    return _THREE(*x.stride()[:3])


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


# -- choosing, compiling and loading


def sums_for(layout: TokenLayout, device: torch.device) -> Sums:
    """The fastest way to take the sums on a device."""
    if device.type == "cpu":
        with contextlib.suppress(NotCompiled):
            return CompiledSums(layout, library())
    return Sums(layout)


def how_summed(device: torch.device) -> str:
    """How ``sums_for`` takes them, for the provenance: by which compiler, or in torch operations and why."""
    if device.type != "cpu":
        return "torch"
    try:
        library()
    except NotCompiled as error:
        return f"torch ({error})"
    return f"C for float32, compiled by {_compiler()[1]}"


def library() -> ctypes.CDLL:
    """The compiled functions.

    Raises:
        NotCompiled: if there are none here: without a C compiler, where nothing may be written or loaded, or where
            ``TOKENLENS_COMPILE=0`` forbids it.
    """
    found = _found()
    if isinstance(found, NotCompiled):
        raise found
    return found


@functools.cache
def _found() -> ctypes.CDLL | NotCompiled:
    try:
        return _made()
    except NotCompiled as error:
        return error


@functools.cache
def _compiler() -> tuple[list[str], str]:
    """The command of the C compiler, and what it says it is."""
    there = [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path is not None]
    command = shlex.split(os.environ.get("CC", "")) or there[:1]
    if not command:
        raise NotCompiled("no C compiler was found")
    try:
        told = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        raise NotCompiled(f"the C compiler {command[0]} does not run") from None
    return command, told.partition("\n")[0]


def _processor() -> str:
    """What is compiled for; a home folder can be shared by machines that differ in it."""
    told: set[str] = set()
    with contextlib.suppress(OSError):
        told.update(Path("/proc/cpuinfo").read_text(errors="replace").splitlines())
    kept = sorted(line for line in told if line.startswith(("flags", "Features", "model name", "CPU part")))
    return "\n".join([platform.machine(), *kept])


def _made() -> ctypes.CDLL:
    """From the cache, or compiled into it; where it cannot be written, into a folder that is deleted at once."""
    if os.environ.get("TOKENLENS_COMPILE", "1").lower() in ("0", "false", "no", "off"):
        raise NotCompiled("TOKENLENS_COMPILE forbids compiling")
    command, version = _compiler()
    parts = (_SOURCE.read_text(), *_FLAGS, *command, version, _processor())
    kept = cache_folder("compiled") / f"sums_{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    with contextlib.suppress(OSError):
        return _opened(kept)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=kept.parent)
    except OSError:
        folder = tempfile.mkdtemp()
    new = Path(folder) / kept.name
    try:
        call = [*command, *_FLAGS, str(_SOURCE), "-o", str(new), "-lm"]
        subprocess.run(call, capture_output=True, text=True, timeout=120, check=True)
        opened = _opened(new)
        with contextlib.suppress(OSError):
            new.replace(kept)  # whole or not at all, also where several processes do it at once
        return opened
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[-200:]).strip()
        raise NotCompiled(f"{command[0]} fails: {said}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise NotCompiled(f"what {command[0]} compiles cannot be used: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _opened(path: Path) -> ctypes.CDLL:
    """The library in a file, after its sums agree with those in torch operations.

    Raises:
        OSError: if it cannot be loaded, or its sums are wrong.
    """
    opened = ctypes.CDLL(str(path))
    try:
        for name, arguments in _FUNCTIONS.items():
            function = getattr(opened, name)
            function.argtypes, function.restype = arguments, None
    except AttributeError as error:
        raise OSError(str(error)) from None
    layout = TokenLayout(grid=(3, 4))
    ours, theirs = (_some(sums) for sums in (CompiledSums(layout, opened), Sums(layout)))
    if not all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in zip(ours, theirs, strict=True)):
        raise OSError("its sums are wrong")
    return opened


def _some(sums: Sums) -> list[Tensor]:
    """Every sum of some made-up tokens."""
    layout = sums.layout
    images, channels, patches = 2, 21, layout.patches
    x = torch.linspace(0, 99, images * layout.tokens * channels).sin().reshape(images, layout.tokens, channels) + 0.1
    norms, products = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    rows, magnitudes = x.new_empty(images, len(layout.prefix) + 2, channels), x.new_empty(images, channels)
    means, lengths = x.new_empty(images, patches), x.new_empty(images, 2, patches)
    stage_sums = x.new_empty(images, 2, channels)
    sums.tokens(x, ("unit_patch_sum", "patch_sum"), norms, rows, magnitudes, x.flip(1).contiguous(), products)
    sums.stages(layout.patches_of(x), x[0, 0], means, lengths, stage_sums)
    qkv = x.unflatten(-1, (3, 1, 7)).permute(2, 0, 3, 1, 4)
    call = AttentionCall(qkv[0], qkv[1], qkv[2], 0.4, lse_BHT=log_sum_exp(qkv[0], qkv[1], 0.4))
    row, columns = x.new_empty(images, 1, layout.tokens), x.new_empty(images, 1, len(layout.prefix))
    sums.attention(call, row, columns)
    return [norms, products, rows, magnitudes, means, lengths, stage_sums, row, columns]
