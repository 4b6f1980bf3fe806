"""``write_report``: draws every figure that the numbers allow and writes the page."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from tokenlens.figures import FAINT, GRID, INK, PAPER, STAGE_COLOURS, NothingToDraw, draw, figures, save_figure
from tokenlens.figures._rows import GROUPS
from tokenlens.findings import judge
from tokenlens.headlines import headlines
from tokenlens.metrics import metrics

if TYPE_CHECKING:
    from tokenlens.analysis import Analysis

PAGE = "report.html"
COLUMNS = ("metric", "part", "block", "site", "group", "head", "value", "sd", "n", "ci_low", "ci_high", "unit")
NUMBERS = ("block", "head", "value", "sd", "n", "ci_low", "ci_high")

_PAGE_COLOURS = {
    INK: "var(--ink)", FAINT: "var(--faint)", PAPER: "var(--paper)", GRID: "var(--rule)",
    STAGE_COLOURS["gamma"]: "var(--gamma)",
}


def write_report(analysis: Analysis, folder: str | os.PathLike[str]) -> Path:
    """Write ``figures/*.svg``, ``figures/*.png`` and ``report.html`` into a folder.

    The page is one file: it opens from disk, makes no network request (its Content-Security-Policy forbids them) and
    holds every row of the table. Figures that the analysis has no numbers for are listed with the reason.

    Args:
        analysis: what to report.
        folder: an existing or new folder; files of the same names in it are replaced.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    drawn, left_out = _draw_all(analysis, folder / "figures")
    definitions = _definitions(analysis.table["metric"])
    environment = Environment(loader=PackageLoader("tokenlens.report", "."), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True)
    script, styles = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("template.html").render(
        model=analysis.model,
        untrained=analysis.untrained,
        facts=_facts(analysis),
        groups=[(group, GROUPS[group]) for group in GROUPS if group in (*analysis.layout.prefix, "patch")],
        findings=judge(analysis),
        headlines=_headlines(analysis),
        note=analysis.provenance.get("images", {}).get("note", ""),
        figures=drawn,
        left_out=left_out,
        summary=_summary(analysis.table),
        table_size=len(analysis.table),
        table=_compact_table(analysis.table),
        not_applicable=analysis.not_applicable,
        skipped=analysis.provenance.get("images", {}).get("skipped", []),
        provenance=_provenance(analysis.provenance),
        commands=_commands(analysis.provenance),
        definitions=definitions,
        defined={definition["name"] for definition in definitions},
        script=Markup(script),
        styles=Markup(styles),
        script_hash=digest,
    )
    path = folder / PAGE
    half_written = path.with_name(f".{PAGE}.{os.getpid()}")
    try:
        half_written.write_text(page, encoding="utf-8")
        half_written.replace(path)
    finally:
        half_written.unlink(missing_ok=True)
    return path


def _headlines(analysis: Analysis) -> list[dict[str, str]]:
    """The numbers of the whole model, written out."""

    def written(value: float) -> str:
        return f"{value:.3f}".replace("-0.000", "0.000").replace("-", "−")

    lines = []
    for row in headlines(analysis).itertuples(index=False):
        where = "" if pd.isna(row.block) else f"block {row.block}"
        where += "" if pd.isna(row.head) else f", head {row.head}"
        bounded = not (pd.isna(row.ci_low) or pd.isna(row.ci_high))
        interval = f"{written(row.ci_low)} to {written(row.ci_high)}" if bounded else "–"
        line = {"quantity": row.quantity, "value": written(row.value), "interval": interval, "n": str(row.n)}
        lines.append({**line, "unit": row.unit, "where": where})
    return lines


def _draw_all(analysis: Analysis, folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Draw and save every figure of the catalogue, in order; what cannot be drawn comes back with the reason."""
    drawn, left_out = [], []
    modules = {name: figures.module(name) for name in figures.names()}
    for name in sorted(modules, key=lambda name: (modules[name].ORDER, name)):
        module = modules[name]
        try:
            figure = draw(analysis, name)
        except NothingToDraw as reason:
            left_out.append({"name": name, "title": module.TITLE, "reason": str(reason)})
            continue
        svg, _ = save_figure(figure, folder, name)
        text = {"name": name, "title": module.TITLE, "caption": module.CAPTION, "metrics": module.METRICS}
        drawn.append({**text, "svg": _inline(svg.read_text(encoding="utf-8"))})
    return drawn, left_out


def _inline(svg: str) -> Markup:
    """An SVG of ours as part of the page: no header, as wide as its place, in the page's colours."""
    svg = svg[svg.index("<svg"):]
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height|xmlns|xmlns:xlink|version)="[^"]*"', "", head)
    for colour, variable in _PAGE_COLOURS.items():
        rest = re.sub(rf'(style="[^"]*){colour.lower()}', rf"\g<1>{variable}", rest)
        rest = re.sub(rf'(style="[^"]*){colour.lower()}', rf"\g<1>{variable}", rest)  # fill and stroke
    return Markup(f'{head} aria-hidden="true" focusable="false">{rest}')


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    provenance = analysis.provenance
    size = provenance.get("image_size") or []
    facts = {
        "Images": provenance.get("images", {}).get("count"),
        "Image size": " × ".join(map(str, size)) if size else None,
        "Blocks": analysis.blocks,
        "Heads": analysis.heads or None,
        "Patches": "{} × {}".format(*analysis.layout.grid),
        "Prefix tokens": ", ".join(analysis.layout.prefix) or "none",
        "Family": provenance.get("family"),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _summary(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One row for each metric, part, site and group: its mean over blocks and heads, and where it is extreme."""
    rows = []
    for keys, inside in table.groupby(["metric", "part", "site", "group"], sort=False):
        values = inside["value"].astype(float)
        row = dict(zip(("metric", "part", "site", "group"), keys, strict=True))
        row |= {"n": int(inside["n"].max()), "unit": inside["unit"].iloc[0]}
        for name, value in (("mean", values.mean()), ("lowest", values.min()), ("highest", values.max())):
            row[name] = None if math.isnan(value) else f"{value:.4g}".replace("-", "−")
            row[f"{name}_value"] = None if math.isnan(value) else float(f"{value:.6g}")
        if values.notna().any() and len(inside) > 1:
            row["lowest_at"], row["highest_at"] = (_where(inside.loc[i]) for i in (values.idxmin(), values.idxmax()))
        rows.append(row)
    return rows


def _where(row: Any) -> str:
    block = "" if pd.isna(row["block"]) else f"b{int(row['block'])}"
    head = "" if pd.isna(row["head"]) else f"h{int(row['head'])}"
    return " ".join(filter(None, [block, head]))


def _compact_table(table: pd.DataFrame) -> dict[str, Any]:
    """All rows, with every text said once: ``strings`` and, in the rows, positions in it; numbers to five digits."""
    strings = list(dict.fromkeys(text for name in COLUMNS if name not in NUMBERS for text in table[name].unique()))
    position = {text: i for i, text in enumerate(strings)}
    columns = []
    for name in COLUMNS:
        if name in NUMBERS:
            columns.append([None if pd.isna(x) else _short(float(x)) for x in table[name]])
        else:
            columns.append([position[text] for text in table[name]])
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {"columns": COLUMNS, "numbers": NUMBERS, "strings": strings, "rows": rows}


def _short(value: float) -> float | int:
    if value.is_integer() and abs(value) < 1e9:
        return int(value)
    return float(f"{value:.5g}")


def _provenance(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the numbers come from, in plain rows; the images' names and hashes stay in analysis.json."""
    rows = []
    for name, value in provenance.items():
        if name in ("command", "model"):
            continue
        if name == "images":
            value = {key: x for key, x in value.items() if not isinstance(x, list)}
        if isinstance(value, Mapping):
            rows += [(f"{name}: {key}", _plain(x)) for key, x in value.items()]
        else:
            rows.append((name, _plain(value)))
    return rows


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _commands(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How to make the run and this page again."""
    command = str(provenance.get("command", ""))
    again = "tokenlens report RUN"
    if not command.startswith("tokenlens "):
        again = "tokenlens.report.write_report(tokenlens.Analysis.load(RUN), RUN)"
    commands = [("The numbers", command), ("Figures and page, from the saved numbers", again)]
    return [(name, text) for name, text in commands if text]


def _definitions(names: Iterable[str]) -> list[dict[str, str]]:
    """What each metric says of itself."""
    known = set(metrics.names())
    definitions = []
    for name in dict.fromkeys(names):
        if name not in known:
            continue
        metric = metrics.get(name)
        function = getattr(metrics.module(name), name, None)
        texts = [metrics.describe(name), _first_paragraph(function), _first_paragraph(metric)]
        definitions.append({"name": name, "title": metric.title, "text": " ".join(filter(None, texts))})
    return definitions


def _first_paragraph(thing: Any) -> str:
    text = (getattr(thing, "__doc__", None) or "").strip().split("\n\n")[0]
    return re.sub(r"\s+", " ", text).replace("``", "")
