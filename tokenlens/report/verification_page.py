"""The page of a verification: the findings with their verdicts first, then what they are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.analysis.findings import Finding
from tokenlens.figures._variants import variant_look, variants_in_order
from tokenlens.report.downloads import download
from tokenlens.report.drawings import page_colour
from tokenlens.report.numerals import counted, fixed
from tokenlens.report.origin import commands, provenance_rows
from tokenlens.report.tables import Cell, Table, Written, number_of, table_of, text_of
from tokenlens.verification.stage_effects import ALL, THIRDS

if TYPE_CHECKING:
    from tokenlens.verification.verify import Verification

_UNITS = {"F1": "cosine", "F2": "cosine", "F3": "points", "F4": "%", "F5": "points", "F6": "points"}
_DECIMALS = {"F1": 2, "F2": 2, "F3": 1, "F4": 2, "F5": 1, "F6": 1}


def content(verification: Verification) -> dict[str, Any]:
    """All that ``templates/verify.html`` writes, but the figures."""
    numbers, plan = verification.numbers, verification.plan
    name = verification.settings.get("name", "")
    title = f"The paper's findings, checked ({name})" if name else "The paper's findings, checked on given runs"
    variants = variants_in_order(numbers["variant"])
    settings = list(dict.fromkeys(numbers["setting"]))
    left = plan[plan["state"] != "done"]
    return {
        "title": title,
        "mark": "",
        "facts": _facts(verification, variants),
        "notes": settings if len(settings) > 1 else [],
        "skipped": [],
        "not_applicable": [],
        "unfinished": None
        if left.empty
        else {
            "text": f"{len(left)} of {counted(len(plan), 'task')} are not done; the same command goes on",
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
        "start": _start(verification),
        "continued": _continued(verification.continued, title),
        "costs": _costs(verification.costs, title),
        "numbers": download(numbers, "numbers", title),
        "differences": download(verification.differences, "differences", title),
        "curves": download(verification.curves, "curves", title),
        "plan": download(plan.drop(columns="command"), "plan", title) if len(plan) else None,
        "metrics": [],
        "commands": _commands(verification),
        "provenance": _provenance(verification.settings),
        "recipe": _recipe(verification.settings),
        "probes": _probes(verification.settings),
    }


def _facts(verification: Verification, variants: list[str]) -> list[tuple[str, str]]:
    numbers = verification.numbers
    seeds = numbers.groupby("variant")["seed"].nunique()
    count = [int(seeds[variant]) for variant in variants]
    facts = [
        ("Trained models", str(sum(count))),
        ("Variants", ", ".join(variants) or "none"),
        ("Seeds of each", "–".join(map(str, dict.fromkeys([min(count), max(count)]))) if count else "none"),
        (
            "Probes of each",
            str(numbers[numbers["measure"] != "loss"].groupby(["task", "source", "resolution"]).ngroups),
        ),
    ]
    return [*facts, ("Settings", str(numbers["setting"].nunique()))]


def _row(finding: Finding) -> dict[str, Any]:
    """A line of the first table."""
    decimals, unit = _DECIMALS[finding.name], _UNITS[finding.name]

    def number(value: float | None) -> str:
        if value is None or math.isnan(value):
            return ""
        text = fixed(value, decimals)
        gains = finding.name in ("F3", "F5", "F6") and value > 0 and float(text) != 0
        return f"+{text}" if gains else text

    bounds = "" if finding.interval is None else f"{number(finding.interval[0])} to {number(finding.interval[1])}"
    return {
        "finding": finding,
        "effect": f"{number(finding.effect)} {unit}" if number(finding.effect) else "",
        "interval": bounds,
        "seeds": "" if finding.seeds is None else str(finding.seeds),
        "detectable": f"{fixed(finding.detectable, decimals)} {unit}" if finding.detectable is not None else "",
    }


def _effects(effects: pd.DataFrame, of: str) -> Table:
    """Differences over seeds, as they stand in the page."""
    interval = interval_of("ci_low", "ci_high")
    columns: dict[str, Written] = {
        "variant": lambda row: Cell(row.variant, f"against {row.against}"),
        "measure": text_of("measure"),
        "of": text_of("cell"),
        "difference": number_of("difference", 3),
        "95 % interval": interval,
        "sd over seeds": number_of("sd", 2),
        "q": number_of("q", 2),
        "seeds": number_of("seeds"),
        "smallest detectable": number_of("detectable", 2),
    }
    if effects["setting"].nunique() > 1:
        columns = {"setting": text_of("setting"), **columns}
    numeric = ("difference", "95 % interval", "sd over seeds", "q", "seeds", "smallest detectable")
    return table_of(effects, "effects", of, columns, numeric)


def interval_of(low: str, high: str) -> Written:
    """A column of two bounds."""

    def written(row: Any) -> Cell:
        bounds = [number_of(name, 3)(row) for name in (low, high)]
        return Cell(" to ".join(one.text for one in bounds) if bounds[0].text else "", sorts=bounds[0].sorts)

    return written


def _models(verification: Verification, of: str) -> Table:
    """Mean and spread of every number of each variant over its models."""
    keys = ["setting", "variant", "task", "source", "resolution", "measure"]
    of_seeds = verification.numbers.groupby(keys, sort=False)["value"].agg(["mean", "std", "min", "max", "count"])
    columns: dict[str, Written] = {
        "variant": text_of("variant"),
        "measure": text_of("measure"),
        "of": lambda row: Cell(f"{row.task} {row.source} {row.resolution} px"),
        "mean": number_of("mean"),
        "sd over seeds": number_of("std", 2),
        "lowest": number_of("min"),
        "highest": number_of("max"),
        "models": number_of("count"),
    }
    frame = of_seeds.reset_index()
    if frame["setting"].nunique() > 1:
        columns = {"setting": text_of("setting"), **columns}
    return table_of(frame, "measured", of, columns, ("mean", "sd over seeds", "lowest", "highest", "models"))


def _stages(stages: pd.DataFrame, of: str) -> Table | None:
    """What each stage of the norms adds to the fall of the CLS–patch cosine; its download has the blocks, too."""
    if stages.empty:
        return None
    columns: dict[str, Written] = {
        "variant": lambda row: Cell(row.variant, f"against {row.against}" if row.against else ""),
        "norm": text_of("norm"),
        "blocks": text_of("blocks"),
        "part": text_of("part"),
        "value": number_of("value", 3),
        "95 % interval": interval_of("ci_low", "ci_high"),
        "sd over seeds": number_of("sd", 2),
        "q": number_of("q", 2),
        "seeds": number_of("seeds"),
    }
    if stages["setting"].nunique() > 1:
        columns = {"setting": text_of("setting"), **columns}
    numeric = ("value", "95 % interval", "sd over seeds", "q", "seeds")
    table = table_of(stages[stages["blocks"].isin([ALL, *THIRDS])], "stages", of, columns, numeric)
    return replace(table, data=download(stages, "stages", of))


def _start(verification: Verification) -> str:
    """By which name the start was given, where trainings have one."""
    return str((verification.settings.get("start") or {}).get("given", ""))


def _continued(continued: pd.DataFrame, of: str) -> Table | None:
    """The start's numbers, and what training on did to them."""
    if continued.empty:
        return None
    columns: dict[str, Written] = {
        "variant": text_of("variant"),
        "measure": text_of("measure"),
        "of": lambda row: Cell(f"{row.task} {row.source} {row.resolution} px"),
        "start": number_of("start", 3),
        "over images": interval_of("start_low", "start_high"),
        "mean after": number_of("mean", 3),
        "difference": number_of("difference", 2),
        "95 % interval": interval_of("ci_low", "ci_high"),
        "seeds": number_of("seeds"),
    }
    if continued["setting"].nunique() > 1:
        columns = {"setting": text_of("setting"), **columns}
    numeric = ("start", "over images", "mean after", "difference", "95 % interval", "seeds")
    return table_of(continued, "continued", of, columns, numeric)


