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

from tokenlens.recording.attention import AttentionCall, log_sum_exp
from tokenlens.reduction.kernels import Sums
from tokenlens.storage.cache import cache_folder
from tokenlens.tokens import TokenLayout

_SOURCE = Path(__file__).with_name("sums.c")
# Sums may be taken in any order, which lets the compiler use vectors. Not -ffast-math: NaN and infinity must show, and
# loading a library made with that would change how the whole process treats the smallest numbers.
_FLAGS = (
    "-std=c11",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-ffp-contract=fast",
    "-fprefetch-loop-arrays",
    "-shared",
    "-fPIC",
)

_INT, _LONG, _FLOAT, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
_THREE = ctypes.c_int64 * 3
_FUNCTIONS = {
    "tokenlens_tokens": (
        _INT,
        _LONG,
        _LONG,
        _LONG,
        _POINTER,
        _LONG,
        _LONG,
        _LONG,
        _LONG,
        _POINTER,
        _LONG,
        _POINTER,
        _POINTER,
        _LONG,
        _LONG,
        _LONG,
        _POINTER,
        _POINTER,
        _POINTER,
    ),
    "tokenlens_stages": (
        _INT,
        _LONG,
        _LONG,
        _LONG,
        _POINTER,
        _LONG,
        _LONG,
        _POINTER,
        _POINTER,
        _POINTER,
        _POINTER,
    ),
    "tokenlens_attention": (
        _INT,
        _LONG,
        _LONG,
        _LONG,
        _LONG,
        _POINTER,
        _POINTER,
        _POINTER,
        _POINTER,
        _FLOAT,
        _POINTER,
        _POINTER,
        _LONG,
        _LONG,
        _POINTER,
        _LONG,
        _LONG,
        _POINTER,
        _POINTER,
    ),
}


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
        if x.dim() != 3 or not _readable(x) or (other is not None and not _laid_out_as(x, other)):
            super().tokens(x, sums, norms, rows, magnitudes, other, products)
            return
        (images, tokens, channels), prefixes = x.shape, len(self.layout.prefix)
        _check(tokens, self.layout.tokens)
        for place, shape in (
            (norms, (images, tokens)),
            (rows, (images, prefixes + len(sums), channels)),
            (magnitudes, (images, channels)),
            (products, (images, tokens)),
        ):
            _check_place(place, shape)
        unit, plain = (prefixes + sums.index(name) if name in sums else -1 for name in ("unit_patch_sum", "patch_sum"))
        self._library.tokenlens_tokens(
            torch.get_num_threads(),
            *x.shape,
            x.data_ptr(),
            *x.stride()[:-1],
            self._first_patch,
            self.layout.patches,
            self._prefix,
            prefixes,
            _address(norms),
            _address(rows),
            prefixes + len(sums),
            unit,
            plain,
            _address(magnitudes),
            _address(other),
            _address(products),
        )

    def stages(
        self,
        patches_BPD: Tensor,
        weight_D: Tensor | None,
        means_BP: Tensor | None,
        lengths_BSP: Tensor,
        sums_BSD: Tensor,
    ) -> None:
        """As ``Sums.stages``, in one pass over the patches."""
        images, patches, channels = patches_BPD.shape
        one_each = weight_D is None or (_readable(weight_D) and weight_D.shape == (channels,))
        if not _readable(patches_BPD) or not one_each:
            super().stages(patches_BPD, weight_D, means_BP, lengths_BSP, sums_BSD)
            return
        stages = 1 if weight_D is None else 2
        _check_place(means_BP, (images, patches))
        _check_place(lengths_BSP, (images, stages, patches))
        _check_place(sums_BSD, (images, stages, channels))
        self._library.tokenlens_stages(
            torch.get_num_threads(),
            *patches_BPD.shape,
            patches_BPD.data_ptr(),
            *patches_BPD.stride()[:-1],
            _address(weight_D),
            _address(means_BP),
            lengths_BSP.data_ptr(),
            sums_BSD.data_ptr(),
        )

    def attention(self, call: AttentionCall, row_BHT: Tensor | None, columns_BHR: Tensor | None) -> None:
        """As ``Sums.attention``, in one pass over q and k."""
        q, k, lse = call.q_BHTd, call.k_BHTd, call.lse_BHT
        fused = call.pattern_BHTT is None and call.bias is None and k.shape == q.shape
        if lse is None or not fused or not (_readable(q) and _readable(k) and _plain(lse)) or lse.shape != q.shape[:3]:
            super().attention(call, row_BHT, columns_BHR)
            return
        images, heads, tokens, _ = q.shape
        _check(tokens, self.layout.tokens)
        _check_place(row_BHT, (images, heads, tokens))
        _check_place(columns_BHR, (images, heads, len(self._prefix)))
        self._library.tokenlens_attention(
            torch.get_num_threads(),
            *q.shape,
            q.data_ptr(),
            _strides(q),
            k.data_ptr(),
            _strides(k),
            call.scale,
            lse.data_ptr(),
            _strides(lse),
            self._first_patch,
            self.layout.patches,
            self._prefix,
            len(self._prefix),
            self._cls,
            _address(row_BHT),
            _address(columns_BHR),
        )


