"""Progress on stderr and JSON on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tokenlens_cli import _output


def test_progress_is_told_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(_output.time, "monotonic", lambda: next(clock))
    with _output.show_progress("analyzing x") as progress:
        assert capsys.readouterr().err == ""  # nothing is being analyzed yet
        progress(0, 100)
        progress(20, 100)
        progress(30, 100)
        progress(80, None)
    assert capsys.readouterr().err.splitlines() == [
        "analyzing x",
        "20 of 100 images, 1 images/s, about 80 s left",
        "80 images, 2 images/s",
    ]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(_output.sys.stderr, "isatty", lambda: True, raising=False)
    with _output.show_progress("analyzing [x]") as progress:
        progress(1, 2)
        progress(3, None)
    assert capsys.readouterr().out == ""


def test_json_has_no_nan(capsys):
    _output.print_json({"a": float("nan"), "b": [np.float32(0.5), np.int64(2), np.nan, float("inf")], "c": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [0.5, 2, None, None], "c": "x"}
