"""Which stage of a norm separates CLS from patches, over trained models: centring, γ or β.

``norm_differentiation`` splits the fall of the CLS–patch cosine across a norm exactly into its stages. Here these parts
are averaged over blocks for each model and then over seeds, and specialized models are compared with the standard ones
of the same seed. The paper makes no claim about stages, so there is no verdict. Their description in sentences follows
fixed rules all the same: fewer than ``MIN_SEEDS`` seeds say nothing, and p is corrected where several are tested.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tokenlens.analysis.analysis import Analysis
from tokenlens.statistics.seed_effects import MIN_SEEDS, Effect, estimate_effect
from tokenlens.verification.numbers import effect_columns
from tokenlens.verification.variants import PAPER, STANDARD, START
from tokenlens.verification.wording import format_signed, join_words

NORMS = ("norm1", "norm2")
STAGES = ("centring", "gamma", "beta")
_SYMBOLS = {"centring": "centring", "gamma": "γ", "beta": "β"}
SPECIALIZED_PARTS = ("gamma_shared", "gamma_own", "beta_shared", "beta_own", "total_own")
"""Parts of specialized norms: those of γ and β if CLS had the patches' weights, and what CLS's separate weights add."""

ALL, THIRDS = "all", ("first third", "middle third", "last third")
"""Ranges of blocks that are averaged; single blocks are listed by their number."""

STAGES_BY_SEED = ("setting", "variant", "seed", "norm", "blocks", "part", "value", "n")
"""Columns of ``tabulate_stages``: a part of the fall of the CLS–patch cosine across a norm, averaged over ``n`` images
and a range of blocks of one model."""

STAGE_EFFECTS = (
    *("setting", "variant", "against", "norm", "blocks", "part", "value", "ci_low", "ci_high"),
    *("sd", "p", "q", "seeds", "detectable"),
)
"""Columns of ``tabulate_stage_effects``: the mean of a part over a variant's models (``against`` is empty), or its mean
difference from the standard models of the same seeds."""

LEVEL = 0.05
"""Level of significance."""


def tabulate_stages(analyses: Mapping[tuple[str, str, int], Analysis]) -> pd.DataFrame:
    """Return the parts of every model, with the columns of ``STAGES_BY_SEED``.

    Args:
        analyses: by setting, variant and seed; those without CLS or without these numbers are skipped.
    """
    frames = []
    for (setting, variant, seed), analysis in analyses.items():
        table = analysis.table
        rows = table[
            (table["metric"] == "norm_differentiation")
            & (table["group"] == "cls-patch")
            & table["site"].isin(NORMS)
            & table["part"].isin([*STAGES, "total", *SPECIALIZED_PARTS])
        ]
        for name, blocks in block_ranges(analysis.blocks).items():
            by_part = rows[rows["block"].isin(blocks)].groupby(["site", "part"], as_index=False, sort=False)
            means = by_part.agg(value=("value", "mean"), n=("n", "max")).rename(columns={"site": "norm"})
            if len(means):
                frames.append(means.assign(setting=setting, variant=variant, seed=seed, blocks=name))
    if not frames:
        return pd.DataFrame(columns=list(STAGES_BY_SEED))
    return _sort_rows(pd.concat(frames)[list(STAGES_BY_SEED)])


def block_ranges(depth: int) -> dict[str, list[int]]:
    """Return ranges of blocks by name; ``paper`` specializes QKV in the first third.

    >>> block_ranges(6)["last third"], list(block_ranges(2))
    ([4, 5], ['all', 'first third', 'last third', '0', '1'])
    """
    third = max(1, int(depth / 3 + 0.5))  # as tokenlens.specialization counts it
    parts = dict(zip(THIRDS, (range(third), range(third, depth - third), range(depth - third, depth)), strict=True))
    named = {ALL: list(range(depth))} | {name: list(part) for name, part in parts.items() if part}
    return named | {str(block): [block] for block in range(depth)}


def tabulate_stage_effects(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds and differences from standard models, with the columns of ``STAGE_EFFECTS``.

    A standard norm has one set of weights. Compared with a specialized one, all of its γ and β count as shared, and the
    parts of separate weights are 0. ``q`` is the p of the differences of the three stages over all blocks, corrected
    for all norms and variants of a setting (Benjamini and Hochberg); any other p is uncorrected.

    Args:
        by_seed: a table with the columns of ``STAGES_BY_SEED``.
    """
    rows: list[dict[str, Any]] = []
    for (setting, norm, blocks), inside in by_seed.groupby(["setting", "norm", "blocks"], sort=False):
        common = {"setting": setting, "norm": norm, "blocks": blocks}
        values = values_by_seed(inside)
        for variant, parts in values.items():
            for part, of_part in parts.items():
                mean = mean_over_seeds(of_part)
                values_of = effect_columns(mean) | {"value": mean.difference, "p": np.nan}
                rows.append({**common, "variant": variant, "against": "", "part": part, **values_of})
        standard = values.get(STANDARD)
        if not standard or not setting:
            continue
        for variant in (name for name in values if name not in (STANDARD, START)):
            for part, of_part in values[variant].items():
                effect = estimate_effect(of_part, _standard_part(standard, part))
                if effect.seeds:
                    values_of = effect_columns(effect) | {"value": effect.difference}
                    rows.append({**common, "variant": variant, "against": STANDARD, "part": part, **values_of})
    table = _sort_rows(pd.DataFrame(rows, columns=list(STAGE_EFFECTS)))
    table["q"] = np.nan
    tested = (table["against"] != "") & (table["blocks"] == ALL) & table["part"].isin(STAGES)
    for _, family in table[tested & table["p"].notna()].groupby("setting"):
        table.loc[family.index, "q"] = stats.false_discovery_control(family["p"].astype(float))
    return table


