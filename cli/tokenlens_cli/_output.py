"""Results on stdout, progress and messages on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

SECONDS_BETWEEN_LINES = 15.0
"""How often progress is told where there is no terminal to draw a bar on."""

Progress = Callable[[int, int | None], None]


def say(message: str) -> None:
    """A message, on stderr."""
    typer.echo(message, err=True)


def print_json(result: Mapping[str, Any]) -> None:
    """One JSON object on stdout; numbers that JSON does not have (NaN, infinity) become null."""
    typer.echo(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False, indent=1))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


@contextmanager
def progress_of(what: str) -> Iterator[Progress]:
    """A function to call with images done and in all: a bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        with _bar(what) as update:
            yield update
    else:
        say(what)
        yield _lines()


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    from rich import progress as rich
    from rich.console import Console
    from rich.markup import escape

    columns = (
        rich.TextColumn(escape(what)),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("images"),
        rich.TimeElapsedColumn(),
        rich.TextColumn("left"),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines() -> Progress:
    started = told = time.monotonic()

    def update(done: int, total: int | None) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told < SECONDS_BETWEEN_LINES:
            return
        told = now
        speed = done / (now - started)
        of = "" if total is None else f" of {total}"
        left = "" if total is None else f", about {max(total - done, 0) / speed:.0f} s left"
        say(f"{done}{of} images, {speed:.3g} images/s{left}")

    return update
