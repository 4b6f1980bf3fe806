"""Print results to stdout and messages to stderr, word-wrapped on a terminal."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tokenlens.analysis import Analysis
    from tokenlens.interventions import Intervention


def say(message: str, indent: int = 0) -> None:
    """Print a message to stderr, as ``print_text`` does."""
    print_text(message, indent=indent, err=True)


def print_text(text: str, *, bold: str = "", indent: int | None = None, err: bool = False) -> None:
    """Print text, which a terminal shows word-wrapped and with one part in bold.

    Paths and names longer than a line stay whole, so that they can be copied. Where the output is not a terminal, the
    text is printed as it is.

    Args:
        text: one or several lines.
        bold: the part of the text to show in bold.
        indent: columns by which wrapped lines are indented; by default as many as the line itself.
        err: whether to print to stderr.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=err, highlight=False)
    if not console.is_terminal:
        typer.echo(text, err=err)
        return
    for line in text.split("\n"):
        hang = " " * (len(line) - len(line.lstrip()) if indent is None else indent)
        # rich breaks words that are longer than a line
        wrapped = textwrap.fill(
            line, console.width, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False
        )
        styled = Text(wrapped)
        if bold:
            styled.highlight_regex(r"\s+".join(map(re.escape, bold.split())), "bold")
        console.print(styled, soft_wrap=True)


def say_next(*steps: str) -> None:
    """Print what can be done with a result to stderr, one step a line."""
    say("next:")
    for step in steps:
        typer.echo(f"  {step}", err=True)  # not wrapped, so that a command can be copied


def report_step(folder: Path, page: Path | None) -> str:
    """Return the step that shows the report of a run: open it, or draw it first."""
    return f"tokenlens report {quote(str(folder))}" if page is None else f"open {page} in a browser"


def say_skipped(images: Sequence[Mapping[str, str]]) -> None:
    """Print how many images were unreadable, and the first five of them, to stderr."""
    if images:
        named = "; ".join(f"{item.get('split', '')} {item['name']}: {item['reason']}".strip() for item in images[:5])
        more = f"; and {len(images) - 5} more, all listed in the run folder" if len(images) > 5 else ""
        say(f"{len(images)} unreadable {'image was' if len(images) == 1 else 'images were'} skipped: {named}{more}")


def say_about_images(images: Mapping[str, Any]) -> None:
    """Print what the provenance says about the images of an analysis to stderr: remarks, and which were skipped."""
    for note in images.get("notes", []):
        say(note)
    say_skipped(images.get("skipped", []))


def say_weights(model: str, weights: Mapping[str, Any]) -> None:
    """Print what was unwrapped, renamed, resized or left out when the weights of a model were loaded, to stderr."""
    if weights.get("steps"):
        say(f"weights of {model}: {'; '.join(weights['steps'])}")


def say_about_result(result: Analysis | Intervention) -> None:
    """Print what was noticed about model, weights and images, and what does not apply to the model, to stderr."""
    say_weights(result.model, result.provenance["weights"])
    for note in result.provenance.get("notes", ()):
        say(note)
    say_about_images(result.provenance["images"])
    reasons: dict[str, list[str]] = {}
    for name, reason in result.not_applicable.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        say(f"not applicable, {reason}: {', '.join(names)}")


def print_json(result: Mapping[str, Any]) -> None:
    """Print one JSON object to stdout, with NaN and infinity as null."""
    typer.echo(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False, indent=1))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> format_duration(7.4), format_duration(312), format_duration(3599.7), format_duration(300_000)
    ('7 s', '5 min 12 s', '1 h 0 min', '3 d 11 h')
    """
    whole = round(seconds)
    for large, small, size, part in (("d", "h", 86_400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"
