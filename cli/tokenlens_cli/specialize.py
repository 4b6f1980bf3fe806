"""``tokenlens specialize``: specialize a standard model and save it, or compute what that would cost."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli import _options as options
from tokenlens_cli._output import print_json, print_text, say_next, say_weights

if TYPE_CHECKING:
    from tokenlens.specialization import SpecializationCost, SpecializationPlan


class Registers(StrEnum):
    """The token group whose weights the register tokens use."""

    cls = "cls"
    patch = "patch"


def command(
    model: options.Model,
    preset: Annotated[
        str,
        typer.Option(
            metavar="norms|paper|qkv_all|everything",
            help="Which modules get separate weights. norms: all norms. paper: norms and LayerScale, and QKV in the "
            "first third of the blocks. qkv_all: the same with QKV in all blocks. everything: all linear layers too.",
        ),
    ] = "paper",
    registers: Annotated[
        Registers, typer.Option(help="Whether register tokens use the weights of CLS or of the patches.")
    ] = Registers.cls,
    checkpoint: options.Checkpoint = None,
    pretrained: options.Pretrained[bool] = True,
    img_size: options.ImgSize = None,
    model_arg: options.ModelArg = None,
    seed: Annotated[
        int, typer.Option(min=0, max=options.LARGEST_SEED, metavar="N", help="Seed for random weights.")
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write the model: a .safetensors file, or a folder for model.safetensors. A config.json is "
            "written next to it, so that local-dir:FOLDER loads the model.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cost without loading weights or writing files.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Give CLS and patch tokens separate weights in a model.

    The special tokens (CLS, distillation and registers) get one set of weights, the patches another. Prints the added
    parameters and FLOPs per component. Until it is trained, the specialized model computes the same function as the
    standard one. Other commands take `specialized:PRESET:MODEL` as MODEL without saving it first.
    """
    from dataclasses import replace

    from tokenlens.models import create_meta_model, load_model
    from tokenlens.specialization import as_specialization, compute_costs, save, specialize

    model_args = options.join_model_args(model_arg)
    wanted = replace(as_specialization(preset), registers=registers.value)
    if out is None and not dry_run:
        raise typer.BadParameter("expected a file or folder to write, or --dry-run", param_hint="--out")
    target = None if dry_run or out is None else find_target(out, overwrite)
    if target is None:
        module = create_meta_model(model, img_size=img_size, model_args=model_args)
    else:
        loaded = load_model(
            model,
            pretrained=pretrained,
            checkpoint=checkpoint,
            img_size=img_size,
            model_args=model_args,
            device="cpu",
            seed=seed,
        )
        say_weights(model, loaded.weights)
        module = loaded.module
    plan, found = compute_costs(module, wanted)
    if target is not None:
        save(specialize(module, wanted), *target)
    if json:
        print_json(
            {
                "model": model,
                "preset": preset,
                "specialization": wanted.to_dict(),
                "prefix": list(plan.groups),
                "blocks": plan.blocks,
                "replaced": [module.path for module in plan.modules],
                "costs": [asdict(cost) for cost in found],
                "notes": list(plan.notes),
                "file": None if target is None else str(target[0] / target[1]),
            }
        )
        return
    for line in format_table(plan, found):
        typer.echo(line)
    for note in plan.notes:
        print_text(note)
    if target is not None:
        print_text(f"model: {target[0] / target[1]}")
        name = quote(f"local-dir:{target[0]}")
        say_next(f"tokenlens compare {quote(model)} {name}", f"tokenlens analyze {name}")


def find_target(out: Path, overwrite: bool) -> tuple[Path, str]:
    """Return the folder and the name of the weights file; raise ValueError if it exists and must not be replaced."""
    from tokenlens.storage.run_folder import check_can_create

    folder, name = (out.parent, out.name) if out.suffix == ".safetensors" else (out, "model.safetensors")
    existing = [str(folder / file) for file in (name, "config.json") if (folder / file).exists()]
    if existing and not overwrite:
        exist = "exists" if len(existing) == 1 else "exist"
        raise ValueError(f"{' and '.join(existing)} already {exist}; use --overwrite to replace it")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder or the name of a .safetensors file")
    check_can_create(folder / name)
    return folder, name


def format_table(plan: SpecializationPlan, found: list[SpecializationCost]) -> list[str]:
    """Return the lines of a text table: one row per component, and the whole model last."""
    rows = [("component", "blocks", "modules", "parameters", "added", "GFLOPs", "added")]
    for cost in found:
        rows.append(
            (
                cost.component,
                _format_blocks(plan, cost.component),
                str(cost.modules),
                f"{cost.parameters:,}",
                _format_added(cost.added_parameters, cost.parameters),
                f"{cost.flops / 1e9:.3f}",
                _format_added(cost.added_flops, cost.flops),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _format_added(added: int, of: int) -> str:
    """Format an added amount, e.g. +12,345 (+1.2 %)."""
    if not of:
        return "–"
    amount = f"{added:+,}" if abs(added) < 1e6 else f"{added / 1e6:+.2f} M"
    return f"{amount} ({100 * added / of:+.2f} %)"


def _format_blocks(plan: SpecializationPlan, component: str) -> str:
    """Format the blocks of a component, e.g. 0–3, final."""
    found: list[Any] = [module.block for module in plan.modules if component in (module.component, "model")]
    numbers = sorted({number for number in found if number is not None})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    ranges = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join(ranges + ["final"] * (None in found))
