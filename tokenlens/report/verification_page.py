"""The content of a verification's page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import Any

import pandas as pd

from tokenlens.analysis.findings import Finding
from tokenlens.figures.style import sort_variants, variant_look
from tokenlens.report.downloads import download
from tokenlens.report.number_format import with_decimals
from tokenlens.report.page_figures import page_colour
from tokenlens.report.provenance import commands, provenance_rows
from tokenlens.report.tables import Column, Table, TableEntry, interval_column, number_column, table_of, text_column
from tokenlens.storage.wording import counted
from tokenlens.verification.result import Verification
from tokenlens.verification.stage_effects import ALL, THIRDS

_UNITS = {
    **{"F1(a)": "cosine", "F1(b)": "cosine", "F1(c)": "of it", "F2(a)": "total variation", "F2(b)": "of the fall"},
    **{"F3": "points", "F4": "%", "F5": "points", "F6": "points"},
}
_DECIMALS = {"F3": 1, "F4": 2, "F5": 1, "F6": 1}


def content(verification: Verification) -> dict[str, Any]:
    """Return the variables of ``templates/verification.html``, except those that ``write_report`` adds."""
    numbers, plan = verification.numbers, verification.plan
    name = verification.settings.get("name", "")
    title = f"The paper's findings, checked ({name})" if name else "The paper's findings, checked on given runs"
    variants = sort_variants(numbers["variant"])
    settings = list(dict.fromkeys(numbers["setting"]))
    left = plan[plan["state"] != "done"]
    return {
        "title": title,
        "facts": _facts(verification, variants),
        "notes": settings if len(settings) > 1 else [],
        "unfinished": None
        if left.empty
        else {
            "text": f"{len(left)} of {counted(len(plan), 'task')} are not done; run the same command again to resume",
            "minutes": round(float(left["minutes"].sum())),
        },
        "left_out_runs": verification.left_out,
        "findings": verification.findings,
        "rows": [_row(finding) for finding in verification.findings],
        "keys": [(variant, page_colour(variant_look(variant)["color"])) for variant in variants],
        "effects": _effects(verification.effects, title),
        "models": _models(verification, title),
        "stage_sentences": verification.stage_sentences,
        "stages": _stages(verification.stages, title),
        "stages_by_seed": download(verification.stages_by_seed, "stages_by_seed", title),
        "start": str((verification.settings.get("start") or {}).get("given", "")),
        "continued": _continued(verification.continued, title),
        "costs": _costs(verification.costs, title),
        "numbers": download(numbers, "numbers", title),
        "differences": download(verification.differences, "differences", title),
        "curves": download(verification.curves, "curves", title),
        "plan": download(plan.drop(columns="command"), "plan", title) if len(plan) else None,
        "commands": _commands(verification),
        "provenance": _provenance(verification.settings),
        "recipe": _recipe(verification.settings),
        "probes": _probes(verification.settings),
    }


def _facts(verification: Verification, variants: list[str]) -> list[tuple[str, str]]:
    numbers = verification.numbers
    seeds = numbers.groupby("variant")["seed"].nunique()
    count = [int(seeds[variant]) for variant in variants]
    probes = numbers[numbers["measure"] != "loss"].groupby(["task", "source", "resolution"])
    return [
        ("Trained models", str(sum(count))),
        ("Variants", ", ".join(variants) or "none"),
        ("Seeds of each", "–".join(map(str, dict.fromkeys([min(count), max(count)]))) if count else "none"),
        ("Probes of each", str(probes.ngroups)),
        ("Settings", str(numbers["setting"].nunique())),
    ]


def _row(finding: Finding) -> dict[str, Any]:
    """Return a row of the table of verdicts."""
    decimals, unit = _DECIMALS.get(finding.name, 2), _UNITS[finding.name]

    def number(value: float | None) -> str:
        if value is None or math.isnan(value):
            return ""
        text = with_decimals(value, decimals)
        gains = finding.name in ("F3", "F5", "F6") and value > 0 and float(text) != 0
        return f"+{text}" if gains else text

    bounds = "" if finding.interval is None else f"{number(finding.interval[0])} to {number(finding.interval[1])}"
    return {
        "finding": finding,
        "effect": f"{number(finding.effect)} {unit}" if number(finding.effect) else "",
        "interval": bounds,
        "seeds": "" if finding.seeds is None else str(finding.seeds),
        "detectable": f"{with_decimals(finding.detectable, decimals)} {unit}" if finding.detectable is not None else "",
    }


def _effects(effects: pd.DataFrame, title: str) -> Table:
    """Return a table of the differences over seeds."""
    columns: dict[str, Column] = {
        "variant": lambda row: TableEntry(row.variant, f"against {row.against}"),
        "measure": text_column("measure"),
        "of": text_column("cell"),
        "difference": number_column("difference", 3),
        "95 % interval": interval_column(),
        "sd over seeds": number_column("sd", 2),
        "q": number_column("q", 2),
        "seeds": number_column("seeds"),
        "smallest detectable": number_column("detectable", 2),
    }
    numeric = ("difference", "95 % interval", "sd over seeds", "q", "seeds", "smallest detectable")
    return table_of(effects, "effects", title, columns, numeric)


def _models(verification: Verification, title: str) -> Table:
    """Return a table with mean and spread of each number over the models of a variant."""
    keys = ["setting", "variant", "task", "source", "resolution", "measure"]
    of_seeds = verification.numbers.groupby(keys, sort=False)["value"].agg(["mean", "std", "min", "max", "count"])
    columns: dict[str, Column] = {
        "variant": text_column("variant"),
        "measure": text_column("measure"),
        "of": _probe_entry,
        "mean": number_column("mean"),
        "sd over seeds": number_column("std", 2),
        "lowest": number_column("min"),
        "highest": number_column("max"),
        "models": number_column("count"),
    }
    numeric = ("mean", "sd over seeds", "lowest", "highest", "models")
    return table_of(of_seeds.reset_index(), "measured", title, columns, numeric)


def _probe_entry(row: Any) -> TableEntry:
    return TableEntry(f"{row.task} {row.source} {row.resolution} px")


def _stages(stages: pd.DataFrame, title: str) -> Table | None:
    """Return a table of the norms' stages; its download has a row per block, too."""
    if stages.empty:
        return None
    columns: dict[str, Column] = {
        "variant": lambda row: TableEntry(row.variant, f"against {row.against}" if row.against else ""),
        "norm": text_column("norm"),
        "blocks": text_column("blocks"),
        "part": text_column("part"),
        "value": number_column("value", 3),
        "95 % interval": interval_column(),
        "sd over seeds": number_column("sd", 2),
        "q": number_column("q", 2),
        "seeds": number_column("seeds"),
    }
    numeric = ("value", "95 % interval", "sd over seeds", "q", "seeds")
    table = table_of(stages[stages["blocks"].isin([ALL, *THIRDS])], "stages", title, columns, numeric)
    return replace(table, data=download(stages, "stages", title))


