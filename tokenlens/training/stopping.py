"""When a training is asked to stop: by Ctrl-C, by the end of its time, by the queue it runs in."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM during a training, after it has written its checkpoint; says where it goes on."""


class StopRequest:
    """Whether the training should stop at the end of its step, and why.

    Args:
        max_minutes: after which it should; None for never.
    """

    def __init__(self, max_minutes: float | None) -> None:
        self.interrupted = False
        self._process = os.getpid()
        self._until = None if max_minutes is None else time.monotonic() + 60 * max_minutes

    @property
    def wanted(self) -> bool:
        """Whether it was interrupted, or its time is over."""
        return self.interrupted or (self._until is not None and time.monotonic() >= self._until)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM as requests; a second one ends the training at once. In the main thread alone."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number in before:
                signal.signal(number, self._interrupt)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            os._exit(1)  # a worker that reads images, forked with this in place, is to end
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