def _plain(x: Tensor) -> bool:
    """Whether C finds the numbers where ``data_ptr`` says; a subclass may keep them elsewhere (DTensor, FakeTensor)."""
    return type(x) in (Tensor, nn.Parameter) and not x.is_neg() and x.dtype == torch.float32 and x.device.type == "cpu"


def _readable(x: Tensor) -> bool:
    """Whether it is plain, and its channels are adjacent."""
    return _plain(x) and (x.stride(-1) == 1 or x.shape[-1] == 1)


def _laid_out_as(x: Tensor, other: Tensor) -> bool:
    """Whether C can read both with the same strides; that of images says nothing where there is one."""
    first = 0 if len(x) > 1 else 1
    return _readable(other) and other.shape == x.shape and other.stride()[first:] == x.stride()[first:]


def _check(tokens: int, expected: int) -> None:
    if tokens != expected:
        raise ValueError(f"expected {expected} tokens, got {tokens}")


def _check_place(place: Tensor | None, shape: tuple[int, ...]) -> None:
    """C writes where it is told to; an operation of torch would look first."""
    if place is not None and not (place.shape == shape and _readable(place) and place.is_contiguous()):
        raise ValueError(f"a place for sums has the shape {tuple(place.shape)} or type {place.dtype}, expected {shape}")


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
    except (OSError, RuntimeError, ValueError) as error:  # no home, no room, nothing that may be written, …
        return NotCompiled(str(error))


@functools.cache
def _compiler() -> tuple[list[str], str]:
    """The command of the C compiler, and what it says it is."""
    there = [path for path in map(shutil.which, ("cc", "gcc", "clang")) if path is not None]
    command = shlex.split(os.environ.get("CC", "")) or there[:1]
    if not command:
        raise NotCompiled("no C compiler was found")
    try:
        told = _run([*command, "--version"])
    except (OSError, subprocess.SubprocessError):
        raise NotCompiled(f"the C compiler {command[0]} does not run") from None
    return command, told.partition("\n")[0]


def _run(command: list[str]) -> str:
    options: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "check": True}
    return str(subprocess.run(command, timeout=120, **options).stdout)


def _processor() -> str:
    """What is compiled for; a home folder can be shared by machines that differ in it."""
    told: set[str] = set()
    with contextlib.suppress(OSError):
        told.update(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines())
    kept = sorted(line for line in told if line.startswith(("flags", "Features", "model name", "CPU part")))
    return "\n".join([platform.machine(), *kept])


