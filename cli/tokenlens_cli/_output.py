"""Print results to stdout, and progress and messages to stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import typer

SECONDS_BETWEEN_LINES = 15.0
"""Interval between progress lines where stderr is no terminal."""

Progress = Callable[[int, int | None], None]


def say(message: str) -> None:
    """Print a message to stderr."""
    typer.echo(message, err=True)


def say_skipped(images: Sequence[Mapping[str, str]]) -> None:
    """Print how many images were unreadable, and the first five of them, to stderr."""
    if images:
        named = "; ".join(f"{item.get('split', '')} {item['name']}: {item['reason']}".strip() for item in images[:5])
        more = f"; and {len(images) - 5} more, all listed in the run folder" if len(images) > 5 else ""
        say(f"{len(images)} unreadable {'image was' if len(images) == 1 else 'images were'} skipped: {named}{more}")


def say_about_images(images: Mapping[str, Any]) -> None:
    """Print what the provenance says about the images of an analysis to stderr: remarks, and which were skipped."""
    for note in images.get("notes", []):
        say(note)
    say_skipped(images.get("skipped", []))


def say_weights(model: str, weights: Mapping[str, Any]) -> None:
    """Print what was unwrapped, renamed, resized or left out when the weights of a model were loaded, to stderr."""
    if weights.get("steps"):
        say(f"weights of {model}: {'; '.join(weights['steps'])}")


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object to stdout, with NaN and infinity as null."""
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


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> format_duration(7.4), format_duration(312), format_duration(3599.7), format_duration(300_000)
    ('7 s', '5 min 12 s', '1 h 0 min', '3 d 11 h')
    """
    whole = round(seconds)
    for large, small, size, part in (("d", "h", 86_400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"


@contextmanager
def show_progress(title: str) -> Iterator[Progress]:
    """Yield a function to call with the numbers of images done and in total (None if unknown).

    It draws a progress bar on a terminal, and prints a line now and then elsewhere; nothing before its first call.
    """
    if not sys.stderr.isatty():
        yield _print_lines(title)
        return
    with ExitStack() as stack:
        bar: Any = None

        def update(done: int, total: int | None) -> None:
            nonlocal bar
            if bar is None:
                from rich.progress import TimeElapsedColumn, TimeRemainingColumn

                bar = make_bar(title, "images", TimeElapsedColumn(), "left", TimeRemainingColumn())
                stack.enter_context(bar).add_task("", total=None)
            bar.update(bar.task_ids[0], completed=done, total=total)

        yield update


def make_bar(title: str, *columns: Any) -> Any:
    """Return rich's progress bar on stderr: the title, the bar, how much of how much is done, and more columns."""
    from rich import progress as rich
    from rich.console import Console
    from rich.markup import escape

    first = (rich.TextColumn(escape(title)), rich.BarColumn(), rich.MofNCompleteColumn())
    more = [rich.TextColumn(column) if isinstance(column, str) else column for column in columns]
    return rich.Progress(*first, *more, console=Console(stderr=True), transient=True, refresh_per_second=4)


def _print_lines(title: str) -> Progress:
    started: float | None = None
    last_line = 0.0

    def update(done: int, total: int | None) -> None:
        nonlocal started, last_line
        now = time.monotonic()
        if started is None:
            started = last_line = now
            say(title)
        if now - last_line < SECONDS_BETWEEN_LINES:
            return
        last_line = now
        speed = done / (now - started)
        of = "" if total is None else f" of {total}"
        left = "" if total is None else f", about {max(total - done, 0) / speed:.0f} s left"
        say(f"{done}{of} images, {speed:.3g} images/s{left}")

    return update
