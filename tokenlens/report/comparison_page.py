"""What stands in the page of several models."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.analysis.findings import RULES, TITLES, Finding, judge
from tokenlens.figures._models import colour_of
from tokenlens.figures._rows import quantity_title
from tokenlens.report.downloads import download
from tokenlens.report.drawings import page_colour
from tokenlens.report.leads import DIFFERENCE, difference_cells, leads
from tokenlens.report.numerals import counted, fixed
from tokenlens.report.origin import commands, provenance_rows
from tokenlens.report.tables import Cell, Table, Written, number_of, table_of, text_of
from tokenlens.report.two_sets import two_sets

if TYPE_CHECKING:
    from tokenlens.comparison.comparison import Comparison


def content(comparison: Comparison) -> dict[str, Any]:
    """All that ``templates/comparison.html`` writes, but the figures."""
    others = comparison.others
    compared = others[0] if len(others) == 1 else counted(len(others), "model")
    title = f"{compared} against {comparison.baseline}"
    analyses = comparison.analyses
    sources = {label: analysis.provenance.get("images", {}) for label, analysis in analyses.items()}
    return {
        "title": title,
        "mark": "",
        "facts": _facts(comparison),
        "baseline": comparison.baseline,
        "untrained": [label for label, analysis in analyses.items() if analysis.untrained],
        "keys": [(label, page_colour(colour_of(number))) for number, label in enumerate(comparison.labels)],
        "notes": list(dict.fromkeys(source["note"] for source in sources.values() if source.get("note"))),
        "leads": leads(comparison),
        "largest": _largest,
        "difference": DIFFERENCE,
        "similarity_note": comparison.similarity_note,
        "models": _models(comparison, title),
        "findings": [(label, judge(analysis)) for label, analysis in analyses.items()],
        "finding_titles": {name: TITLES[name] for name in ("F1", "F2")},
        "finding_rules": {name: RULES[name] for name in ("F1", "F2")},
        "effect": _effect,
        "summary": _summary(comparison, title),
        "differences": download(comparison.differences, "differences", title),
        "similarity": download(comparison.similarity, "similarity", title) if len(comparison.similarity) else None,
        "table": download(comparison.table, "table", title),
        "metrics": list(dict.fromkeys(comparison.table["metric"])),
        "not_applicable": _shared({label: list(each.not_applicable.items()) for label, each in analyses.items()}),
        "skipped": _shared(
            {label: [(x["name"], x["reason"]) for x in source.get("skipped", [])] for label, source in sources.items()}
        ),
        "provenance": provenance_rows(comparison.provenance),
        "commands": commands(comparison.provenance, "comparison"),
        "origins": [
            (label, each.provenance.get("command", ""), provenance_rows(each.provenance))
            for label, each in analyses.items()
        ],
    }


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    counts = sorted({analysis.images for analysis in comparison.analyses.values()})
    paired = {pairing.paired for pairing in comparison.pairing.values()}
    how = "partly paired" if len(paired) > 1 else "paired by image" if True in paired else "unpaired"
    return [
        ("Models", str(len(comparison.labels))),
        ("Baseline", comparison.baseline),
        ("Images of each", "–".join(map(str, dict.fromkeys([counts[0], counts[-1]])))),
        ("Compared", how),
    ]


def _models(comparison: Comparison, of: str) -> Table:
    """The models that are compared, a row each."""
    rows = []
    for label, analysis in comparison.analyses.items():
        provenance = analysis.provenance
        weights = provenance.get("weights", {})
        rows.append(
            {
                "label": label,
                "role": "baseline" if label == comparison.baseline else "",
                "model": analysis.model,
                "specialized": "specialized" if two_sets(analysis) else "",
                "untrained": analysis.untrained,
                "blocks": analysis.blocks,
                "heads": analysis.heads,
                "grid": "{} × {}".format(*analysis.layout.grid),
                "prefix": ", ".join(analysis.layout.prefix),
                "images": analysis.images,
                "image_size": "×".join(map(str, provenance.get("image_size") or [])),
                "weights": str(weights.get("source", "")),
                "sha256": str(weights.get("sha256") or ""),
            }
        )
    columns: dict[str, Written] = {
        "label": lambda row: Cell(row.label, row.role),
        "model": lambda row: Cell(row.model, row.specialized),
        "trained": lambda row: Cell("untrained" if row.untrained else "yes"),
        "blocks": number_of("blocks"),
        "heads": lambda row: Cell(str(row.heads or "")),
        "patches": text_of("grid"),
        "prefix tokens": lambda row: Cell(row.prefix or "none"),
        "images": lambda row: Cell(str(row.images), row.image_size),
        "weights": lambda row: Cell(
            PurePath(row.weights.split(", ")[0]).name, f"sha256 {row.sha256[:12]}…" if row.sha256 else ""
        ),
    }
    return table_of(pd.DataFrame(rows), "models", of, columns, ("blocks", "heads"))


def _summary(comparison: Comparison, of: str) -> Table:
    """Differences of means over blocks."""
    single = len(comparison.others) == 1
    columns = {name: text_of(name) for name in ("label", "metric", "part", "site", "group")[single:]}
    shown = ("difference", "95 % interval", "d", "q", "value", "baseline")
    columns |= {heading: _difference_cell(heading) for heading in shown}
    columns |= {"n": number_of("n", 9), "unit": text_of("unit")}
    return table_of(comparison.summary, "summary", of, columns, (*DIFFERENCE, "n"))


def _largest(rows: pd.DataFrame) -> list[list[str]]:
    """The largest differences of a lead, as the cells of its little table."""
    return [[quantity_title(row), *difference_cells(row).values()] for row in rows.itertuples(index=False)]


def _difference_cell(heading: str) -> Written:
    sorts: dict[str, Callable[[Any], float]] = {
        "value": lambda row: row.value,
        "baseline": lambda row: row.baseline_value,
        "difference": lambda row: row.difference,
        "95 % interval": lambda row: row.ci_high - row.ci_low,
        "d": lambda row: row.effect,
        "q": lambda row: row.q,
    }

    def written(row: Any) -> Cell:
        number = float(sorts[heading](row))
        return Cell(difference_cells(row)[heading], sorts="" if math.isnan(number) else float(f"{number:.6g}"))

    return written


def _effect(finding: Finding) -> str:
    """A finding's effect with its interval, in a few words."""
    if finding.effect is None:
        return ""
    what = {"F1": "falls by", "F2": "γ, β lower it by"}[finding.name]
    bounds = "" if finding.interval is None else " ({} to {})".format(*(fixed(x, 2) for x in finding.interval))
    return f"{what} {fixed(finding.effect, 2)}{bounds}, n = {finding.n}"


def _shared(told: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Things with reasons, each said once; the models that it holds for are named where not all are meant."""
    of: dict[tuple[str, str], list[str]] = {}
    for label, entries in told.items():
        for entry in entries:
            of.setdefault(entry, []).append(label)
    return [
        (name, reason if len(labels) == len(told) else f"{reason} ({', '.join(labels)})")
        for (name, reason), labels in of.items()
    ]


def summary(comparison: Comparison) -> str:
    """Return a few lines of HTML: what differs most for each model."""
    lines = []
    for lead in leads(comparison):
        unpaired = "" if lead.paired else "<strong>unpaired</strong>: "
        lines.append(
            f"<li><strong>{escape(lead.label)}: {lead.verdict}.</strong> {escape(' '.join(lead.sentences))} "
            f"<em>{unpaired}{escape(lead.reason)}.</em></li>"
        )
    return f"<div>Against <strong>{escape(comparison.baseline)}</strong>:<ul>{''.join(lines)}</ul></div>"
