"""Checkpoint files: plain tensors only, read, unwrapped, and compared with the model they are meant for."""

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
"""Keys under which training scripts keep the weights (timm, MAE, DeiT, DINO, I-JEPA), the averaged ones first."""

PREFIXES = ("_orig_mod.", "module.", "model.")
"""What wrappers put before every name: torch.compile, DistributedDataParallel, Lightning."""

NAMED = 8
"""How many keys of each kind an error names."""


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file.

    Args:
        tensors: by parameter name, on the CPU; half precision as float32, which resampling would round otherwise.
        source: the path, and how the tensors lay in the file.
        sha256: of the file.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor of a state dict, by sorted name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a safetensors file or a ``torch.load(weights_only=True)`` file.

    Weights inside ``state_dict``, ``model``, ``teacher`` and the like are unwrapped, ``module.`` and ``backbone.``
    taken off the names; ``source`` says so.

    Raises:
        ValueError: if there is no such file, it is damaged, it holds anything but plain tensors (never unpickled: that
            would run code from the file), or no state dict is found in it.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise ValueError(f"checkpoint {path} {what}; expected a safetensors file or a PyTorch file of plain tensors")
    content = _read(path)
    steps: list[str] = []
    tensors = {
        name: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for name, tensor in _strip(_unwrap(content, path, steps), steps).items()
    }
    source = f"{path}: {', '.join(steps)}" if steps else str(path)
    return Checkpoint(tensors=tensors, source=source, sha256=file_sha256(path))


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"checkpoint {path} is no readable safetensors file: {error}") from error
    try:
        # DeiT, MAE and DINO published their arguments beside the weights: a Namespace holds data, it runs nothing.
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


def _unwrap(content: Any, path: Path, steps: list[str]) -> dict[str, Tensor]:
    inside = ""
    while isinstance(content, Mapping):
        if any(isinstance(value, Tensor) for value in content.values()):
            if inside:
                steps.append(f"under {inside!r}")
            return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping) and content[key]), None)
        if wrapper is None:
            break
        inside = f"{inside}.{wrapper}".lstrip(".")
        content = content[wrapper]
    keys = f" Its keys: {_listed(map(str, content))}." if isinstance(content, Mapping) else ""
    raise ValueError(
        f"checkpoint {path} holds no state dict: looked for tensors on top and under {', '.join(WRAPPERS)}.{keys}"
    )


def _strip(tensors: dict[str, Tensor], steps: list[str]) -> dict[str, Tensor]:
    for prefix in PREFIXES * 2:  # wrapped twice, in either order
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            steps.append(f"without the prefix {prefix!r}")
    inner = {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")}
    if inner:
        rest = len(tensors) - len(inner)
        steps.append("without the prefix 'backbone.'" + (f" and {rest} tensors outside the backbone" if rest else ""))
        return inner
    return tensors


def native_names(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors as timm would hand them to ``load_state_dict``: its names, and its sizes of position embedding.

    Uses the ``checkpoint_filter_fn`` beside the model's class, where timm has one that understands the checkpoint.
    """
    for cls in type(model).__mro__:
        adapt = getattr(sys.modules.get(cls.__module__), "checkpoint_filter_fn", None)
        if adapt is not None:
            scales = {"adapt_layer_scale": True} if "adapt_layer_scale" in signature(adapt).parameters else {}
            try:
                adapted: dict[str, Tensor] = adapt(dict(tensors), model, **scales)
            except (RuntimeError, LookupError, AttributeError, TypeError, ValueError, ArithmeticError, AssertionError):
                break  # a foreign checkpoint: compare it as it is
            return adapted
    return tensors


def misfit(tensors: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """What keeps a state dict from loading into a model, strictly; None if nothing does.

    Names at most ``NAMED`` missing, unexpected and mis-shaped keys each, with counts.
    """
    wanted = model.state_dict()
    parts = []
    for kind, keys in (
        ("missing", sorted(set(wanted) - set(tensors))),
        ("unexpected", sorted(set(tensors) - set(wanted))),
        (
            "of another shape",
            sorted(
                f"{name} ({_shape(tensors[name])} in the checkpoint, {_shape(wanted[name])} in the model)"
                for name in set(wanted) & set(tensors)
                if tensors[name].shape != wanted[name].shape
            ),
        ),
    ):
        if keys:
            parts.append(f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {kind}: {_listed(keys)}")
    return "; ".join(parts) or None


def resampled(tensors: Mapping[str, Tensor], adapted: Mapping[str, Tensor]) -> list[str]:
    """A sentence for each tensor that was given another size on the way into the model."""
    return [
        f"{name} resampled from {_shape(tensor)} to {_shape(adapted[name])}"
        for name, tensor in tensors.items()
        if name in adapted and adapted[name].shape != tensor.shape
    ]


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(keys[:NAMED]) + more


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"
