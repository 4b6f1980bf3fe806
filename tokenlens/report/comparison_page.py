"""The content of a comparison's page."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import PurePath
from typing import Any

import pandas as pd

from tokenlens.analysis.findings import Finding, judge
from tokenlens.analysis.rules import RULES, TITLES
from tokenlens.comparison.comparison import Comparison
from tokenlens.figures.base import quantity_title
from tokenlens.figures.style import model_colour
from tokenlens.report.comparison_headline import comparison_headline
from tokenlens.report.cosine_strip import cosine_strip
from tokenlens.report.downloads import download
from tokenlens.report.main_differences import DIFFERENCE, difference_texts, main_differences
from tokenlens.report.number_format import with_decimals
from tokenlens.report.page_figures import page_colour
from tokenlens.report.provenance import provenance_rows
from tokenlens.report.specialized_weights import specialized_sentences
from tokenlens.report.tables import Column, Table, TableEntry, number_column, table_of, text_column
from tokenlens.storage.wording import counted


def content(comparison: Comparison) -> dict[str, Any]:
    """Return the variables of ``templates/comparison.html``, except those that ``write_report`` adds."""
    others = comparison.others
    compared = others[0] if len(others) == 1 else counted(len(others), "model")
    title = f"{compared} against {comparison.baseline}"
    analyses = comparison.analyses
    sources = {label: analysis.provenance.get("images", {}) for label, analysis in analyses.items()}
    strip = cosine_strip(analyses)
    return {
        "title": title,
        "headline": comparison_headline(comparison),
        "strip": strip,
        "strip_numbers": None if strip is None else download(strip.numbers, "cosine_maps", title),
        "facts": _facts(comparison),
        "baseline": comparison.baseline,
        "untrained": [label for label, analysis in analyses.items() if analysis.untrained],
        "keys": [(label, page_colour(model_colour(number))) for number, label in enumerate(comparison.labels)],
        "notes": [
            *dict.fromkeys(note for source in sources.values() for note in source.get("notes", ())),
            *(f"{label}: {note}" for label, each in analyses.items() for note in each.provenance.get("notes", ())),
        ],
        "main_differences": main_differences(comparison),
        "largest": _largest,
        "headings": DIFFERENCE,
        "similarity_note": comparison.similarity_note,
        "models": _models(comparison, title),
        "findings": [(label, judge(analysis)) for label, analysis in analyses.items()],
        "finding_titles": TITLES,
        "finding_rules": RULES,
        "effect": _effect,
        "summary": _summary(comparison, title),
        "differences": download(comparison.differences, "differences", title),
        "similarity": download(comparison.similarity, "similarity", title) if len(comparison.similarity) else None,
        "table": download(comparison.table, "table", title),
        "metrics": list(dict.fromkeys(comparison.table["metric"])),
        "not_applicable": _merged({label: list(each.not_applicable.items()) for label, each in analyses.items()}),
        "skipped": _merged(
            {label: [(x["name"], x["reason"]) for x in source.get("skipped", [])] for label, source in sources.items()}
        ),
        "provenances": [
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


def _models(comparison: Comparison, title: str) -> Table:
    """Return a table with a row per model."""
    rows = [
        {
            "label": label,
            "role": "baseline" if label == comparison.baseline else "",
            "model": analysis.model,
            "specialized": "specialized" if specialized_sentences(analysis) else "",
            "untrained": analysis.untrained,
            "blocks": analysis.blocks,
            "heads": analysis.heads,
            "grid": "{} × {}".format(*analysis.layout.grid),
            "prefix": analysis.layout.prefix_text,
            "images": analysis.images,
            "image_size": "×".join(map(str, analysis.provenance.get("image_size") or [])),
            "weights": str(analysis.provenance.get("weights", {}).get("source", "")),
            "sha256": str(analysis.provenance.get("weights", {}).get("sha256") or ""),
        }
        for label, analysis in comparison.analyses.items()
    ]
    columns: dict[str, Column] = {
        "label": lambda row: TableEntry(row.label, row.role),
        "model": lambda row: TableEntry(row.model, row.specialized),
        "trained": lambda row: TableEntry("untrained" if row.untrained else "yes"),
        "blocks": number_column("blocks"),
        "heads": lambda row: TableEntry(str(row.heads or "")),
        "patches": text_column("grid"),
        "prefix tokens": lambda row: TableEntry(row.prefix or "none"),
        "images": lambda row: TableEntry(str(row.images), row.image_size),
        "weights": lambda row: TableEntry(
            PurePath(row.weights.split(", ")[0]).name, f"sha256 {row.sha256[:12]}…" if row.sha256 else ""
        ),
    }
    return table_of(pd.DataFrame(rows), "models", title, columns, ("blocks", "heads"))


def _summary(comparison: Comparison, title: str) -> Table:
    """Return a table of the differences in means over blocks."""
    single = len(comparison.others) == 1
    columns = {name: text_column(name) for name in ("label", "metric", "part", "site", "group")[single:]}
    shown = ("difference", "95 % interval", "d", "q", "value", "baseline")
    columns |= {heading: _difference_column(heading) for heading in shown}
    columns |= {"n": number_column("n", 9), "unit": text_column("unit")}
    return table_of(comparison.summary, "summary", title, columns, (*DIFFERENCE, "n"))


def _largest(rows: pd.DataFrame) -> list[list[str]]:
    """Return the largest differences as rows of text."""
    return [[quantity_title(row), *difference_texts(row).values()] for row in rows.itertuples(index=False)]


def _difference_column(heading: str) -> Column:
    sorts: dict[str, Callable[[Any], float]] = {
        "value": lambda row: row.value,
        "baseline": lambda row: row.baseline_value,
        "difference": lambda row: row.difference,
        "95 % interval": lambda row: row.ci_high - row.ci_low,
        "d": lambda row: row.effect,
        "q": lambda row: row.q,
    }

    def entry(row: Any) -> TableEntry:
        number = float(sorts[heading](row))
        return TableEntry(difference_texts(row)[heading], sorts="" if math.isnan(number) else float(f"{number:.6g}"))

    return entry


def _effect(finding: Finding) -> str:
    """Describe the effect of a finding with its interval in a few words."""
    if finding.effect is None:
        return ""
    what = {
        "F1(a)": "falls by",
        "F1(b)": "ends at",
        "F1(c)": "keeps",
        "F2(a)": "above rotations",
        "F2(b)": "share",
    }[finding.name]
    bounds = "" if finding.interval is None else " ({} to {})".format(*(with_decimals(x, 2) for x in finding.interval))
    return f"{what} {with_decimals(finding.effect, 2)}{bounds}, n = {finding.n}"


def _merged(reasons: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """Merge (name, reason) entries of all models; a reason that does not hold for all of them names its models."""
    labels_of: dict[tuple[str, str], list[str]] = {}
    for label, entries in reasons.items():
        for entry in entries:
            labels_of.setdefault(entry, []).append(label)
    return [
        (name, reason if len(labels) == len(reasons) else f"{reason} ({', '.join(labels)})")
        for (name, reason), labels in labels_of.items()
    ]


def summary(comparison: Comparison) -> str:
    """Return a short summary as HTML: the main differences of each model."""
    lines = []
    for found in main_differences(comparison):
        unpaired = "" if found.paired else "<strong>unpaired</strong>: "
        lines.append(
            f"<li><strong>{escape(found.label)}: {found.verdict}.</strong> {escape(' '.join(found.sentences))} "
            f"<em>{unpaired}{escape(found.reason)}.</em></li>"
        )
    return f"<div>Against <strong>{escape(comparison.baseline)}</strong>:<ul>{''.join(lines)}</ul></div>"