def _continued(continued: pd.DataFrame, title: str) -> Table | None:
    """Return a table of the starting weights' numbers and their change by further training."""
    if continued.empty:
        return None
    columns: dict[str, Column] = {
        "variant": text_column("variant"),
        "measure": text_column("measure"),
        "of": _probe_entry,
        "start": number_column("start", 3),
        "over images": interval_column("start_low", "start_high"),
        "mean after": number_column("mean", 3),
        "difference": number_column("difference", 2),
        "95 % interval": interval_column(),
        "seeds": number_column("seeds"),
    }
    numeric = ("start", "over images", "mean after", "difference", "95 % interval", "seeds")
    return table_of(continued, "continued", title, columns, numeric)


def _costs(costs: pd.DataFrame, title: str) -> Table:
    """Return a table of the parameters and FLOPs that specialization adds."""
    frame = costs.copy()
    frame["more_parameters"] = 100 * frame["added_parameters"] / frame["parameters"]
    frame["more_flops"] = 100 * frame["added_flops"] / frame["flops"]
    columns: dict[str, Column] = {
        "model": text_column("model"),
        "specialization": text_column("preset"),
        "parameters added": number_column("added_parameters", 9),
        "increase, %": number_column("more_parameters", 3),
        "FLOPs, %": number_column("more_flops", 2),
    }
    return table_of(frame, "costs", title, columns, ("parameters added", "increase, %", "FLOPs, %"))


def _commands(verification: Verification) -> list[tuple[str, str]]:
    found = commands(verification.settings.get("command", ""))
    if "given" in verification.settings:
        return found
    again = f"tokenlens verify --from {verification.path.name} --out ANOTHER"
    return [*found, ("Verdicts, from these run folders", again)]


def _provenance(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    named = ["name", "start", "seeds", "variants", "data", "train_images", "masks", "analyzed", "given"]
    named += ["versions", "commit", "started", "ended"]
    return provenance_rows({name: settings[name] for name in named if settings.get(name)})


def _recipe(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    recipe = settings.get("scale", {}).get("recipe", {})
    return provenance_rows({name: value for name, value in recipe.items() if name not in ("seed", "specialization")})


def _probes(settings: Mapping[str, Any]) -> list[str]:
    texts = []
    for probe in settings.get("scale", {}).get("probes", []):
        limit = f", at most {probe['limit']:,} images of each split" if probe["limit"] else ""
        source = f" on {probe['source']}" if probe["source"] else ""
        draw = f", draw {probe['draw']}" if probe.get("draw") else ""
        texts.append(f"{probe['task']}{source} at {probe['image_size']} px{limit}{draw}")
    return texts


def summary(verification: Verification) -> str:
    """Return a short summary as HTML: the verdicts."""
    findings = "".join(
        f"<li><strong>{finding.name} {finding.verdict}</strong> ({escape(finding.subject)}): "
        f"{escape(finding.sentence)}</li>"
        for finding in verification.findings
    )
    return f"<div>The findings of the paper, checked in {escape(str(verification.path))}:<ul>{findings}</ul></div>"
