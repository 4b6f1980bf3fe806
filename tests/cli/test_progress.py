"""Progress on stderr: done, total, speed and time left, the same numbers on a terminal and in a file."""

from __future__ import annotations

import re
import sys

import pytest
from tokenlens_cli import _progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_line_now_and_then(clock, capsys):
    with _progress.show_progress() as progress:
        assert capsys.readouterr().err == ""  # nothing is being analyzed yet
        for seconds, done in ((0, 0), (20, 20), (25, 30), (40, 80), (50, 100)):
            clock[0] = 100.0 + seconds
            progress("analyzing x", done, 100, "images")
    assert capsys.readouterr().err.splitlines() == [
        "analyzing x",
        "  20 of 100 images, 1 images/s, 1 min 20 s left",
        "  80 of 100 images, 2 images/s, 10 s left",
        "  100 images in 50 s, 2 images/s",
    ]


def test_an_unknown_total_has_no_time_left(clock, capsys):
    with _progress.show_progress() as progress:
        for seconds, done in ((0, 0), (20, 20)):
            clock[0] = 100.0 + seconds
            progress("analyzing x", done, None, "images")
    assert capsys.readouterr().err.splitlines()[1] == "  20 images, 1 images/s"


def test_preparation_and_steps_of_an_earlier_session_do_not_count(clock, capsys):
    with _progress.show_progress() as progress:
        for seconds, done, total in ((0, 0, None), (500, 51, 100), (510, 61, 100), (520, 71, 100)):
            clock[0] = 100.0 + seconds
            progress("training x", done, total, "steps", f"loss {done}")
    assert capsys.readouterr().err.splitlines() == [
        "training x",
        "  50 of 100 steps were done before",
        "  61 of 100 steps, 1 steps/s, 39 s left, loss 61",
        "  71 steps, 1 steps/s, loss 71",
    ]


def test_each_stage_has_its_own_count(clock, capsys):
    with _progress.show_progress() as progress:
        for stage in ("features", "training"):
            for seconds in (0, 2):
                clock[0] += seconds
                progress(stage, seconds, 2, "images")
    assert capsys.readouterr().err.splitlines() == [
        "features",
        "  2 images in 2.0 s, 1 images/s",
        "training",
        "  2 images in 2.0 s, 1 images/s",
    ]


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch, clock, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with _progress.show_progress() as progress:
        for seconds, done in ((0, 0), (20, 25), (40, 50)):
            clock[0] = 100.0 + seconds
            progress("analyzing [x]", done, 100, "images")
    out, err = capsys.readouterr()
    assert out == ""
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[━╸╺]", "", err).replace("\r", "\n").splitlines()
    assert lines[0] == "analyzing [x]"
    assert " 50 of 100 images, 1.25 images/s, 40 s left" in lines  # what a file is told
    assert lines[-1] == "  50 images in 40 s, 1.25 images/s"
