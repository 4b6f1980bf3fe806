"""Which stage of a norm separates CLS from patches, over trained models: centring, γ or β.

The fall of the CLS–patch cosine across a norm is split exactly into its stages (``norm_differentiation``). Here that
split is averaged over blocks, model by model, and then over seeds; specialized models are set against the standard ones
of their seed. The paper leaves the question open, so there is no verdict, but what is said in words holds to the same
standard: the seed is the unit, fewer than ``MIN_SEEDS`` say nothing, and where several things are asked p is corrected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tokenlens.analysis.analysis import Analysis
from tokenlens.statistics.seed_effects import MIN_SEEDS, Effect, effect_of
from tokenlens.verification.numbers import PAPER, STANDARD, listed, signed
from tokenlens.verification.variants import START

NORMS = ("norm1", "norm2")
STAGES = ("centring", "gamma", "beta")
OWN = ("gamma_shared", "gamma_own", "beta_shared", "beta_own", "total_own")
"""Of specialized norms: γ's and β's part with the patches' weights for CLS, too, and what CLS's own weights add."""

ALL, THIRDS = "all", ("first third", "middle third", "last third")
"""What is averaged over blocks; besides, each block stands by its number."""

BY_SEED = ("setting", "variant", "seed", "norm", "blocks", "part", "value", "n")
"""Columns of ``stages_by_seed``: a part of the fall of the CLS–patch cosine across a norm, mean over images and these
blocks of one model; ``n`` images."""

EFFECTS = (
    "setting",
    "variant",
    "against",
    "norm",
    "blocks",
    "part",
    "value",
    "ci_low",
    "ci_high",
    "sd",
    "p",
    "q",
    "seeds",
    "detectable",
)
"""Columns of ``stage_effects``: the mean of a part over a variant's models (``against`` is empty), or its mean paired
difference from the standard models."""

LEVEL = 0.05

_WORDS = {"centring": "centring", "gamma": "γ", "beta": "β"}


def stages_by_seed(analyses: Mapping[tuple[str, str, int], Analysis]) -> pd.DataFrame:
    """The split of every model, with the columns of ``BY_SEED``.

    Args:
        analyses: by setting, variant and seed; those without CLS or without these numbers are passed over.
    """
    frames = []
    for (setting, variant, seed), analysis in analyses.items():
        table = analysis.table
        rows = table[
            (table["metric"] == "norm_differentiation")
            & (table["group"] == "cls-patch")
            & table["site"].isin(NORMS)
            & table["part"].isin([*STAGES, "total", *OWN])
        ]
        for name, blocks in spans(analysis.blocks).items():
            some = rows[rows["block"].isin(blocks)]
            by_part = some.groupby(["site", "part"], as_index=False, sort=False)
            means = by_part.agg(value=("value", "mean"), n=("n", "max")).rename(columns={"site": "norm"})
            frames.append(means.assign(setting=setting, variant=variant, seed=seed, blocks=name))
    some = [frame for frame in frames if len(frame)]
    return in_order(pd.concat(some)[list(BY_SEED)]) if some else pd.DataFrame(columns=list(BY_SEED))


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are read: the start, standard, paper, and the others; all blocks, thirds, and single ones."""
    first: dict[str, list[str]] = {
        "variant": [START, STANDARD, PAPER],
        "against": ["", STANDARD],
        "norm": [*NORMS],
        "blocks": [ALL, *THIRDS],
        "part": [*STAGES, "total", *OWN],
    }

    def place(column: pd.Series) -> pd.Series:
        known = first.get(str(column.name), [])
        found = [*known, *(value for value in dict.fromkeys(column) if value not in known)]
        return column.map({value: number for number, value in enumerate(found)})

    keys = [name for name in ("setting", "against", "variant", "seed", "norm", "blocks", "part") if name in table]
    return table.sort_values(keys, key=place, kind="stable").reset_index(drop=True)


def spans(depth: int) -> dict[str, list[int]]:
    """The blocks of each span, by its name; the first third is the one in which ``paper`` specializes QKV.

    >>> spans(6)["last third"], list(spans(2))
    ([4, 5], ['all', 'first third', 'last third', '0', '1'])
    """
    third = max(1, int(depth / 3 + 0.5))  # as tokenlens.specialization counts it
    parts = dict(zip(THIRDS, (range(third), range(third, depth - third), range(depth - third, depth)), strict=True))
    named = {ALL: list(range(depth))} | {name: list(part) for name, part in parts.items() if part}
    return named | {str(block): [block] for block in range(depth)}


