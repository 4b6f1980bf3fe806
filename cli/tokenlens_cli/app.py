"""The ``tokenlens`` command, whose subcommands are the files of this folder.

Nothing heavy is imported here or at the top of a command's file, so that help and completion start at once.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tokenlens_cli._errors import guarded

app = typer.Typer(
    name="tokenlens",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"auto_envvar_prefix": "TOKENLENS", "help_option_names": ["-h", "--help"]},
    epilog=(
        "`tokenlens COMMAND --help` describes a command. Results go to stdout, progress and messages to stderr. Exit "
        "codes: 0 success, 1 error, 2 wrong usage, 130 interrupted."
    ),
)


class Command(TyperCommand):
    """A command whose help does not repeat the environment variable at every option."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        for parameter in self.params:
            if hasattr(parameter, "show_envvar"):
                parameter.show_envvar = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty texts: as a path, one would be the current folder."""
        for before, argument in zip(["", *args], args, strict=False):
            option = argument[:-1] if argument.startswith("--") and argument.endswith("=") else before
            if not argument or option is not before:
                raise typer.BadParameter("it is empty; leave it out, or give a value", ctx, param_hint=option or None)
        return super().parse_args(ctx, args)


def command_names() -> list[str]:
    """Return the names of all commands: the files of this folder except app.py and those that start with ``_``."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if not name.startswith("_") and name != "app")


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tokenlens {version('tokenlens-vit')}")
        raise typer.Exit()


@app.callback()
def tokenlens(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_show_version,
            is_eager=True,
            allow_from_autoenv=False,
        ),
    ] = False,
) -> None:
    """Analyze how the [CLS] token and the patch tokens of a Vision Transformer interact."""


for _name in command_names():
    _variables = (
        f"Every option can also be set by an environment variable, TOKENLENS_{_name.upper()}_<OPTION>, with _ for -."
    )
    _command = guarded(importlib.import_module(f"tokenlens_cli.{_name}").command)
    app.command(_name, cls=Command, epilog=_variables)(_command)
