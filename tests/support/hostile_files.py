"""Checkpoints that would run a command if they were unpickled."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch


class Payload:
    """An object whose pickle is the call of ``os.system`` that creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


class HiddenPayload(Payload):
    """The same through names that look harmless: a function of an unknown module, and getattr."""

    def __reduce__(self) -> Any:
        return getattr, (Path(self.trace), "touch")


class BuildPayload:
    """An object that would call ``Path.touch`` when its state is restored."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __setstate__(self, state: Any) -> None:
        Path(state["trace"]).touch()


def save_as_torchscript(path: Path) -> None:
    """Save a compiled program."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but such files exist
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(path))
