"""Stop a training cleanly: after Ctrl-C, after SIGTERM from a queue, or when its time is up."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a training; raised once the checkpoint is written."""


class StopRequest:
    """Whether the training should stop at the end of the current step.

    Args:
        max_minutes: time after which it should; None for never.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.interrupted = False
        self._process = os.getpid()
        self._until = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    @property
    def wanted(self) -> bool:
        """Whether the training was interrupted, or its time is up."""
        return self.interrupted or (self._until is not None and time.monotonic() >= self._until)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Treat Ctrl-C and SIGTERM as requests, a second one as the end; only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number in before:
                signal.signal(number, self._interrupt)
            yield
        finally:
            for number, previous in before.items():
                signal.signal(number, previous)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            os._exit(1)  # a worker that reads images inherited this function when it was forked
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