def moved_stages(effects: pd.DataFrame) -> pd.DataFrame:
    """Return the stages that a specialization changes: rows with q below ``LEVEL`` and at least ``MIN_SEEDS`` seeds.

    Args:
        effects: rows of ``tabulate_stage_effects`` of one setting.
    """
    return effects[(effects["q"] < LEVEL) & (effects["seeds"] >= MIN_SEEDS)]


def dominant_stage(stages: Mapping[str, Mapping[int, float]]) -> str | None:
    """Return the stage whose part is larger than both others' over seeds; None if no stage stands out.

    The larger p of the two differences, times the number of stages that could have been the largest, must be below
    ``LEVEL``.

    Args:
        stages: parts of one norm and variant, by stage and seed.
    """
    means = {stage: float(np.mean([*values.values()])) for stage, values in stages.items()}
    largest = max(means, key=lambda stage: means[stage])
    effects = [estimate_effect(stages[largest], values) for stage, values in stages.items() if stage != largest]
    if not effects or not all(effect.enough and effect.difference > 0 for effect in effects):
        return None
    return largest if max(effect.p for effect in effects) * len(stages) < LEVEL else None


def values_by_seed(rows: pd.DataFrame) -> dict[str, dict[str, dict[int, float]]]:
    """Return the values of a table with the columns of ``STAGES_BY_SEED``, by variant, part and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows.itertuples(index=False):
        found.setdefault(str(row.variant), {}).setdefault(str(row.part), {})[int(row.seed)] = float(row.value)
    return found


def mean_over_seeds(values: Mapping[int, float]) -> Effect:
    """Return the mean of values over seeds, as their difference from 0."""
    return estimate_effect(values, dict.fromkeys(values, 0.0))


def _standard_part(standard: Mapping[str, Mapping[int, float]], part: str) -> Mapping[int, float]:
    """Return the part of a standard norm that corresponds to one of a specialized norm."""
    if part.endswith("_own"):
        return dict.fromkeys(standard.get("total", {}), 0.0)
    return standard.get(part.removesuffix("_shared"), {})


def _sort_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Sort by variant (start, standard, paper, others), norm, blocks (all, thirds, single ones) and part."""
    first: dict[str, list[str]] = {
        "variant": [START, STANDARD, PAPER],
        "against": ["", STANDARD],
        "norm": [*NORMS],
        "blocks": [ALL, *THIRDS],
        "part": [*STAGES, "total", *SPECIALIZED_PARTS],
    }

    def rank(column: pd.Series) -> pd.Series:
        known = first.get(str(column.name), [])
        order = [*known, *(value for value in dict.fromkeys(column) if value not in known)]
        return column.map({value: number for number, value in enumerate(order)})

    keys = [name for name in ("setting", "against", "variant", "seed", "norm", "blocks", "part") if name in table]
    return table.sort_values(keys, key=rank, kind="stable").reset_index(drop=True)