def _made() -> ctypes.CDLL:
    """From the cache, or compiled into it; where it cannot be written, into a folder that is deleted at once."""
    if os.environ.get("TOKENLENS_COMPILE", "1").lower() in ("0", "false", "no", "off"):
        raise NotCompiled("TOKENLENS_COMPILE forbids compiling")
    if not hasattr(os, "geteuid"):
        raise NotCompiled("it needs a POSIX system")
    command, version = _compiler()
    parts = (_SOURCE.read_text(encoding="utf-8"), *_FLAGS, *command, version, _processor())
    name = f"sums_{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}.so"
    try:
        cache = cache_folder("compiled")
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _ours(cache):
            raise PermissionError(f"others may write to {cache}")
        with contextlib.suppress(OSError):
            return _opened(_whole(cache / name))
        folder = tempfile.mkdtemp(dir=cache)
    except (OSError, RuntimeError):
        cache, folder = None, tempfile.mkdtemp()
    new = Path(folder) / name
    try:
        _run([*command, *_FLAGS, str(_SOURCE), "-o", str(new), "-lm"])
        _seal(new)
        opened = _opened(new)
        if cache is not None:
            with contextlib.suppress(OSError):
                new.replace(cache / name)  # whole or not at all, also where several processes do it at once
        return opened
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[-200:]).strip()
        raise NotCompiled(f"{command[0]} fails: {said}") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise NotCompiled(f"what {command[0]} compiles cannot be used: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ours(path: Path) -> bool:
    """Whether nobody else may write there: what lies there will be run."""
    found = path.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def _seal(path: Path) -> None:
    """Put the file's hash behind it, which a loader does not look at, and make it last."""
    with path.open("r+b") as file:
        digest = hashlib.sha256(file.read()).digest()
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o700)


def _whole(path: Path) -> Path:
    """The path, if its file is ours and as it was sealed: one that was cut off kills the process that loads it.

    Raises:
        OSError: if it is not.
    """
    content = path.read_bytes()
    if not _ours(path) or hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise OSError(f"{path} is not what was written there")
    return path


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
    layout = TokenLayout(grid=(3, 4), prefix=("cls", "reg", "reg"), patch_start=1)
    ours, theirs = (_some(sums) for sums in (CompiledSums(layout, opened), Sums(layout)))
    if not all(torch.allclose(x, y, rtol=1e-4, atol=1e-5) for x, y in zip(ours, theirs, strict=True)):
        raise OSError("its sums are wrong")
    return opened


def _some(sums: Sums) -> list[Tensor]:
    """Every sum of some made-up tokens."""
    layout = sums.layout
    images, channels, heads, patches, prefixes = 2, 21, 3, layout.patches, len(layout.prefix)
    count = images * layout.tokens * 3 * channels
    numbers = torch.linspace(0, 99, count, dtype=torch.float32, device="cpu").sin() + 0.1
    qkv_BTC = numbers.reshape(images, layout.tokens, 3 * channels)
    x, other = qkv_BTC[..., :channels], qkv_BTC[..., channels : 2 * channels]
    norms, products = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
    rows, magnitudes = x.new_empty(images, prefixes + 2, channels), x.new_empty(images, channels)
    means, lengths = x.new_empty(images, patches), x.new_empty(images, 2, patches)
    stage_sums = x.new_empty(images, 2, channels)
    sums.tokens(x, ("unit_patch_sum", "patch_sum"), norms, rows, magnitudes, other, products)
    sums.stages(layout.patches_of(x), x[0, 0], means, lengths, stage_sums)
    q, k, v = qkv_BTC.unflatten(-1, (3, heads, channels // heads)).permute(2, 0, 3, 1, 4)
    call = AttentionCall(q, k, v, 0.4, lse_BHT=log_sum_exp(q, k, 0.4))
    row, columns = x.new_empty(images, heads, layout.tokens), x.new_empty(images, heads, prefixes)
    sums.attention(call, row, columns)
    return [norms, products, rows, magnitudes, means, lengths, stage_sums, row, columns]
