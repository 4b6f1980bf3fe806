"""Run one command in several processes, started by torchrun or by the training's engine, and report errors once."""

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
        device: device for its model.
        index: its number, from 0.
    """

    device: str
    index: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.index == 0


def is_first_process() -> bool:
    """Return whether this process prints and writes, however it was started; also before it has joined the others."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank() == 0
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return True
    # torchrun sets RANK, Lightning Fabric only the other two.
    return not any(int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def join_error_store() -> None:
    """Under torchrun, connect to its store, through which processes agree on who reports an error."""
    global _store
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from torch import distributed

        _store, _, _ = next(distributed.rendezvous("env://"))  # torchrun's own store, which outlives all processes


@contextmanager
def joined(device: str) -> Iterator[Rank]:
    """Join the other processes that torchrun started, if any; all of them leave together.

    The processes exchange one object, at the end. gloo does that on any device, also where two processes share a GPU,
    which NCCL refuses.

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
    # No try: after an error this process ends, and the broken connection ends the others.
    yield Rank(device, index)
    distributed.barrier()
    distributed.destroy_process_group()
    _store = None


def is_first_to_fail() -> bool:
    """Return whether no other process failed before this one; those that fail as a consequence stay silent."""
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
        # The process that holds the store has ended: either the first process, which reported the error, or the one
        # that started all, which reports it.
        return is_first_process()
