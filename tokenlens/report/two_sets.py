"""What a page says of a specialized model: what has two sets of weights, and how far these are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from tokenlens.analysis.overview import headlines
from tokenlens.figures._rows import GROUPS
from tokenlens.report.numerals import counted, fixed, significant
from tokenlens.report.tables import Cell, Table, number_of, table_of, text_of

if TYPE_CHECKING:
    from tokenlens.analysis.analysis import Analysis
    from tokenlens.comparison.comparison import Comparison

METRIC = "weight_distance"
_COMPONENTS = {
    "norm": "norm",
    "layer_scale": "LayerScale",
    "qkv": "q, k, v projection",
    "proj": "output projection",
    "mlp": "linear map",
}
"""What there is of each component, in the order of a block."""


def two_sets(analysis: Analysis) -> list[str]:
    """Sentences about a specialized model; none for a standard one."""
    told, rows = analysis.provenance.get("specialization"), _distances(analysis)
    if told is None and rows.empty:
        return []
    sentences = [_what(told, rows)]
    if rows.empty:
        return [*sentences, f"How far the two sets are apart was not measured: {METRIC} was not computed."]
    return [*sentences, _how_far(rows), *(_own(analysis) if rows["value"].any() else [])]


def counterparts(comparison: Comparison, label: str) -> list[str]:
    """What is to be said of two sets of weights where a model is set against the baseline; nothing of standard ones."""
    pair = {name: comparison.analyses[name] for name in (label, comparison.baseline)}
    specialized = [name for name, analysis in pair.items() if two_sets(analysis)]
    sentences = []
    for name in specialized:
        rows = _distances(pair[name])
        sentences.append(f"{name} is specialized. {_how_far(rows) if len(rows) else f'{METRIC} was not computed.'}")
    standard = [name for name in pair if name not in specialized]
    if specialized and standard:
        sentences.append(
            f"{standard[0]} has one set of weights, so {METRIC} has no counterpart in it, nor has what CLS's own γ and "
            "β add (the parts of norm_differentiation that end in _shared and _own): they are in the table of all "
            "numbers, and no difference is taken of them."
        )
    return sentences


def two_sets_table(analysis: Analysis) -> Table | None:
    """A row for each parameter that exists twice; None where none was measured."""
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
        def written(row: Any) -> Cell:
            block = getattr(row, f"{name}_block")
            nowhere = row.largest == 0 or pd.isna(block)
            return number_of(name, 5)(row)._replace(small="" if nowhere else f"b{int(block)}")

        return written

    columns = {
        "component": text_of("component"),
        "parameter": text_of("parameter"),
        "blocks": text_of("blocks"),
        "elements": lambda row: Cell(f"{row.elements:,}"),
        "mean distance": number_of("mean", 3),
        "largest distance": extreme("largest"),
        "lowest cosine": extreme("lowest_cosine"),
    }
    numeric = ("elements", "mean distance", "largest distance", "lowest cosine")
    return table_of(pd.DataFrame(rows), "two-sets-table", analysis.model, columns, numeric)


def _distances(analysis: Analysis) -> pd.DataFrame:
    """A row for each parameter and block, with component, parameter, block, value (distance), cosine and n."""
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


def _what(told: Mapping[str, Any] | None, rows: pd.DataFrame) -> str:
    """Which tokens have which set, and in what."""
    prefix = [GROUPS[group] for group in (told or {}).get("prefix", ())]
    who = f"{_joined(prefix)} on one side and patches on the other" if prefix else "Prefix tokens and patches"
    modules = rows.assign(module=rows["parameter"].str.rpartition(".")[0] if len(rows) else "")
    modules = modules[["component", "module", "block"]].drop_duplicates()
    counts = [
        counted(int((modules["component"] == name).sum()), _COMPONENTS.get(name, name))
        for name in dict.fromkeys(modules["component"])
    ]
    where = f" in {_joined(counts)}" if counts else ""
    chosen = {name: value for name, value in (told or {}).items() if name not in ("prefix", "registers")}
    asked = f" ({', '.join(f'{name}: {_written(value)}' for name, value in chosen.items())})" if chosen else ""
    return f"A specialized model: {who} have weights of their own{where}{asked}."


def _how_far(rows: pd.DataFrame) -> str:
    """The largest distance, where it is, and the median."""
    parameters = counted(len(rows), "parameter")
    if not rows["value"].any():
        return (
            f"Both sets are equal in all of {parameters}, as after specializing: it computes what a standard model "
            "with these weights does."
        )
    most = rows.loc[rows["value"].idxmax()]
    where = "" if pd.isna(most["block"]) else f" of block {int(most['block'])}"
    equal = int((rows["value"] == 0).sum())
    return (
        f"Its two sets are furthest apart in {most['parameter']}{where} (relative distance "
        f"{significant(float(most['value']), 2)}, cosine {significant(float(most['cosine']), 4)}); the median over "
        f"{parameters} is {significant(float(rows['value'].median()), 2)}"
        + (f", and {equal} of them {'is' if equal == 1 else 'are'} still equal." if equal else ".")
    )


def _own(analysis: Analysis) -> list[str]:
    """What CLS's own γ and β do in the norm before attention."""
    found = headlines(analysis)
    rows = found[found["quantity"].str.contains("CLS's own γ and β") & found["quantity"].str.contains("norm1")]
    return [
        f"Across norm1 CLS's own γ and β change the fall of CLS–patch cosine by {fixed(row.value, 4)} (95 % interval "
        f"{fixed(row.ci_low, 4)} to {fixed(row.ci_high, 4)}, n = {row.n}), mean over blocks, against what the patches' "
        "would do to CLS; positive: further apart."
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
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).replace("_", " ")


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
