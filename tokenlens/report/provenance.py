"""Describe the provenance of a result, the commands that reproduce it, and the metrics in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tokenlens.metrics import metrics
from tokenlens.report.number_format import typeset


def provenance_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return provenance as rows of text, without the names and hashes of images."""
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


def commands(command: str) -> list[tuple[str, str]]:
    """Return the commands that reproduce the numbers, and figures and page, each with its purpose."""
    lines = [("Numbers", command), ("Figures and page, from the saved numbers", "tokenlens report RUN")]
    return [(purpose, text) for purpose, text in lines if text]


def definitions(names: Iterable[str]) -> list[dict[str, str]]:
    """Return ``name``, ``title`` and ``text`` of each metric, from its docstrings."""
    known = set(metrics.names())
    found = []
    for name in dict.fromkeys(names):
        if name not in known:
            continue
        metric = metrics.get(name)
        function = getattr(metrics.module(name), name, None)
        texts = [metrics.describe(name), _first_paragraph(function), _first_paragraph(metric)]
        found.append({"name": name, "title": metric.title, "text": typeset(" ".join(filter(None, texts)))})
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _first_paragraph(thing: Any) -> str:
    text = (getattr(thing, "__doc__", None) or "").strip().split("\n\n")[0]
    return re.sub(r"\s+", " ", text).replace("``", "")
