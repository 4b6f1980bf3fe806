"""Find the files of weights in a folder, and read all tensors of a file or of a set of shards by their full names."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tokenlens.models.file_formats import identify_format, read_json
from tokenlens.models.inert_pickle import DangerousPickleError, InertObject, read_pickle, read_torch_zip
from tokenlens.storage.hashing import file_sha256

WEIGHT_NAMES = ("model.safetensors", "pytorch_model.bin")
INDEX_NAMES = tuple(f"{name}.index.json" for name in WEIGHT_NAMES)
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")
"""Name of a shard, as Transformers writes it."""

MAX_OBJECTS = 10**7
"""Number of objects of a checkpoint that are looked at."""

CHOOSE_WEIGHTS = (
    "Choose a file with --checkpoint FILE (checkpoint=…), or analyze random weights with --no-pretrained "
    "(pretrained=False)."
)


@dataclass
class FileContent:
    """All tensors of a file of weights, and what else is in it.

    Args:
        format: what the file is, in words.
        tensors: by full name: the keys of nested dicts and the parameter's name, joined by dots.
        wrappers: full names of the dicts and modules that hold others.
        ignored: classes of other objects in the file, which are not loaded.
    """

    format: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    wrappers: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)


def find_weight_files(folder: Path) -> list[Path]:
    """Return the file of weights in a folder, or all its shards in order; empty if there is none.

    Raises:
        ValueError: if there are several to choose from, or shards are missing.
    """
    for name, index in zip(WEIGHT_NAMES, INDEX_NAMES, strict=True):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / index).is_file():
            return find_shards(folder / index)
    files = sorted(file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES and file.is_file())
    shards = [match for file in files if (match := SHARD.fullmatch(file.name))]
    if files and len(shards) == len(files) and len({(each["stem"], each["count"]) for each in shards}) == 1:
        first = shards[0]
        expected = [
            folder / f"{first['stem']}-{number:05}-of-{first['count']}{first['suffix']}"
            for number in range(1, int(first["count"]) + 1)
        ]
        check_complete(folder, expected)
        return expected
    if len(files) > 1:
        raise ValueError(
            f"{folder} holds {len(files)} files of weights ({', '.join(file.name for file in files[:8])}); expected "
            f"{' or '.join(WEIGHT_NAMES)}. {CHOOSE_WEIGHTS}"
        )
    return files


def read_index(index: Path) -> dict[str, str]:
    """Return the name of the shard of each tensor.

    Raises:
        ValueError: if the index is damaged, or names files outside its folder.
    """
    weight_map = read_json(index).get("weight_map")
    if isinstance(weight_map, dict) and weight_map:
        names = weight_map.values()
        if all(isinstance(name, str) and Path(name).name == name and name not in ("", "..") for name in names):
            return weight_map
    raise ValueError(f"{index} is not an index of shards: expected a weight_map to files of the same folder")


def find_shards(index: Path) -> list[Path]:
    """Return the shards that an index names, in order.

    Raises:
        ValueError: if the index is damaged, or shards are missing.
    """
    names = sorted(set(read_index(index).values()))
    check_complete(index.parent, [index.parent / name for name in names])
    return [index.parent / name for name in names]


def check_complete(folder: Path, shards: Sequence[Path]) -> None:
    """Raise ValueError, with their names, if shards are missing in the folder."""
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing[:8])}; download them again"
        )


def read_file(path: Path) -> FileContent:
    """Read all tensors of one file, whose format is found from its content and not from its name.

    Raises:
        ValueError: if the file is no file of weights, is damaged, or asks for functions that run commands.
    """
    kind = identify_format(path)
    try:
        if kind == "safetensors":
            suffix = "" if path.suffix == ".safetensors" else ", under another name"
            return FileContent(f"safetensors{suffix}", dict(load_file(path)))
        content, ignored = (read_torch_zip if kind == "torch_zip" else read_pickle)(path)
        found = FileContent("PyTorch file" if kind == "torch_zip" else "pickle", ignored=ignored)
        if path.suffix == ".safetensors":
            found.format += " under the name of a safetensors file"
        for name, tensor in _walk(content, "", found.wrappers, itertools.count()):
            found.tensors.setdefault(name, tensor)
    except DangerousPickleError as error:
        raise ValueError(
            f"checkpoint {path} is a pickle that asks for {error}, which runs commands or code and which no file of "
            "weights needs. It is refused, and nothing of it was run. Do not load it elsewhere either; get the weights "
            "as safetensors from somebody you trust"
        ) from error
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path} is not a readable safetensors file: {error}; download it again") from error
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {error}); it is damaged, cut off or of another "
            "kind of pickle; download or save it again"
        ) from error
    return found


def read_shards(shards: Sequence[Path], index: Path | None = None) -> FileContent:
    """Read all tensors of a set of shards.

    Raises:
        ValueError: if a shard cannot be read, or lacks a tensor that the index promises.
    """
    found = FileContent("")
    for shard in shards:
        content = read_file(shard)
        found.format = f"{len(shards)} shards, each a {content.format}"
        found.tensors |= content.tensors
        found.wrappers |= content.wrappers
        found.ignored |= content.ignored
    promised = read_index(index) if index is not None else {}
    missing = sorted(promised.keys() - found.tensors.keys())
    if missing:
        raise ValueError(f"the shards of {index} lack {len(missing)} tensors that it names: {', '.join(missing[:8])}")
    return found


def files_sha256(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a file; of several files that of their hashes, in order."""
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _walk(
    node: Any, name: str, wrappers: set[str], visits: Iterator[int], above: tuple[int, ...] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors inside a content with their full names; ValueError after ``MAX_OBJECTS`` objects."""
    if next(visits) > MAX_OBJECTS:  # objects that refer to each other many times
        raise ValueError(f"it leads to more than {MAX_OBJECTS:,} objects")
    if isinstance(node, Tensor):
        yield name or "tensor", node
        return
    if id(node) in above:
        return
    children = dict(_children(node))
    if children and name:
        wrappers.add(name)
    for key, child in children.items():
        yield from _walk(child, f"{name}.{key}" if name else str(key), wrappers, visits, (*above, id(node)))


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the entries of a mapping or list, the parameters and children of a pickled module, or attributes."""
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list | tuple):
        yield from enumerate(node)
    elif isinstance(node, InertObject):
        yield from node.items.items()
        state = node.state[0] if isinstance(node.state, tuple) and node.state else node.state
        if not isinstance(state, dict):
            return
        if "_parameters" not in state or "_modules" not in state:
            yield from state.items()
            return
        temporary = state.get("_non_persistent_buffers_set") or ()
        for kind in ("_parameters", "_buffers", "_modules"):
            entries = state.get(kind)
            if isinstance(entries, dict):
                yield from (
                    (key, value) for key, value in entries.items() if kind != "_buffers" or key not in temporary
                )