def describe_stages(by_seed: pd.DataFrame, effects: pd.DataFrame) -> list[str]:
    """Say for each setting which stage separates CLS from patches, and which stages specialization changes.

    Args:
        by_seed: from ``tabulate_stages``.
        effects: from ``tabulate_stage_effects``.
    """
    texts = []
    all_blocks = by_seed[by_seed["blocks"] == ALL]
    for setting, inside in all_blocks.groupby("setting", sort=False):
        variants = []
        for variant in dict.fromkeys(inside["variant"]):
            rows = inside[inside["variant"] == variant]
            norms = [_describe_norm(rows[rows["norm"] == norm], norm) for norm in dict.fromkeys(inside["norm"])]
            variants.append(f"{variant}: {'; '.join(norms)}.")
        changes = _describe_changes(effects[effects["setting"] == setting])
        head = f"{setting}. " if setting and all_blocks["setting"].nunique() > 1 else ""
        texts.append(" ".join([f"{head}Fall of the CLS–patch cosine, mean over blocks:", *variants, *changes]))
    return texts


def _describe_norm(rows: pd.DataFrame, norm: str) -> str:
    parts = next(iter(values_by_seed(rows).values()))
    total = mean_over_seeds(parts["total"])
    stages = {stage: parts[stage] for stage in STAGES if stage in parts}
    sizes = [f"{_SYMBOLS[stage]} {format_signed(mean_over_seeds(of).difference, 3)}" for stage, of in stages.items()]
    text = f"{norm} {format_signed(total.difference, 3)}{_bounds(total)} = {', '.join(sizes)}"
    if not total.enough:
        return f"{text} ({total.seeds} model{'s' if total.seeds != 1 else ''}; at least {MIN_SEEDS} are needed)"
    if total.low <= 0:
        return f"{text}, " + ("which brings them together" if total.high < 0 else "no certain separation")
    dominant = dominant_stage(stages)
    return f"{text}, mostly {_SYMBOLS[dominant]}" if dominant else f"{text}; no stage stands out"


def _bounds(effect: Effect) -> str:
    return "" if math.isnan(effect.low) else f" ({format_signed(effect.low, 3)} to {format_signed(effect.high, 3)})"


def _describe_changes(effects: pd.DataFrame) -> list[str]:
    texts = []
    for variant, tested in effects[effects["q"].notna()].groupby("variant", sort=False):
        changes = [
            f"{_SYMBOLS[row.part]} at {row.norm} by {format_signed(row.value, 3)} ({format_signed(row.ci_low, 3)} to "
            f"{format_signed(row.ci_high, 3)}, q = {row.q:.2g})"
            for row in moved_stages(tested).itertuples(index=False)
        ]
        seeds = int(tested["seeds"].min())
        if seeds < MIN_SEEDS:
            text = f"{seeds} matched seeds; at least {MIN_SEEDS} are needed."
            texts.append(f"{variant} against {STANDARD}: {text}")
        elif changes:
            texts.append(f"{variant} against {STANDARD} changes {join_words(changes)}.")
        else:
            detectable = float(tested["detectable"].max())
            texts.append(
                f"{variant} against {STANDARD}: {seeds} matched seeds show no stage that changes; each stage by itself "
                f"would have been detected from {detectable:.3f} on, or less, with 80 % power."
            )
    return texts
