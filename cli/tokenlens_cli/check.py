"""``tokenlens check``: say what a model or checkpoint is and whether tokenlens can read it, without running it."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._output import print_json, print_text, say


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|FILE",
            help=f"What to check: a checkpoint (a file, a folder of shards or their index), or a model: "
            f"{options.MODEL_NAMES}.",
        ),
    ],
    checkpoint: options.Checkpoint = None,
    img_size: options.ImgSize = None,
    model_arg: options.ModelArg = None,
    json: options.Json = False,
) -> None:
    """Say what a model or checkpoint is, without running it.

    Prints its family, tokens, blocks and parameters; of its weights the format, what they are wrapped in, and how many
    keys match, are missing or are resized. Downloads no weights. For a checkpoint on its own, searches timm's
    architectures that it fits. The exit code is 1 if tokenlens cannot read it.
    """
    from tokenlens.models import check

    result = check(model, checkpoint=checkpoint, img_size=img_size, model_args=options.join_model_args(model_arg))
    if json:
        print_json(result.to_dict())
    else:
        print_text(str(result), indent=14)
    if not result.readable:
        say(f"error: {result.problem}")
        raise typer.Exit(1)