def _costs(costs: pd.DataFrame, of: str) -> Table:
    """What specializations cost."""
    frame = costs.copy()
    frame["parameters %"] = 100 * frame["added_parameters"] / frame["parameters"]
    frame["flops %"] = 100 * frame["added_flops"] / frame["flops"]
    frame = frame.rename(columns={"parameters %": "more_parameters", "flops %": "more_flops"})
    columns: dict[str, Written] = {
        "model": text_of("model"),
        "specialization": text_of("preset"),
        "parameters added": number_of("added_parameters", 9),
        "of the model's, %": number_of("more_parameters", 3),
        "FLOPs, %": number_of("more_flops", 2),
    }
    return table_of(frame, "costs", of, columns, ("parameters added", "of the model's, %", "FLOPs, %"))


def _commands(verification: Verification) -> list[tuple[str, str]]:
    found = commands(verification.settings, "verification")[:1]
    if "given" in verification.settings:
        return found
    again = f"tokenlens verify --from {verification.path.name} --out ANOTHER"
    return [*found, ("The verdicts again, from these run folders", again)]


def _provenance(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    named = (
        "name",
        "start",
        "seeds",
        "variants",
        "data",
        "train_images",
        "masks",
        "analyzed",
        "given",
        "versions",
        "commit",
        "started",
        "ended",
    )
    return provenance_rows({name: settings[name] for name in named if settings.get(name)})


def _recipe(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    recipe = settings.get("regime", {}).get("recipe", {})
    return provenance_rows({name: value for name, value in recipe.items() if name not in ("seed", "specialization")})


def _probes(settings: Mapping[str, Any]) -> list[str]:
    told = []
    for probe in settings.get("regime", {}).get("probes", []):
        limit = f", at most {probe['limit']:,} images of each split" if probe["limit"] else ""
        source = f" on {probe['source']}" if probe["source"] else ""
        told.append(f"{probe['task']}{source} at {probe['image_size']} px{limit}")
    return told


def summary(verification: Verification) -> str:
    """Return a few lines of HTML: the verdicts."""
    findings = "".join(
        f"<li><strong>{finding.name} {finding.verdict}</strong> ({escape(finding.subject)}): "
        f"{escape(finding.sentence)}</li>"
        for finding in verification.findings
    )
    return f"<div>The findings of the paper, checked in {escape(str(verification.path))}:<ul>{findings}</ul></div>"
