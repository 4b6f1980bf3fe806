"""Results on stdout and messages on stderr: wrapped and bold on a terminal, as they are elsewhere; JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenlens_cli import _output


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 40 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


SENTENCE = "F1 supported: the cosine of CLS and patches falls in [12] of 12 blocks, by 0.31"


def test_a_file_gets_the_text_as_it_is(capsys):
    _output.print_text(SENTENCE, bold="F1 supported", indent=2)
    _output.say(SENTENCE)
    assert capsys.readouterr() == (f"{SENTENCE}\n", f"{SENTENCE}\n")


def test_a_terminal_gets_wrapped_words_and_a_bold_verdict(terminal, capsys):
    _output.print_text(SENTENCE, bold="F1 supported", indent=2)
    assert capsys.readouterr().out.splitlines() == [
        "\x1b[1mF1 supported\x1b[0m: the cosine of CLS and",
        "  patches falls in [12] of 12 blocks, by",
        "  0.31",
    ]


def test_paths_stay_whole_and_indented_lines_hang(terminal, capsys):
    path = "reports/" + "vit_small_patch14_dinov2/" * 3
    _output.print_text(f"  run: {path}")
    assert capsys.readouterr().out.splitlines() == ["  run:", f"  {path}"]


def test_commands_to_try_are_not_wrapped(terminal, capsys):
    command = "tokenlens figure reports/vit_small_patch14_dinov2 depth_profile --out depth_profile.pdf"
    _output.say_next(command)
    assert capsys.readouterr() == ("", f"next:\n  {command}\n")


def test_without_a_report_the_next_step_draws_it():
    assert _output.report_step(Path("my run"), None) == "tokenlens report 'my run'"
    assert _output.report_step(Path("run"), Path("run/report.html")) == "open run/report.html in a browser"


def test_json_has_no_nan_and_is_not_wrapped(terminal, capsys):
    _output.print_json(
        {"a": float("nan"), "b": [np.float32(0.5), np.int64(2), np.nan, float("inf")], "c": "x " * 50, "d": Path("x")}
    )
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [0.5, 2, None, None], "c": "x " * 50, "d": "x"}
