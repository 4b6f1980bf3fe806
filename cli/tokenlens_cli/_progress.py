"""Show the progress of long commands on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tokenlens_cli._output import format_duration, say

if TYPE_CHECKING:
    from rich.progress import Task

SECONDS_BETWEEN_LINES = 15.0
"""Interval between progress lines where stderr is no terminal."""

SPEED_SECONDS = 600.0
"""Speed is measured over at most this time, so that a single slow step does not make it undefined."""

Progress = Callable[..., None]
"""Called with a title, the number done, the total (None if unknown), the unit and, optionally, a note such as the loss.

A new title begins a new task and ends the one before.
"""


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Yield a ``Progress``; nothing is shown before its first call.

    Title and final count of each task stay on the screen. In between, a terminal shows a bar, and a file gets a line
    now and then; both say how much is done, the total, the speed and the time left.
    """
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Text
    from rich.progress import Progress as Bar
    from rich.table import Column

    class Numbers(ProgressColumn):
        """Column with the text of ``describe``."""

        def render(self, task: Task) -> Text:
            return Text(describe(task))

    console = Console(stderr=True)
    bar = Bar(
        BarColumn(bar_width=10),
        Numbers(Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        transient=True,
        refresh_per_second=4,
        speed_estimate_period=SPEED_SECONDS,
        redirect_stdout=False,
        disable=not console.is_interactive,
        get_time=lambda: time.monotonic(),
    )
    current, printed = "", 0.0

    def update(title: str, done: int, total: int | None, unit: str, note: str = "") -> None:
        nonlocal current, printed
        if title != current:
            _end(bar)
            say(title)
            current, printed = title, time.monotonic()
            _begin(bar, done, total, unit, note)
            return
        [task] = bar.tasks
        if task.total is None and total is not None:  # what came before was preparation
            bar.stop()
            bar.remove_task(task.id)
            _begin(bar, done, total, unit, note)
            return
        bar.update(task.id, completed=done, total=total, unit=unit, note=note)
        if bar.disable and time.monotonic() - printed >= SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            say(f"  {describe(task)}")

    try:
        yield update
        _end(bar)
    finally:
        bar.stop()


def describe(task: Task) -> str:
    """Return how much of a task is done, the total, the speed, the time left and the note."""
    unit, total = task.fields["unit"], task.total
    if total is None and not task.completed:
        return f"preparing, {format_duration(task.elapsed or 0)}"
    count = f"{task.completed:,.0f} {unit}" if total is None else f"{task.completed:,.0f} of {total:,.0f} {unit}"
    parts = [count]
    if task.speed:
        parts.append(f"{task.speed:.3g} {unit}/s")
        if total is not None and total > task.completed:
            parts.append(f"{format_duration((total - task.completed) / task.speed)} left")
    return ", ".join(filter(None, [*parts, task.fields["note"]]))


def _begin(bar: Any, done: int, total: int | None, unit: str, note: str) -> None:
    """Show a new task, whose clock starts now."""
    if done > 1:
        say(f"  {done - 1:,} of {total:,} {unit} were done before")
    bar.advance(bar.add_task("", total=total, completed=done, unit=unit, note=note, first=done), 0)
    bar.start()


def _end(bar: Any) -> None:
    """Replace the task that is shown by a line with its count, duration and speed."""
    bar.stop()
    for task in list(bar.tasks):
        bar.remove_task(task.id)
        done, fields = task.completed - task.fields["first"], task.fields
        seconds = task.finished_time or task.elapsed
        if done and seconds:
            count = f"{task.completed:,.0f} {fields['unit']}"
            if not fields["first"]:  # a resumed task began earlier
                count += f" in {format_duration(seconds) if seconds >= 10 else f'{seconds:.1f} s'}"
            speed = f"{done / seconds:.3g} {fields['unit']}/s"
            say("  " + ", ".join(filter(None, (count, speed, fields["note"]))))
