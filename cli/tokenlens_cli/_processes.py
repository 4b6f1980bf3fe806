"""Several processes as one: ``torchrun --nproc-per-node N -m tokenlens_cli …``, or started by the training's engine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_ERRORS = "tokenlens_errors"
_store: Any = None


@dataclass(frozen=True)
class Rank:
    """One process of a command.

    Args:
        device: where its model goes.
        index: its number, from 0.
    """

    device: str
    index: int = 0

    @property
    def leads(self) -> bool:
        """Whether it is the one that prints and writes."""
        return self.index == 0


def leads() -> bool:
    """Whether this process is the one that prints and writes, whoever has started them; also before it has joined the
    others."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank() == 0
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    # torchrun says RANK, Lightning Fabric only these two.
    return not any(int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def meet() -> None:
    """Let processes that torchrun has started agree on who tells an error, before they join for the work itself."""
    global _store
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from torch import distributed

        _store, _, _ = next(distributed.rendezvous("env://"))  # torchrun's own; it outlives all of them


@contextmanager
def joined(device: str) -> Iterator[Rank]:
    """Join the other processes that torchrun has started, if it has; all of them leave together.

    The processes exchange one object, at the end. gloo does that whatever the device is, and also where two processes
    share a GPU, which NCCL refuses.

    Args:
        device: as the user gave it; ``auto`` and ``cuda`` become this process's own GPU.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Rank(device)
        return
    import torch
    from torch import distributed

    if device in ("auto", "cuda") and torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    _store, index, count = next(distributed.rendezvous("env://"))
    distributed.init_process_group("gloo", store=_store, rank=index, world_size=count)
    # No try: after an error the others are told by the broken connection when this process ends.
    yield Rank(device, index)
    distributed.barrier()
    distributed.destroy_process_group()
    _store = None


def first_to_fail() -> bool:
    """Whether no other process has failed before this one: the others fail only because it did, and keep quiet."""
    store = _store
    if store is None and "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            store = distributed.distributed_c10d._get_default_store()
    if store is None:
        return True
    try:
        return bool(store.add(_ERRORS, 1) == 1)
    except Exception:
        # The process that keeps the store is gone: the first one, which has told why, or whoever started it does.
        return leads()
