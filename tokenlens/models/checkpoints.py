"""Read checkpoints: a file, a set of shards, or a folder of one of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from tokenlens.models.file_formats import identify_format
from tokenlens.models.weight_files import (
    SHARD,
    FileContent,
    files_sha256,
    find_shards,
    find_weight_files,
    read_file,
    read_shards,
)
from tokenlens.storage.hashing import tensor_bytes


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint.

    Args:
        tensors: on the CPU, by full name: the keys of nested dicts and the parameter's name, joined by dots.
        source: path of the file or folder.
        sha256: hash of the file; of shards, that of their hashes.
        format: what the file is.
        wrappers: full names of the dicts and modules that hold others.
        ignored: classes of other objects in the file, which are not loaded.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str
    format: str = ""
    wrappers: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of all tensors of a state dict, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read all tensors of a checkpoint, whatever it wraps them in, without executing anything of it.

    Args:
        path: a safetensors or PyTorch file (by its content, not its name), a plain pickle of tensors, the index of a
            set of shards, or a folder of one of these.

    Raises:
        ValueError: if there is nothing at the path, or it is a single shard, damaged, of another kind, without any
            tensor, or a pickle that asks for functions which run commands.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = find_weight_files(path)
        if not files:
            raise ValueError(f"checkpoint {path} is a folder, not a checkpoint file, {_describe_folder(path)}")
        index = next(iter(sorted(path.glob("*.index.json"))), None) if len(files) > 1 else None
        content = read_file(files[0]) if len(files) == 1 else read_shards(files, index)
    elif not path.is_file():
        what = "does not exist" if not path.exists() else "is neither a file nor a folder"
        raise ValueError(f"checkpoint {path} {what}; expected a safetensors or PyTorch file, or a folder of shards")
    elif (shard := SHARD.fullmatch(path.name)) and int(shard["count"]) > 1:
        raise ValueError(
            f"checkpoint {path} is one shard of a checkpoint, number {int(shard['number'])} of {int(shard['count'])}; "
            f"pass the folder of all shards: {path.parent}"
        )
    elif identify_format(path) == "index":
        files = find_shards(path)
        content = read_shards(files, path)
    else:
        files, content = [path], read_file(path)
    if not content.tensors:
        raise ValueError(f"checkpoint {path} holds no state dict: there is no tensor in it{_describe_rest(content)}")
    return Checkpoint(
        tensors=content.tensors,
        source=str(path),
        sha256=files_sha256(files),
        format=content.format,
        wrappers=frozenset(content.wrappers),
        ignored=tuple(sorted(content.ignored)),
    )


def _describe_folder(folder: Path) -> str:
    """Say what a folder without a file of weights is, and what to do."""
    names = sorted(file.name for file in folder.iterdir())
    if any(name.endswith(".distcp") for name in names):
        return (
            "but a distributed checkpoint of PyTorch (.distcp); convert it with `python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`, and pass that file"
        )
    if any(name.endswith((".h5", ".msgpack")) or ".data-0" in name or name == "saved_model.pb" for name in names):
        return "and holds only weights of TensorFlow or Flax; get or save the PyTorch or safetensors ones"
    found = f"it holds {', '.join(names[:8])}" if names else "it is empty"
    return f"and has no file of weights ({found}); expected a safetensors or PyTorch file, or shards"


def _describe_rest(content: FileContent) -> str:
    if not content.ignored:
        return ""
    return f", only objects of {', '.join(sorted(content.ignored)[:8])}, which are not loaded"
