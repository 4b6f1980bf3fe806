"""Read checkpoint files, plain tensors only, and compare them with a model: names, shapes, and what does not fit."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenlens.storage.hashing import file_sha256, tensor_bytes

WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "teacher",
    "student",
    "module",
    "target_encoder",
    "encoder",
)
"""Keys under which training scripts store the weights (timm, MAE, DeiT, DINO, I-JEPA), averaged weights first."""

PREFIXES = ("_orig_mod.", "module.", "model.")
"""Prefixes that torch.compile, DistributedDataParallel and Lightning add to every name."""


MAX_NAMES = 8
"""Number of keys of each kind that an error message names."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint file.

    Args:
        tensors: tensors by parameter name, on the CPU; half precision is converted to float32 before any resampling.
        source: path of the file, and which wrappers and prefixes were removed.
        sha256: hash of the file.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 over name, dtype, shape and bytes of all tensors of a state dict, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a safetensors file or a ``torch.load(weights_only=True)`` file.

    Weights are taken out of ``state_dict``, ``model``, ``teacher`` and the like, and the prefixes ``module.`` and
    ``backbone.`` are removed; ``source`` says so.

    Raises:
        ValueError: if the file does not exist, is damaged, has no state dict, or contains anything but plain tensors
            (which is never unpickled, because that would run code from the file).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise ValueError(f"checkpoint {path} {what}; expected a safetensors file or a PyTorch file of plain tensors")
    content = _read(path)
    removed: list[str] = []
    tensors = {
        name: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for name, tensor in _strip_prefixes(_unwrap(content, path, removed), removed).items()
    }
    source = f"{path}: {', '.join(removed)}" if removed else str(path)
    return Checkpoint(tensors=tensors, source=source, sha256=file_sha256(path))


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint {path} is not a readable safetensors file: {error}") from error
    try:
        # DeiT, MAE and DINO published a Namespace of arguments with the weights; it holds data and runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.findall(r"GLOBAL (\S+)", str(error))
        holds = f" (it asks for {wanted[0]})" if wanted else ""
        raise ValueError(
            f"checkpoint {path} is a pickle that is not plain tensors{holds}. Unpickling it could run any code, so "
            "it is refused; accepted are safetensors files and files that torch.load reads with weights_only=True. "
            "Where you trust the file, load it yourself and save its state dict with safetensors."
        ) from error
    except Exception as error:  # a damaged file can fail anywhere inside the unpickler
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); it is damaged or neither a safetensors nor a "
            "PyTorch file"
        ) from error


def _unwrap(content: Any, path: Path, removed: list[str]) -> dict[str, Tensor]:
    inside = ""
    while isinstance(content, Mapping):
        if any(isinstance(value, Tensor) for value in content.values()):
            if inside:
                removed.append(f"under {inside!r}")
            return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping) and content[key]), None)
        if wrapper is None:
            break
        inside = f"{inside}.{wrapper}".lstrip(".")
        content = content[wrapper]
    keys = f" Its keys: {join_keys(map(str, content))}." if isinstance(content, Mapping) else ""
    raise ValueError(
        f"checkpoint {path} holds no state dict: looked for tensors on top and under {', '.join(WRAPPERS)}.{keys}"
    )


def _strip_prefixes(tensors: dict[str, Tensor], removed: list[str]) -> dict[str, Tensor]:
    for prefix in PREFIXES * 2:  # wrapped twice, in either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            removed.append(f"without the prefix {prefix!r}")
    inner = {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")}
    if inner:
        rest = len(tensors) - len(inner)
        removed.append("without the prefix 'backbone.'" + (f" and {rest} tensors outside the backbone" if rest else ""))
        return inner
    return tensors


def adapt_to_timm(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors with timm's names and the model's size of position embedding, as timm would load them.

    Uses the ``checkpoint_filter_fn`` of the module that defines the model's class, if there is one and it understands
    the checkpoint.
    """
    for cls in type(model).__mro__:
        adapt = getattr(sys.modules.get(cls.__module__), "checkpoint_filter_fn", None)
        if adapt is not None:
            options = {"adapt_layer_scale": True} if "adapt_layer_scale" in signature(adapt).parameters else {}
            try:
                adapted: dict[str, Tensor] = adapt(dict(tensors), model, **options)
            except (RuntimeError, LookupError, AttributeError, TypeError, ValueError, ArithmeticError, AssertionError):
                break  # a foreign checkpoint: compare it unchanged
            return adapted
    return tensors


def describe_mismatch(tensors: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """Describe why a state dict does not load into a model strictly; None if it does.

    Names at most ``MAX_NAMES`` missing, unexpected and mis-shaped keys each, with counts.
    """
    wanted = model.state_dict()
    parts = []
    for kind, keys in (
        ("missing", sorted(set(wanted) - set(tensors))),
        ("unexpected", sorted(set(tensors) - set(wanted))),
        (
            "of another shape",
            sorted(
                f"{name} ({_format_shape(tensors[name])} in the checkpoint, {_format_shape(wanted[name])} in the model)"
                for name in set(wanted) & set(tensors)
                if tensors[name].shape != wanted[name].shape
            ),
        ),
    ):
        if keys:
            parts.append(f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {kind}: {join_keys(keys)}")
    return "; ".join(parts) or None


def describe_resampling(tensors: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> list[str]:
    """Return a sentence for each tensor whose shape was changed to fit the model."""
    return [
        f"{name} resampled from {_format_shape(tensor)} to {_format_shape(adapted[name])}"
        for name, tensor in tensors.items()
        if name in adapted and adapted[name].shape != tensor.shape
    ]


def join_keys(keys: Iterable[str]) -> str:
    """Join keys with commas; beyond ``MAX_NAMES`` count them."""
    keys = list(keys)
    more = f" and {len(keys) - MAX_NAMES} more" if len(keys) > MAX_NAMES else ""
    return ", ".join(keys[:MAX_NAMES]) + more


def _format_shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
