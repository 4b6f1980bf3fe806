"""Generate one page per metric from its docstring and class attributes, and metrics/index.md, which lists them.

The sources are parsed, not imported: the site needs no torch.
"""

from __future__ import annotations

import ast
import inspect
import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PACKAGE = Path(__file__).resolve().parents[2] / "tokenlens"
SECTIONS = ("Formula", "Parts", "Arrays", "Reference", "Pitfalls", "Tested against")
ATTRIBUTES = ("title", "unit", "sites", "expensive_sites", "cost", "needs")


class MetricCard(NamedTuple):
    """The card of one metric file; ``parts`` and ``sections`` come from its docstring."""

    name: str
    summary: str
    definition: str
    sections: dict[str, str]
    parts: dict[str, str]
    attributes: dict[str, Any]


def read_cards() -> list[MetricCard]:
    """Read the cards of all metrics, sorted by name."""
    constants: dict[str, Any] = {"StrEnum": StrEnum}
    for path in (PACKAGE / "tokens.py", PACKAGE / "metrics" / "base.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else node
            name = getattr(target, "id", getattr(target, "name", ""))
            if name == "Site" or re.fullmatch(r"PATTERN|\w+_SITES|\w+_COST", name):
                exec(compile(ast.Module([node], []), path, "exec"), constants)
    files = sorted((PACKAGE / "metrics").glob("*.py"), key=lambda path: (path.stem[0] != "_", path.stem))
    classes: dict[str, type] = {"Metric": type("Metric", (), dict.fromkeys(ATTRIBUTES, ()))}
    return [
        card
        for path in files
        if path.stem not in ("__init__", "base")
        for card in [_read_card(path, classes, constants)]
        if not path.stem.startswith("_")
    ]


def _read_card(path: Path, classes: dict[str, type], constants: dict[str, Any]) -> MetricCard:
    """Read the last metric class of a file, and add all of its metric classes to ``classes``."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    docstring, name = "", "Metric"
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            constants[ast.unparse(node.targets[0])] = node.value.value
        bases = [classes[base.id] for base in getattr(node, "bases", ()) if getattr(base, "id", "") in classes]
        if isinstance(node, ast.ClassDef) and bases:
            name, docstring = node.name, ast.get_docstring(node) or ""
            classes[name] = type(name, tuple(bases), _attributes(node, bases, constants))
    definition, *rest = re.split(rf"^({'|'.join(SECTIONS)}):", docstring, flags=re.MULTILINE)
    sections = {title: inspect.cleandoc(text) for title, text in zip(rest[::2], rest[1::2], strict=True)}
    lines = re.sub(r"\n {2,}", " ", sections.get("Parts", ""))
    parts = dict(re.findall(r"^(\w+): (.+)$", lines, re.MULTILINE))
    if "Parts" in sections:
        sections["Parts"] = re.sub(r"^\w+: .+\n?", "", lines, flags=re.MULTILINE).strip()
    attributes = {attribute: getattr(classes[name], attribute) for attribute in ATTRIBUTES}
    summary = (ast.get_docstring(module) or "").partition("\n")[0]
    return MetricCard(path.stem, summary, definition.strip(), sections, parts, attributes)


def _attributes(node: ast.ClassDef, bases: list[type], constants: dict[str, Any]) -> dict[str, Any]:
    """Evaluate the attributes that a class states; its needs are added to those of its bases."""
    found: dict[str, Any] = {}
    for line in node.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
        if isinstance(target, ast.Name) and target.id in ATTRIBUTES:
            found[target.id] = eval(compile(ast.Expression(line.value), "metric", "eval"), constants)
    found["needs"] = frozenset(found.get("needs", ())).union(*(base.needs for base in bases))
    return found


def page_of(card: MetricCard) -> str:
    """Write the page of one metric in Markdown."""
    values = card.attributes
    unit = "" if isinstance(values["unit"], dict) else values["unit"]
    facts = {
        "Unit": unit or "see the parts",
        "Sites": _code(values["sites"]) or ("none" if not values["expensive_sites"] else "none by default: opt-in"),
        "Expensive sites": _code(values["expensive_sites"]),
        "Cost": values["cost"],
        "Needs": _code(sorted(values["needs"])),
        "Source": f"`tokenlens/metrics/{card.name}.py`",
    }
    page = [f"# {card.name}", card.definition]
    page.append("| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value))
    for title, text in card.sections.items():
        page += [f"## {title}", text[:1].upper() + text[1:].replace("\n", " ")]
        if title == "Parts":
            page.append("| part | unit | definition |\n|---|---|---|\n" + "\n".join(_part_rows(card)))
    return "\n\n".join(filter(None, page)).replace("``", "`") + "\n"


def _part_rows(card: MetricCard) -> list[str]:
    units = card.attributes["unit"]
    rows = []
    for part, text in card.parts.items():
        unit = next((units[name] for name in units if name.endswith(part)), "") if isinstance(units, dict) else units
        rows.append("| " + " | ".join(item.replace("|", "\\|") for item in (f"`{part}`", unit, text)) + " |")
    return rows


def index_of(cards: list[MetricCard]) -> str:
    """Write the page that lists all metrics."""
    rows = [f"| [`{card.name}`]({card.name}.md) | {card.summary} |" for card in cards]
    start = "# Metrics\n\nHow to read values and intervals: [The numbers](../the-numbers.md).\n\n"
    return start + "| metric | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _code(words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the site."""
    cards = read_cards()
    for name, text in {"index": index_of(cards), **{card.name: page_of(card) for card in cards}}.items():
        files.append(File.generated(config, f"metrics/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Link the metrics that the-numbers.md names."""
    if page.file.src_uri != "the-numbers.md":
        return markdown
    names = "|".join(card.name for card in read_cards())
    return re.sub(rf"(?<![\[/])`({names})`", r"[`\1`](metrics/\1.md)", markdown)
