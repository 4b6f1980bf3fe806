"""Where the numbers of a page come from, how to make them again, and what each of them means."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tokenlens.metrics.base import metrics
from tokenlens.report.numerals import typeset


def provenance_rows(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Provenance in plain rows, without names and hashes of images, which stay in the run folder."""
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


def commands(provenance: Mapping[str, Any], kind: str) -> list[tuple[str, str]]:
    """What to type to get a run of a kind ("analysis" or "comparison") and its page again, and what it makes."""
    command = str(provenance.get("command", ""))
    again = "tokenlens report RUN"
    if not command.startswith("tokenlens "):
        again = f"tokenlens.report.write_report(tokenlens.{kind.capitalize()}.load(RUN), RUN)"
    lines = [("The numbers", command), ("Figures and page, from the saved numbers", again)]
    return [(what, text) for what, text in lines if text]


def definitions(names: Iterable[str]) -> list[dict[str, str]]:
    """What each metric says of itself: ``name``, ``title`` and ``text``."""
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
