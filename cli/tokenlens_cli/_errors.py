"""Show errors as one sentence on stderr and an exit code, with a traceback only under ``--debug``."""

from __future__ import annotations

import functools
import inspect
import os
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tokenlens_cli._output import say
from tokenlens_cli._processes import is_first_to_fail

STATED_ERROR = 1
INTERRUPTED = 130

_DEBUG = inspect.Parameter(
    "debug",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[bool, typer.Option("--debug", help="Show the traceback if there is an error.")],
)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command with the option ``--debug`` and with exceptions turned into a sentence and an exit code."""

    @functools.wraps(command)
    def run(*args: Any, debug: bool = False, **options: Any) -> None:
        try:
            command(*args, **options)
        except KeyboardInterrupt:
            say("interrupted; nothing was written")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:  # the reader, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that Python can flush stdout at its end
            raise typer.Exit() from None
        except Exception as error:
            if is_first_to_fail():
                if debug:
                    traceback.print_exc()
                say(f"error: {sentence(error)}")
            raise typer.Exit(STATED_ERROR) from None

    signature = inspect.signature(command, eval_str=True)
    vars(run)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), _DEBUG])
    return run


def sentence(error: Exception) -> str:
    """Describe an error on one line.

    >>> sentence(ValueError("expected 3,\\n got 4"))
    'expected 3, got 4'
    >>> sentence(OSError(28, "No space left on device", "reports/run"))
    'No space left on device: reports/run'
    >>> sentence(ModuleNotFoundError("No module named 'lightly'", name="lightly"))
    'this needs the package lightly; install tokenlens-vit[train], or the extra that has it'
    """
    name = type(error).__name__
    text = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("tokenlens"):
        return f"this needs the package {error.name}; install tokenlens-vit[train], or the extra that has it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"out of memory; try a smaller --batch-size or --img-size ({text or name})"
    if name == "SafetensorError":
        return f"the arrays could not be written or read: {text}"
    stated = isinstance(error, ValueError | LookupError | OSError) and not isinstance(error, KeyError | IndexError)
    if stated and text:
        return text
    return f"{name}: {text}; this is unexpected and probably a bug in tokenlens or in the model; --debug shows where"
