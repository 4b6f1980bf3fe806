"""Errors as the user sees them."""

from __future__ import annotations

import typer
from tokenlens_cli._errors import guarded, sentence
from typer.testing import CliRunner

from tests.support.command_line import tiny_analyze


def test_a_bug_is_called_one():
    assert sentence(TypeError("x")) == (
        "TypeError: x; this is unexpected and probably a bug in tokenlens or in the model; --debug shows where"
    )
    assert "this is unexpected" in sentence(KeyError("x"))
    assert sentence(LookupError("no model is\n  called x")) == "no model is called x"
    assert "smaller --batch-size" in sentence(MemoryError())


def test_debug_shows_the_traceback(tmp_path):
    plain = tiny_analyze(tmp_path / "run", "--metrics", "nonsense")
    assert "Traceback" not in plain.stderr
    assert plain.stderr.splitlines()[-1].startswith("error: no metric is called 'nonsense'")
    debug = tiny_analyze(tmp_path / "run", "--metrics", "nonsense", "--debug")
    assert "Traceback" in debug.stderr
    assert debug.exit_code == plain.exit_code == 1


def test_a_closed_pipe_is_no_error(monkeypatch):
    monkeypatch.setattr("os.dup2", lambda *_: None)  # stdout is that of the tests here

    def command() -> None:
        """Prints to a reader that has gone."""
        raise BrokenPipeError(32, "Broken pipe")

    once = typer.Typer()
    once.command()(guarded(command))
    result = CliRunner().invoke(once, [])
    assert (result.exit_code, result.stderr) == (0, "")
