"""SHA-256 of files and tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's numbers as bytes in row-major order, whatever its dtype and device."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensor_sha256(image: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{image.dtype} {tuple(image.shape)}\n".encode())
    digest.update(tensor_bytes(image))
    return digest.hexdigest()
