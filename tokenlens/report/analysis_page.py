"""The content of an analysis' page."""

from __future__ import annotations

import shlex
from html import escape
from itertools import pairwise
from typing import Any

import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.findings import judge
from tokenlens.analysis.overview import overview
from tokenlens.figures.base import group_title, model_title
from tokenlens.report.analysis_summary import summary_table
from tokenlens.report.cosine_strip import cosine_strip
from tokenlens.report.counterparts import counterparts
from tokenlens.report.downloads import download
from tokenlens.report.headline import headline
from tokenlens.report.number_format import with_decimals
from tokenlens.report.photograph_maps import photograph_maps
from tokenlens.report.specialized_weights import specialized_sentences, specialized_table
from tokenlens.report.stage_shares import stage_shares
from tokenlens.report.tables import Table, TableEntry, table_of, text_column
from tokenlens.storage.wording import counted

FIGURE_OF = {
    **dict.fromkeys(("F1(a)", "F1(b)", "F1(c)"), "depth_profile"),
    **dict.fromkeys(("F2(a)", "F2(b)"), "channel_selectivity"),
}
"""The figure that shows the numbers of each finding."""


def content(analysis: Analysis) -> dict[str, Any]:
    """Return the variables of ``templates/analysis.html``, except those that ``write_report`` adds."""
    images = analysis.provenance.get("images", {})
    findings, title = judge(analysis), model_title(analysis)
    strip = cosine_strip({title: analysis})
    return {
        "title": title,
        "headline": headline(analysis, findings[0]),
        "strip": strip,
        "strip_numbers": None if strip is None else download(strip.numbers, "cosine_maps", analysis.model),
        "stages": stage_shares(analysis),
        "maps": photograph_maps(analysis),
        "map_names": [] if strip is None else [photograph.name for photograph in strip.photographs],
        "map_commands": _map_commands(analysis),
        "untrained": analysis.untrained,
        "mark": " (untrained)" if analysis.untrained else "",
        "facts": _facts(analysis),
        "notes": [*images.get("notes", ()), *analysis.provenance.get("notes", ())],
        "groups": [(group, group_title(group)) for group in analysis.layout.groups],
        "findings": findings,
        "figure_of": FIGURE_OF,
        "counterparts": counterparts(analysis),
        "overview": _overview(analysis),
        "specialized_sentences": specialized_sentences(analysis),
        "specialized_table": specialized_table(analysis),
        "summary": summary_table(analysis.table, analysis.model),
        "table": download(analysis.table, "table", analysis.model),
        "metrics": analysis.metrics,
        "not_applicable": list(analysis.not_applicable.items()),
        "no_interval": list(analysis.no_interval.items()),
        "skipped": [(image["name"], image["reason"]) for image in images.get("skipped", [])],
    }


def _map_commands(analysis: Analysis) -> list[tuple[str, str]]:
    """Return commands that draw further maps of images with this model: of its last block, and its middle patch."""
    words = shlex.split(analysis.provenance.get("command", ""))
    options = ["--no-pretrained"] if "--no-pretrained" in words else []
    for word, value in pairwise(words):
        options += [word, value] if word in ("--checkpoint", "--img-size", "--seed") else []
    rows, columns = analysis.layout.grid
    show = shlex.join(["tokenlens", "show", analysis.model, *options, "--images", "FILE"])
    return [
        ("Principal components of each image through the blocks", f"{show} --map pca"),
        ("Attention of [CLS] in all heads of a block", f"{show} --map attention --block {analysis.blocks - 1}"),
        ("Norms in the residual stream, with high-norm patches outlined", f"{show} --map norm"),
        (
            "The patches of other images that are nearest to one",
            f"{show} FILE --map correspondence --token {rows // 2},{columns // 2}",
        ),
    ]


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    provenance = analysis.provenance
    size = provenance.get("image_size") or []
    facts = {
        "Images": provenance.get("images", {}).get("count"),
        "Image size": " × ".join(map(str, size)) if size else None,
        "Blocks": analysis.blocks,
        "Heads": analysis.heads or None,
        "Patches": "{} × {}".format(*analysis.layout.grid),
        "Prefix tokens": analysis.layout.prefix_text or "none",
        "Attention bias": "a learned key and value per block" if analysis.layout.attention_bias else None,
        "Family": provenance.get("family"),
        "Weights": "; ".join(provenance.get("weights", {}).get("steps", ())),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _overview(analysis: Analysis) -> Table | None:
    """Return the numbers of the whole model; None if there are none."""
    frame = overview(analysis)

    def bounds(row: Any) -> TableEntry:
        if pd.isna(row.ci_low) or pd.isna(row.ci_high):
            return TableEntry("–")
        return TableEntry(f"{with_decimals(row.ci_low)} to {with_decimals(row.ci_high)}")

    def where(row: Any) -> TableEntry:
        indices = [f"{kind} {getattr(row, kind)}" for kind in ("block", "head") if not pd.isna(getattr(row, kind))]
        return TableEntry(", ".join(indices))

    columns = {
        "quantity": text_column("quantity"),
        "value": lambda row: TableEntry(with_decimals(row.value)),
        "95 % interval": bounds,
        "unit": text_column("unit"),
        "where": where,
        "n": lambda row: TableEntry(str(row.n)),
    }
    numeric = ("value", "95 % interval", "n")
    return None if frame.empty else table_of(frame, "overview", analysis.model, columns, numeric)


def summary(analysis: Analysis) -> str:
    """Return a short summary as HTML: the model, the images and the findings."""
    untrained = " <strong>untrained (random weights)</strong>" if analysis.untrained else ""
    source = analysis.provenance.get("images", {})
    names = ", ".join(dict.fromkeys(analysis.table["metric"]))
    findings = "".join(
        f"<li><strong>{finding.name} {finding.verdict}</strong>: {escape(finding.sentence)}</li>"
        for finding in judge(analysis)
    )
    return (
        f"<div><strong>{escape(str(analysis.model))}</strong>{untrained}<br>"
        f"{counted(source.get('count', 0), 'image')} from {escape(str(source.get('source', '')))}, "
        f"{counted(analysis.blocks, 'block')}, {counted(len(analysis.table), 'number')}: "
        f"{escape(names)}<ul>{findings}</ul></div>"
    )