def stage_effects(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds and paired differences, with the columns of ``EFFECTS``.

    A standard norm has one set of weights: set against a specialized one, all of its γ and β are shared and CLS's own
    add 0.
    ``q`` is p of the differences of the three stages over all blocks, corrected for all norms and variants of a setting
    (Benjamini and Hochberg); other p stand uncorrected and nothing is said on them.

    Args:
        by_seed: with the columns of ``BY_SEED``.
    """
    rows: list[dict[str, Any]] = []
    for (setting, norm, blocks), inside in by_seed.groupby(["setting", "norm", "blocks"], sort=False):
        place = {"setting": setting, "norm": norm, "blocks": blocks}
        values = _values(inside)
        for variant, parts in values.items():
            for part, of in parts.items():
                rows.append({**place, "variant": variant, "against": "", "part": part, **_told(_level(of))})
        standard = values.get(STANDARD)
        for variant, parts in values.items() if standard and setting else ():
            if variant in (STANDARD, START):
                continue
            for part, of in parts.items():
                effect = effect_of(of, _shared(standard or {}, part))
                if effect.seeds:
                    told = _told(effect) | {"p": effect.p}
                    rows.append({**place, "variant": variant, "against": STANDARD, "part": part, **told})
    table = in_order(pd.DataFrame(rows, columns=list(EFFECTS)))
    table["q"] = np.nan
    asked = (table["against"] != "") & (table["blocks"] == ALL) & table["part"].isin(STAGES)
    for _, family in table[asked & table["p"].notna()].groupby("setting"):
        table.loc[family.index, "q"] = stats.false_discovery_control(family["p"].astype(float))
    return table


def _values(inside: pd.DataFrame) -> dict[str, dict[str, dict[int, float]]]:
    """Numbers by variant, part and seed."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in inside.itertuples(index=False):
        found.setdefault(str(row.variant), {}).setdefault(str(row.part), {})[int(row.seed)] = float(row.value)
    return found


def _level(of: Mapping[int, float]) -> Effect:
    return effect_of(of, dict.fromkeys(of, 0.0))


def _shared(standard: Mapping[str, Mapping[int, float]], part: str) -> Mapping[int, float]:
    """A part of a standard norm, where the specialized one has it."""
    if part.endswith("_own"):
        return dict.fromkeys(standard.get("total", {}), 0.0)
    return standard.get(part.removesuffix("_shared"), {})


def _told(effect: Effect) -> dict[str, Any]:
    return {
        "value": effect.difference,
        "ci_low": effect.low,
        "ci_high": effect.high,
        "sd": effect.sd,
        "seeds": effect.seeds,
        "detectable": effect.detectable,
    }


# -- words


def leading_stage(stages: Mapping[str, Mapping[int, float]]) -> str | None:
    """The stage whose part is larger than both others' over seeds; None where none stands out.

    The larger p of the two paired differences, times the number of stages that could have been the largest, is below
    ``LEVEL``.

    Args:
        stages: numbers of one norm and variant by stage and seed.
    """
    means = {stage: float(np.mean([*of.values()])) for stage, of in stages.items()}
    largest = max(means, key=lambda stage: means[stage])
    effects = [effect_of(stages[largest], of) for stage, of in stages.items() if stage != largest]
    if not effects or not all(effect.enough and effect.difference > 0 for effect in effects):
        return None
    return largest if max(effect.p for effect in effects) * len(stages) < LEVEL else None


def sentences(by_seed: pd.DataFrame, effects: pd.DataFrame) -> list[str]:
    """What the split says, in words: for each setting which stage separates, and what specialization moves.

    Args:
        by_seed: of ``stages_by_seed``.
        effects: of ``stage_effects``.
    """
    told = []
    whole = by_seed[by_seed["blocks"] == ALL]
    for setting, inside in whole.groupby("setting", sort=False):
        parts = []
        for variant in dict.fromkeys(inside["variant"]):
            norms = [
                _of_norm(inside[(inside["variant"] == variant) & (inside["norm"] == norm)], norm)
                for norm in dict.fromkeys(inside["norm"])
            ]
            parts.append(f"{variant}: {'; '.join(norms)}.")
        moved = _moved(effects[effects["setting"] == setting])
        head = f"{setting}. " if setting and whole["setting"].nunique() > 1 else ""
        told.append(" ".join([f"{head}Fall of the CLS–patch cosine, mean over blocks:", *parts, *moved]))
    return told


def _of_norm(rows: pd.DataFrame, norm: str) -> str:
    parts = next(iter(_values(rows).values()))
    total = _level(parts["total"])
    stages = {stage: parts[stage] for stage in STAGES if stage in parts}
    shares = ", ".join(f"{_WORDS[stage]} {signed(_level(of).difference, 3)}" for stage, of in stages.items())
    text = f"{norm} {signed(total.difference, 3)}{_bounds(total)} = {shares}"
    if not total.enough:
        return f"{text} ({total.seeds} model{'s' if total.seeds != 1 else ''}, {MIN_SEEDS} needed to say more)"
    if total.low <= 0:
        return f"{text}, " + ("which brings them together" if total.high < 0 else "no separation that is certain")
    leads = leading_stage(stages)
    return f"{text}, mostly {_WORDS[leads]}" if leads else f"{text}, and no stage stands out"


def _bounds(effect: Effect) -> str:
    return "" if math.isnan(effect.low) else f" ({signed(effect.low, 3)} to {signed(effect.high, 3)})"


def moves(effects: pd.DataFrame) -> pd.DataFrame:
    """The stages that a specialization moves: rows of ``stage_effects`` with q below ``LEVEL`` and seeds enough.

    Args:
        effects: of one setting.
    """
    return effects[(effects["q"] < LEVEL) & (effects["seeds"] >= MIN_SEEDS)]


def _moved(effects: pd.DataFrame) -> list[str]:
    told = []
    for variant, asked in effects[effects["q"].notna()].groupby("variant", sort=False):
        found = [
            f"{_WORDS[row.part]} at {row.norm} by {signed(row.value, 3)} ({signed(row.ci_low, 3)} to "
            f"{signed(row.ci_high, 3)}, q = {row.q:.2g})"
            for row in moves(asked).itertuples(index=False)
        ]
        seeds = int(asked["seeds"].min())
        if seeds < MIN_SEEDS:
            told.append(f"{variant} against {STANDARD}: {seeds} pairs, {MIN_SEEDS} needed to say anything.")
        elif found:
            told.append(f"{variant} against {STANDARD} moves {listed(found)}.")
        else:
            most = float(asked["detectable"].max())
            told.append(
                f"{variant} against {STANDARD}: {seeds} pairs show no stage that is moved; each by itself would have "
                f"been seen from {most:.3f} on, or less, with 80 % power."
            )
    return told
