"""Read the tensors of PyTorch files without executing anything that the file asks for.

A pickle is a program: it names functions and classes, which ``pickle.load`` imports and calls. Here a name is never
imported. A handful of names stand for the functions of ``InertUnpickler`` that rebuild plain tensors; every other one
stands for ``InertObject``, which takes whatever is done to it and does nothing. So a configuration, a date or an
optimizer beside the weights does not stop a file from being read, and no code of it runs.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First object of a file of ``torch.save`` before PyTorch 1.6."""

LARGEST_EXPANDED = 2**20
"""Numbers of the largest tensor that may have more of them than its storage, as after ``expand``."""

LARGEST_COMPRESSION = 16
"""How many times larger an archive may become when it is unpacked; weights hardly compress, attacks do."""

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "UntypedStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}

DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}

DANGEROUS_MODULES = frozenset(
    (
        *("os", "posix", "nt", "subprocess", "commands", "pty", "sys", "shutil", "socket", "runpy", "importlib", "imp"),
        *("ctypes", "code", "codeop", "webbrowser", "asyncio", "multiprocessing", "threading", "_thread"),
    )
)
DANGEROUS_BUILTINS = frozenset(("eval", "exec", "execfile", "compile", "open", "__import__", "input", "breakpoint"))
"""Names that no checkpoint needs: a file with them is refused as an attack, although nothing in it would run."""


class DangerousPickleError(ValueError):
    """A pickle that names a function which runs commands or code; nothing of it was executed."""


class _Frozen(type):
    """A class whose attributes a pickle cannot set."""

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise pickle.UnpicklingError(f"the file sets {name} of a class")


class InertObject(metaclass=_Frozen):
    """An object of a class that is not loaded: keeps what the pickle gives it, and does nothing.

    Attributes:
        origin: the full name of the class, as the file names it.
        state: the attributes, as the pickle stores them.
        items: the entries, if it was a mapping or a list.
    """

    origin = "unknown"
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *_args: Any, **_options: Any) -> InertObject:
        """Create the object; the arguments are ignored."""
        self = object.__new__(cls)
        self.state, self.items = None, {}
        return self

    def __init__(self, *_args: Any, **_options: Any) -> None:
        pass

    def __call__(self, *_args: Any, **_options: Any) -> InertObject:
        """Return another inert object."""
        return InertObject()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Keep an entry of a list or set."""
        self.items[len(self.items)] = value

    add = append

    def extend(self, values: Any) -> None:
        """Keep entries of a list."""
        for value in values:
            self.append(value)


class PlainDict(dict[Any, Any], metaclass=_Frozen):
    """The entries of a dict, OrderedDict or defaultdict, without attributes."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(*(arg for arg in args[:1] if isinstance(arg, dict | list | tuple)))

    def __setstate__(self, state: Any) -> None:
        """Ignore attributes, such as the versions that a state dict carries."""


class InertUnpickler(pickle._Unpickler):
    """An unpickler that rebuilds plain tensors and containers, and imports nothing.

    The base class is the one in Python, because the one in C allocates any amount of memory for a large memo index.

    Args:
        file: the pickle.
        load_storage: returns the numbers of a storage as a flat tensor, from its key, dtype and length.
    """

    def __init__(self, file: BinaryIO, load_storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(file, encoding="latin1")
        self.load_storage = load_storage
        self.ignored: set[str] = set()
        self._known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_of_dtype,
            ("torch._utils", "_rebuild_parameter"): _first_argument,
            ("torch._utils", "_rebuild_parameter_with_state"): _first_argument,
            ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_subclass,
            ("torch.storage", "_load_from_bytes"): _load_from_bytes,
            ("torch", "Size"): _make_tuple,
            ("collections", "OrderedDict"): PlainDict,
            ("collections", "defaultdict"): PlainDict,
            ("_codecs", "encode"): _encode,
        }
        for module in ("builtins", "__builtin__"):
            self._known |= {(module, "dict"): PlainDict, (module, "set"): _make_set, (module, "frozenset"): _make_set}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name of the file stands for; nothing is imported."""
        known = self._known.get((module, name))
        if known is not None:
            return known if isinstance(known, type) else _Function(known)
        if module.split(".")[0] == "torch" and name in STORAGE_DTYPES:
            return _StorageType(STORAGE_DTYPES[name])
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module.split(".")[0] in DANGEROUS_MODULES or (
            module in ("builtins", "__builtin__") and name in DANGEROUS_BUILTINS
        ):
            raise DangerousPickleError(f"{module}.{name}")
        if module not in ("builtins", "__builtin__"):
            self.ignored.add(f"{module}.{name}")
        return _Frozen("InertObject", (InertObject,), {"origin": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        """Return the flat tensor of a storage; of a module that was saved with its source, its inert class."""
        if pid[0] == "module":
            return pid[1]
        _, storage_type, key, _, length, *view = pid
        if not isinstance(storage_type, _StorageType):
            return InertObject()
        flat = self.load_storage(str(key), storage_type.dtype, int(length))
        if view and view[0] is not None:
            _, offset, size = view[0]
            flat = flat[int(offset) : int(offset) + int(size)]
        return flat


class _StorageType:
    """The dtype of a storage."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Function:
    """A function of this module that a pickle may call, but not change."""

    __slots__ = ("call",)
    call: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "call", function)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise pickle.UnpicklingError(f"the file sets {name} of a function")

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


