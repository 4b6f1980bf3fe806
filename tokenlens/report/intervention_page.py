"""The content of an intervention's page."""

from __future__ import annotations

from html import escape
from typing import Any

from tokenlens.interventions import Intervention
from tokenlens.report.downloads import download
from tokenlens.report.provenance import provenance_rows
from tokenlens.report.replaced_strip import replaced_strip
from tokenlens.report.tables import Table, interval_column, number_column, table_of, text_column


def content(result: Intervention) -> dict[str, Any]:
    """Return the variables of ``templates/intervention.html``, except those that ``write_report`` adds."""
    title = f"Replacing tokens in {result.model}"
    images = result.provenance["images"]
    strip = replaced_strip(result)
    return {
        "title": title,
        "untrained": result.untrained,
        "mark": " (untrained)" if result.untrained else "",
        "sentences": result.sentences,
        "strip": strip,
        # The page's script looks up the cosine under the pointer in this table.
        "strip_numbers": None if strip is None else download(strip.numbers, "cosine_maps", title),
        "facts": _facts(result),
        "notes": [*images["notes"], *result.provenance.get("notes", ())],
        "unseen": sorted(result.provenance["unseen"].items()),
        "skipped": [(image["name"], image["reason"]) for image in images["skipped"]],
        "not_applicable": sorted(result.not_applicable.items()),
        "effects": _effects(result, title),
        "per_image": download(result.per_image.reset_index(), "per_image", title),
        "provenance": provenance_rows({k: v for k, v in result.provenance.items() if k != "images"}),
    }


def _facts(result: Intervention) -> list[tuple[str, str]]:
    provenance = result.provenance
    facts = {
        "Model": result.model,
        "Weights": provenance["weights"]["source"],
        "Images": f"{result.images} ({provenance['images']['source']})",
        "Replaced": ", ".join(provenance["replace"]),
        "By": ", ".join(provenance["by"]),
        "Sites": ", ".join(provenance["sites"]),
        "Blocks": ", ".join(map(str, provenance["blocks"])),
    }
    if "probe" in provenance:
        score = provenance["probe"]
        facts["Probe"] = f"{score['task']}, untouched {100 * score['value']:.1f} % {score['unit']} (n = {score['n']})"
    return [(name, str(value)) for name, value in facts.items()]


def _effects(result: Intervention, title: str) -> Table:
    names = ("replace", "by", "site", "block", "metric", "part", "group")
    columns = {name: text_column(name) for name in names} | {
        "value": number_column("value"),
        "95 % interval": interval_column(),
        "sd": number_column("sd"),
        "n": number_column("n", 9),
        "unit": text_column("unit"),
    }
    return table_of(result.table, "effects", title, columns, ("block", "value", "95 % interval", "sd", "n"))


def summary(result: Intervention) -> str:
    """Return a short summary as HTML."""
    untrained = " <strong>untrained (random weights)</strong>" if result.untrained else ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in result.sentences)
    return f"<div><strong>{escape(result.model)}</strong>{untrained}, {result.images} images<ul>{items}</ul></div>"
