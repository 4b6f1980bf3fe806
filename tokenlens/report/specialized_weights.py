"""Describe the specialized weights of a model: which modules have them, and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.overview import overview
from tokenlens.comparison.comparison import Comparison
from tokenlens.figures.base import group_title
from tokenlens.report.number_format import with_decimals, with_digits
from tokenlens.report.tables import Table, TableEntry, number_column, table_of, text_column
from tokenlens.storage.wording import counted
from tokenlens.verification.wording import join_words

METRIC = "weight_distance"
_COMPONENTS = {
    "norm": "norm",
    "layer_scale": "LayerScale",
    "qkv": "q, k, v projection",
    "proj": "output projection",
    "mlp": "linear map",
}
"""Nouns for the modules of each component, in the order of a block."""


def specialized_sentences(analysis: Analysis) -> list[str]:
    """Return sentences about the specialized weights of a model; an empty list for a standard model."""
    specialization, rows = analysis.provenance.get("specialization"), _distances(analysis)
    if specialization is None and rows.empty:
        return []
    sentences = [_modules(specialization, rows)]
    if rows.empty:
        return [*sentences, f"The distance between the weights is unknown: {METRIC} was not computed."]
    return [*sentences, _distance(rows), *(_effect_of_cls(analysis) if rows["value"].any() else [])]


def counterparts(comparison: Comparison, label: str) -> list[str]:
    """Return sentences about specialized weights for the comparison of a model with the baseline."""
    pair = {name: comparison.analyses[name] for name in (label, comparison.baseline)}
    specialized = [name for name, analysis in pair.items() if specialized_sentences(analysis)]
    sentences = []
    for name in specialized:
        rows = _distances(pair[name])
        sentences.append(f"{name} is specialized. {_distance(rows) if len(rows) else f'{METRIC} was not computed.'}")
    standard = [name for name in pair if name not in specialized]
    if specialized and standard:
        sentences.append(
            f"{standard[0]} is not specialized, so {METRIC} and the parts _shared and _own of norm_differentiation "
            "have no counterpart in it; they are listed in the table of all numbers only."
        )
    return sentences


def specialized_table(analysis: Analysis) -> Table | None:
    """Return a table with a row per specialized parameter; None if no distance was measured."""
    rows = []
    for (component, parameter), inside in _distances(analysis).groupby(["component", "parameter"], sort=False):
        furthest, lowest = inside["value"].idxmax(), inside["cosine"].fillna(2.0).idxmin()
        rows.append(
            {
                "component": component,
                "parameter": parameter,
                "blocks": _blocks(inside["block"]),
                "elements": int(inside["n"].iloc[0]),
                "mean": inside["value"].mean(),
                "largest": inside.loc[furthest, "value"],
                "largest_block": inside.loc[furthest, "block"],
                "lowest_cosine": inside.loc[lowest, "cosine"],
                "lowest_cosine_block": inside.loc[lowest, "block"],
            }
        )
    if not rows:
        return None

    def extreme(name: str) -> Any:
        def written(row: Any) -> TableEntry:
            block = getattr(row, f"{name}_block")
            nowhere = row.largest == 0 or pd.isna(block)
            return number_column(name, 5)(row)._replace(small="" if nowhere else f"b{int(block)}")

        return written

    columns = {
        "component": text_column("component"),
        "parameter": text_column("parameter"),
        "blocks": text_column("blocks"),
        "elements": lambda row: TableEntry(f"{row.elements:,}"),
        "mean distance": number_column("mean", 3),
        "largest distance": extreme("largest"),
        "lowest cosine": extreme("lowest_cosine"),
    }
    numeric = ("elements", "mean distance", "largest distance", "lowest cosine")
    return table_of(pd.DataFrame(rows), "specialized-weights-table", analysis.model, columns, numeric)


def _distances(analysis: Analysis) -> pd.DataFrame:
    """Return component, parameter, block, value (distance), cosine and n, one row per parameter and block."""
    rows = analysis.table[analysis.table["metric"] == METRIC]
    keys = ["site", "block", "n"]
    distance, cosine = (rows[rows["part"] == part][[*keys, "value"]] for part in ("relative_distance", "cosine"))
    found = distance.merge(cosine.rename(columns={"value": "cosine"}), on=keys, how="left")
    if found.empty:
        return found.assign(component="", parameter="")
    names = found["site"].str.partition("/")
    order = names[0].map({name: number for number, name in enumerate(_COMPONENTS)}).fillna(len(_COMPONENTS))
    found = found.assign(component=names[0], parameter=names[2])
    return found.loc[order.sort_values(kind="stable").index].reset_index(drop=True)


def _modules(specialization: Mapping[str, Any] | None, rows: pd.DataFrame) -> str:
    """Describe which tokens have separate weights, and in which modules."""
    prefix = [group_title(group) for group in (specialization or {}).get("prefix", ())]
    tokens = f"{join_words(prefix)} on the one hand and patches on the other" if prefix else "Prefix tokens and patches"
    modules = rows.assign(module=rows["parameter"].str.rpartition(".")[0] if len(rows) else "")
    modules = modules[["component", "module", "block"]].drop_duplicates()
    counts = [
        counted(int((modules["component"] == name).sum()), _COMPONENTS.get(name, name))
        for name in dict.fromkeys(modules["component"])
    ]
    where = f" in {join_words(counts)}" if counts else ""
    chosen = {name: value for name, value in (specialization or {}).items() if name not in ("prefix", "registers")}
    options = f" ({', '.join(f'{name}: {_written(value)}' for name, value in chosen.items())})" if chosen else ""
    return f"The model is specialized: {tokens} have separate weights{where}{options}."


def _distance(rows: pd.DataFrame) -> str:
    """Describe the largest distance and the median."""
    parameters = counted(len(rows), "parameter")
    if not rows["value"].any():
        return (
            f"The weights for CLS and patches are equal in all of {parameters}, as directly after specialization: the "
            "model computes the same as a standard model with these weights."
        )
    most = rows.loc[rows["value"].idxmax()]
    where = "" if pd.isna(most["block"]) else f" of block {int(most['block'])}"
    equal = int((rows["value"] == 0).sum())
    return (
        f"The weights for CLS and patches differ most in {most['parameter']}{where} (relative distance "
        f"{with_digits(float(most['value']), 2)}, cosine {with_digits(float(most['cosine']), 4)}); the median over "
        f"{parameters} is {with_digits(float(rows['value'].median()), 2)}"
        + (f", and {equal} of them {'is' if equal == 1 else 'are'} still equal." if equal else ".")
    )


def _effect_of_cls(analysis: Analysis) -> list[str]:
    """Describe the effect of CLS's specialized γ and β in the norm before attention."""
    found = overview(analysis)
    rows = found[found["quantity"].str.contains("specialized γ and β of CLS") & found["quantity"].str.contains("norm1")]
    return [
        f"Compared with the patches' γ and β, the specialized γ and β of CLS change the fall of the CLS–patch cosine "
        f"across norm1 by {with_decimals(row.value, 4)} (mean over blocks; 95 % interval "
        f"{with_decimals(row.ci_low, 4)} to {with_decimals(row.ci_high, 4)}, n = {row.n}); positive means further "
        "apart."
        for row in rows.itertuples(index=False)
    ]


def _blocks(blocks: pd.Series) -> str:
    numbers = sorted(int(block) for block in blocks.dropna())
    if not numbers:
        return "final"
    if numbers == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 1:
        return f"{numbers[0]}–{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _written(value: Any) -> str:
    if value is False:
        return "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).replace("_", " ")
