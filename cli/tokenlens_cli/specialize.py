"""``tokenlens specialize``: a standard model with two sets of weights, what it costs, and its file."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenlens_cli._output import print_json, say

if TYPE_CHECKING:
    from tokenlens.specialization import Cost, Plan


class Registers(StrEnum):
    """Whose weights register tokens use."""

    cls = "cls"
    patch = "patch"


def command(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A standard model: tokenlens_tiny, which needs no download, a timm name with or without a weights "
            "tag, hf-hub:owner/name, local-dir:PATH or a run folder of `tokenlens train`.",
        ),
    ],
    preset: Annotated[
        str,
        typer.Option(
            metavar="norms|paper|qkv_all|everything",
            help="What gets two sets of weights: all norms; norms, LayerScale and QKV in the first third of the "
            "blocks; QKV in all blocks; every linear map as well.",
        ),
    ] = "paper",
    registers: Annotated[
        Registers, typer.Option(help="Whether register tokens share the weights of CLS or of the patches.")
    ] = Registers.cls,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Weights from a file instead of the published ones: safetensors, or plain tensors."
        ),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained/--no-pretrained", help="Published weights, or random ones by --seed.")
    ] = True,
    img_size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images in pixels; by default the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of random weights.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write the specialized model: a .safetensors file, or a folder for model.safetensors; beside "
            "it a config.json that rebuilds it. local-dir:FOLDER then names it.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost; loads no weights and writes nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Give a Vision Transformer separate weights for prefix tokens (CLS, distillation, registers) and patches.

    Prints the parameters and FLOPs per component. The specialized model computes what the standard one does until it is
    trained; `specialized:PRESET:MODEL` names it for all other commands without any file.
    """
    if out is None and not dry_run:
        raise typer.BadParameter("say where to write the model, or --dry-run to see what it costs", param_hint="--out")
    from dataclasses import replace

    from tokenlens.models.loading import load_model, sketch_model
    from tokenlens.specialization import as_specialization, costs, save, specialize

    wanted = replace(as_specialization(preset), registers=registers.value)
    target = None if dry_run or out is None else save_target(out, overwrite)
    if target is None:
        module = sketch_model(model, img_size=img_size)
    else:
        loaded = load_model(
            model, pretrained=pretrained, checkpoint=checkpoint, img_size=img_size, device="cpu", seed=seed
        )
        module = loaded.module
    plan, found = costs(module, wanted)
    if target is not None:
        save(specialize(module, wanted), *target)
        say(f"read it as local-dir:{target[0]}")
    if json:
        print_json(
            {
                "model": model,
                "preset": preset,
                "specialization": wanted.to_dict(),
                "prefix": list(plan.groups),
                "blocks": plan.blocks,
                "replaced": [replacement.path for replacement in plan.replacements],
                "costs": [asdict(cost) for cost in found],
                "notes": list(plan.notes),
                "file": None if target is None else str(target[0] / target[1]),
            }
        )
        return
    for line in table(plan, found):
        typer.echo(line)
    for note in plan.notes:
        typer.echo(note)
    if target is not None:
        typer.echo(f"model: {target[0] / target[1]}")


def save_target(out: Path, overwrite: bool) -> tuple[Path, str]:
    """Folder and name of the file of weights.

    Raises:
        ValueError: if there is something already that must not be replaced.
    """
    folder, name = (out.parent, out.name) if out.suffix == ".safetensors" else (out, "model.safetensors")
    there = [str(folder / file) for file in (name, "config.json") if (folder / file).exists()]
    if there and not overwrite:
        raise ValueError(f"{' and '.join(there)} exist{'s' if len(there) == 1 else ''} already; --overwrite replaces")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, or the name of a .safetensors file")
    return folder, name


def table(plan: Plan, found: list[Cost]) -> list[str]:
    """Lines of text: a row for each component, and the whole model last."""
    rows = [("component", "blocks", "modules", "parameters", "added", "GFLOPs", "added")]
    for cost in found:
        rows.append(
            (
                cost.component,
                _blocks(plan, cost.component),
                str(cost.modules),
                f"{cost.parameters:,}",
                _share(cost.added_parameters, cost.parameters),
                f"{cost.flops / 1e9:.3f}",
                _share(cost.added_flops, cost.flops),
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


def _share(added: int, of: int) -> str:
    """+12,345 (+1.2 %)."""
    if not of:
        return "–"
    amount = f"{added:+,}" if abs(added) < 1e6 else f"{added / 1e6:+.2f} M"
    return f"{amount} ({100 * added / of:+.2f} %)"


def _blocks(plan: Plan, component: str) -> str:
    """0–3, final norm."""
    mine: list[Any] = [entry.block for entry in plan.replacements if component in (entry.component, "model")]
    numbers = sorted({number for number in mine if number is not None})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join(words + ["final"] * (None in mine))