def _rebuild_tensor(flat: Any, offset: int, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(flat, Tensor):
        return InertObject()
    if math.prod(size) > max(len(flat), LARGEST_EXPANDED):
        raise pickle.UnpicklingError(f"a tensor of {math.prod(size)} numbers in a storage of {len(flat)}")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or (0 not in size and last >= len(flat)):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    return flat.as_strided(tuple(size), tuple(stride), flat.storage_offset() + offset)


def _rebuild_tensor_of_dtype(
    flat: Any, offset: int, size: Any, stride: Any, _g: Any, _h: Any, dtype: Any, *_: Any
) -> Any:
    if isinstance(flat, Tensor) and isinstance(dtype, torch.dtype):
        return _rebuild_tensor(flat.view(dtype), offset, size, stride)
    return InertObject()


def _rebuild_subclass(function: Any, _type: Any, args: Any, _state: Any) -> Any:
    return function(*args) if isinstance(function, _Function) else InertObject()


def _first_argument(value: Any, *_: Any) -> Any:
    return value


def _make_tuple(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values)


def _make_set(values: Any = ()) -> set[Any]:
    return set(values)


def _encode(text: Any, encoding: Any = "latin1", *_: Any) -> Any:
    """Return the bytes that pickles of protocol 2 store as text."""
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else InertObject()


def _load_from_bytes(content: Any) -> Any:
    """Return the storage of a tensor that ``pickle.dump`` wrote: a file of ``torch.save`` inside the pickle."""
    return _read_pickle(io.BytesIO(content), len(content))[0] if isinstance(content, bytes) else InertObject()


def read_pickle(path: Path) -> tuple[Any, set[str]]:
    """Return the content of a plain pickle, or of ``torch.save`` before PyTorch 1.6, and the classes not loaded."""
    with path.open("rb") as file:
        return _read_pickle(file, path.stat().st_size)


def _read_pickle(file: BinaryIO, size: int) -> tuple[Any, set[str]]:
    storages: dict[str, Tensor] = {}
    allocated = 0

    def allocate(key: str, dtype: torch.dtype, length: int) -> Tensor:
        nonlocal allocated
        if key not in storages:
            if length < 0 or allocated + length * dtype.itemsize > size:
                raise pickle.UnpicklingError(f"a storage of {length} numbers in a file of {size} bytes")
            storages[key] = torch.zeros(length, dtype=dtype)
            allocated += storages[key].nbytes
        return storages[key]

    def load() -> tuple[Any, set[str]]:
        unpickler = InertUnpickler(file, allocate)
        return unpickler.load(), unpickler.ignored

    content, ignored = load()
    if isinstance(content, Tensor) or content != LEGACY_MAGIC:
        return content, ignored
    load(), load()  # the version of the format, and the sizes of C's integers
    content, ignored = load()
    for key in load()[0]:
        flat = storages[str(key)]
        length = int.from_bytes(file.read(8), "little")
        numbers = bytearray(file.read(length * flat.dtype.itemsize))
        if length != len(flat) or len(numbers) != length * flat.dtype.itemsize:
            raise EOFError("the file ends inside a tensor")
        if length:
            flat.copy_(torch.frombuffer(numbers, dtype=flat.dtype))
    return content, ignored


def read_torch_zip(path: Path) -> tuple[Any, set[str]]:
    """Return the content of a file of ``torch.save``, and the classes in it that are not loaded.

    Tensors are mapped to the file: those that nobody looks at, such as an optimizer's, are never read.
    """
    whole = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > LARGEST_COMPRESSION * len(whole):
            raise pickle.UnpicklingError(f"{unpacked:,} bytes compressed into {len(whole):,}")
        root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder").decode() != sys.byteorder:
            raise ValueError(f"checkpoint {path} was saved on a machine of the other byte order; save it again here")

        def load_storage(key: str, dtype: torch.dtype, length: int) -> Tensor:
            info = archive.getinfo(f"{root}data/{key}")
            if length * dtype.itemsize > info.file_size:
                raise pickle.UnpicklingError(f"a storage of {length} numbers in {info.file_size} bytes")
            if not length:
                return torch.zeros(0, dtype=dtype)
            if info.compress_type != zipfile.ZIP_STORED:
                return torch.frombuffer(bytearray(archive.read(info)), dtype=dtype, count=length)
            file.seek(info.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            start = info.header_offset + 30 + name_length + extra_length
            numbers = whole[start : start + length * dtype.itemsize]
            return (numbers.clone() if start % dtype.itemsize else numbers).view(dtype)

        unpickler = InertUnpickler(io.BytesIO(archive.read(f"{root}data.pkl")), load_storage)
        return unpickler.load(), unpickler.ignored
