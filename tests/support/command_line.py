"""The command line as the tests use it: in this process, on a model and images small enough for a second."""

from __future__ import annotations

import os
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
    """A few random numbers in a second: ``analyze`` of a tiny model with random weights."""
    return tokenlens("analyze", model, *TINY, "--out", out, *arguments)


def process(
    *command: object, cwd: Path, tree: Path = REPOSITORY, own_group: bool = False, **env: str
) -> subprocess.Popen[str]:
    """A real Python process, with one thread, that imports tokenlens from a source tree.

    With ``own_group`` it and its children get together what a terminal would send to all of them.
    """
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    path = os.pathsep.join([str(tree), str(tree / "cli"), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **settings, "PYTHONPATH": path.rstrip(os.pathsep), **env},
        start_new_session=own_group,
    )


def finished(running: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a process; it is ended if it hangs."""
    try:
        stdout, stderr = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        running.kill()
        stdout, stderr = running.communicate()
        raise AssertionError(f"no end after {seconds} s\n{stdout}\n{stderr}") from None
    return running.returncode, stdout, stderr
