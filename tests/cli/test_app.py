"""Help, version, completion and wrong usage."""

from __future__ import annotations

import re

import pytest
import typer
from tokenlens_cli.app import app, command_names

from tests.support.command_line import finished, process, tokenlens

HEAVY = {
    "torch",
    "timm",
    "numpy",
    "pandas",
    "scipy",
    "matplotlib",
    "seaborn",
    "sklearn",
    "PIL",
    "jinja2",
    "safetensors",
}


def all_commands():
    group = typer.main.get_command(app)
    return [group, *group.commands.values()]


def test_every_command_and_option_is_described():
    for command in all_commands():
        assert len((command.help or "").split()) > 4, command.name
        for parameter in command.params:
            assert len((parameter.help or "").split()) >= 3, f"{command.name} {parameter.name}"
            # All environment variables follow from the option: --no-report is TOKENLENS_ANALYZE_NO_REPORT.
            assert f"--{parameter.name.replace('_', '-')}" in [*parameter.opts, f"--{parameter.opts[0]}"]


def test_help_names_every_command():
    shown = tokenlens("--help").stdout
    for name in command_names():
        assert re.search(rf"^  {name} ", shown, re.MULTILINE)
        assert tokenlens(name, "--help").exit_code == 0
    assert "Exit codes" in shown


def test_version():
    import tokenlens as package

    assert tokenlens("--version").stdout == f"tokenlens {package.__version__}\n"
    # A variable of this name is common; it must not print a version instead of doing the work.
    assert tokenlens("list", "figures", env={"TOKENLENS_VERSION": "1"}).stdout != f"tokenlens {package.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["analyze"], ["list", "nonsense"], ["analyze", "x", "--nonsense"]]
)
def test_wrong_usage_ends_with_2(arguments):
    assert tokenlens(*arguments).exit_code == 2


def test_help_and_completion_import_nothing_heavy(tmp_path):
    code = """
import os, sys
import tokenlens
from typer.testing import CliRunner
from tokenlens_cli.app import app
dir(tokenlens), tokenlens.__version__
for arguments in (["--help"], ["analyze", "--help"], ["--version"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
words = "tokenlens analyze x --metrics token_n"
os.environ.update(_TOKENLENS_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD="4")
try:
    app(prog_name="tokenlens")
except SystemExit:
    pass
print("imported", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
    exit_code, stdout, stderr = finished(process("-c", code, cwd=tmp_path))
    assert exit_code == 0, stderr
    assert "token_norm" in stdout
    assert not HEAVY & set(stdout.splitlines()[-1].split())
