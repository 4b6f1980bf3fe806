"""Run commands in this process or another one, on a model and images that take about a second."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenlens_cli.app import app
from typer.testing import CliRunner

MODEL = "test_vit"
"""timm's smallest ViT with CLS: 6 blocks, 64 channels."""

TINY = ("--no-pretrained", "--img-size", "64", "--limit", "4")
REPOSITORY = Path(__file__).resolve().parents[2]


def tokenlens(*arguments: object, env: Mapping[str, str] | None = None) -> Any:
    """Run a command in this process; the result has exit_code, stdout and stderr."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def tiny_analyze(out: Path, *arguments: object, model: str = MODEL) -> Any:
    """Run ``analyze`` on a tiny model with random weights."""
    return tokenlens("analyze", model, *TINY, "--out", out, *arguments)


def refused(result: Any, *parts: str) -> str:
    """Check that a command failed with one sentence on stderr that has all of the parts, and return it."""
    assert result.exit_code == 1, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    for part in parts:
        assert part in last
    return last


def process(
    *command: object,
    cwd: Path,
    tree: Path = REPOSITORY,
    own_group: bool = False,
    stdout: int = subprocess.PIPE,
    **env: str,
) -> subprocess.Popen[str]:
    """Start a Python process with one thread that imports tokenlens from a source tree.

    With ``own_group`` it and its children form a process group, as in a terminal.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Shells ignore Ctrl-C in background jobs, and children would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join([str(tree), str(tree / "cli"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        text=True,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **settings, "PYTHONPATH": path.rstrip(os.pathsep), **env},
        start_new_session=own_group,
    )


def finished(running: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    """Wait for a process and return its exit code, stdout and stderr; kill it after ``seconds``."""
    try:
        stdout, stderr = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        running.kill()
        stdout, stderr = running.communicate()
        raise AssertionError(f"still running after {seconds} s\n{stdout}\n{stderr}") from None
    return running.returncode, stdout, stderr
