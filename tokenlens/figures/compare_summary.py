"""Summary of a comparison in one figure: depth profiles, differentiation, stages and similarity of features."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from tokenlens.analysis.analysis import Analysis
from tokenlens.comparison.comparison import Comparison
from tokenlens.figures import compare_depth_profile, compare_similarity
from tokenlens.figures._comparison_panels import model_lines, models_depth_axis
from tokenlens.figures._comparison_rows import comparison_note, rows_of_models, shared_rows
from tokenlens.figures._model_labels import letter_of, model_labels
from tokenlens.figures._panels import zero_line
from tokenlens.figures.base import NothingToDraw, group_title, sort_groups
from tokenlens.figures.page import Canvas, new_figure, paper, styled
from tokenlens.figures.stage_split import STAGES, stack, stage_handles
from tokenlens.figures.style import FAINT, INK, PAPER, model_colour, model_look

KIND = "comparison"
TITLE = "Summary of the comparison"
ORDER = 200
CAPTION = (
    "(a) Cosines over depth around the norm before attention; (b) contributions of the norm's stages to the fall of "
    "the CLS–patch cosine, and (c) the fall of the cosine across each norm, both averaged over blocks (filled markers: "
    "the difference from the baseline is significant, Benjamini–Hochberg q < 0.05); (d) CKA between the models' final "
    "features."
)
METRICS = ("norm_differentiation", "cka")

PROFILES = (("before norm1", "cls-patch"), ("after norm1", "cls-patch"), ("after norm1", "patch-patch"))
WEIGHTS = {"means": 1.45, "stages": 1.25}
"""Relative widths of panels in a row of more than two."""

PROFILE, MEANS, SIMILARITY = "profile", "means", "similarity"


def frame(comparison: Comparison) -> pd.DataFrame:
    """Return the rows of all panels; the column ``part_of_figure`` is "profile", "means" or "similarity".

    Raises:
        NothingToDraw: if fewer than two models have norm_differentiation.
    """
    profile = compare_depth_profile.frame(comparison, sites="norm1")
    shown = [pair in PROFILES for pair in zip(profile["panel"], profile["group"], strict=True)]
    parts = [profile[shown].assign(part_of_figure=PROFILE), _means(comparison).assign(part_of_figure=MEANS)]
    try:
        parts.append(compare_similarity.frame(comparison).assign(part_of_figure=SIMILARITY))
    except NothingToDraw as reason:
        parts[0] = parts[0].assign(similarity_note=str(reason))
    found = pd.concat([part for part in parts if len(part)], ignore_index=True)
    return found[["part_of_figure", *(name for name in found if name != "part_of_figure")]]


def _means(comparison: Comparison) -> pd.DataFrame:
    """Return the mean over blocks of each stage of norm1 and norm2 and of their total; totals have ``significant``."""
    rows = rows_of_models(
        comparison, "norm_differentiation", parts=[*STAGES, "total"], sites=["norm1", "norm2"]
    ).rename(columns={"part": "stage"})
    rows = shared_rows(rows, ["site", "group"])
    keys = ["label", "model_number", "metric", "site", "group", "stage"]
    means = rows.groupby(keys, sort=False, as_index=False).agg(n=("n", "max"), unit=("unit", "first"))
    numbers = [
        _over_blocks(comparison.analyses[row.label], row.stage, row.site, row.group)
        for row in means.itertuples(index=False)
    ]
    means[["value", "ci_low", "ci_high"]] = np.array(numbers, dtype=float).reshape(-1, 3)
    found = comparison.summary
    found = found[(found["metric"] == "norm_differentiation") & (found["part"] == "total")]
    tested = found[["label", "site", "group", "test", "q", "significant"]].assign(stage="total")
    return means.merge(tested, on=["label", "site", "group", "stage"], how="left")


def _over_blocks(analysis: Analysis, stage: str, site: str, group: str) -> tuple[float, float, float]:
    """Return a stage's mean over blocks and images, with its 95 % interval if values per image were kept."""
    rows = analysis.select("norm_differentiation", part=stage, site=site, group=group)
    value = float(rows["value"].mean())
    kept = analysis.per_image
    if kept.shape[1] == 0 or len(kept) < 2:
        return value, np.nan, np.nan
    level = kept.columns.get_level_values
    chosen = level("metric") == "norm_differentiation"
    for name, wanted in (("part", stage), ("site", site), ("group", group)):
        chosen &= level(name) == wanted
    each = kept.loc[:, chosen].mean(axis=1).dropna().to_numpy(dtype=float)
    half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
    return value, value - float(half), value + float(half)


@styled
def plot(frame: pd.DataFrame) -> Figure:
    """Draw a new figure: (a) profiles, (b) stages, (c) differentiation, (d) similarity of features."""
    profile, means = (frame[frame["part_of_figure"] == part] for part in (PROFILE, MEANS))
    similarity = frame[frame["part_of_figure"] == SIMILARITY]
    profiles = [pair for pair in PROFILES if ((profile["panel"] == pair[0]) & (profile["group"] == pair[1])).any()]
    groups = [group for group in compare_similarity.GROUP_NAMES if (similarity["group"] == group).any()]
    split = means[means["group"] == "cls-patch"]
    pair = len(similarity) > 0 and compare_similarity.is_pair(similarity)
    last = ["pair"] if pair else [f"similarity{index}" for index in range(len(groups))]
    page, panels = _page(len(profiles), stages=len(split) > 0, last=last)
    names = model_labels(frame, lettered=True)
    letters = iter("abcd")

    letter = next(letters)
    low, high = _limits(profile)
    for index, (title, group) in enumerate(profiles):
        panel = panels[f"profile{index}"]
        inside = profile[(profile["panel"] == title) & (profile["group"] == group)]
        model_lines(panel, inside, "relative")
        models_depth_axis(panel, inside, "relative")
        zero_line(panel)
        panel.set_ylim(low, high)
        _title(panel, letter if index == 0 else "", title)
        panel.set_ylabel(f"{group_title(group)} cosine")
    if "stages" in panels:
        _stages(panels["stages"], split)
        _title(panels["stages"], next(letters), "stages of the norm")
    _dumbbells(panels["means"], means[means["stage"] == "total"])
    _title(panels["means"], next(letters), "differentiation")
    letter = next(letters)
    if "pair" in panels:
        compare_similarity.draw_pair(panels["pair"], similarity)
        _title(panels["pair"], letter, "final features")
    for index, group in enumerate(groups if "pair" not in panels else []):
        panel = panels[f"similarity{index}"]
        side = 26.0 / max(similarity["number_1"].nunique(), 1)
        rows = similarity[similarity["group"] == group]
        compare_similarity.matrix(panel, rows, compare_similarity.similarity_names(similarity), side)
        _title(panel, letter if index == 0 else "", f"{compare_similarity.GROUP_NAMES[group]}, CKA")
    page.legend(names.handles())
    note = "bands and bars: 95 % interval · b, c: mean over blocks; filled: q < 0.05"
    if len(similarity) == 0 and "similarity_note" in frame:
        note += f" · {frame['similarity_note'].dropna().iloc[0]}"
    comparison_note(page, frame[frame["part_of_figure"] != SIMILARITY], note)
    return page.figure


def _page(profiles: int, *, stages: bool, last: list[str]) -> tuple[Canvas, dict[str, Axes]]:
    """Create the panels that have something to show, by name: in two rows, or in pairs if the figure is narrow."""
    top = [f"profile{index}" for index in range(profiles)]
    if paper().narrow:
        half = [*top, *(["stages"] if stages else [])]
        rows = [half[i : i + 2] for i in range(0, len(half), 2)] + [["means"]] + ([last] if last else [])
        heights = [30.0] * (len(rows) - 1) + [40.0 if len(last) > 1 else 24.0 if last else 26.0]
    else:
        rows = [top, [*(["stages"] if stages else []), "means", *last]]
        heights = [40.0, 46.0]
    figure = new_figure(16 + sum(heights))
    lines = figure.add_gridspec(len(rows), 1, height_ratios=heights)
    panels: dict[str, Axes] = {}
    for index, row in enumerate(rows):
        widths = [WEIGHTS.get(name, 1.0) if len(row) > 2 else 1.0 for name in row]
        line = lines[index].subgridspec(1, len(row), width_ratios=widths)
        for column, name in enumerate(row):
            panels[name] = figure.add_subplot(line[0, column])
    return Canvas(figure, np.array([list(panels.values())], dtype=object), new=True), panels


def _title(panel: Axes, letter: str, text: str) -> None:
    panel.set_title(f"{letter}  {text}" if letter else text)


def _limits(rows: pd.DataFrame) -> tuple[float, float]:
    """Return common y limits for all profiles, with a margin."""
    values = rows[["value", "ci_low", "ci_high"]].to_numpy(dtype=float)
    low, high = min(float(np.nanmin(values)), 0.0), max(float(np.nanmax(values)), 0.0)
    space = 0.04 * (high - low) or 0.1
    return low - space, high + space


def _dumbbells(panel: Axes, rows: pd.DataFrame) -> None:
    """Draw the models' means on one line per norm and pair of groups; hollow if not different from the baseline."""
    order = [(site, group) for group in sort_groups(rows["group"]) for site in sorted(rows["site"].unique())]
    order = [pair for pair in order if ((rows["site"] == pair[0]) & (rows["group"] == pair[1])).any()]
    numbers = sorted(rows["model_number"].unique())
    aside = {number: (index - (len(numbers) - 1) / 2) * 0.44 / len(numbers) for index, number in enumerate(numbers)}
    for y, (site, group) in enumerate(order):
        inside = rows[(rows["site"] == site) & (rows["group"] == group)]
        panel.hlines(y, inside["value"].min(), inside["value"].max(), color=FAINT, linewidth=0.7, zorder=2)
        for row in inside.sort_values("model_number", ascending=False).itertuples(index=False):
            number, baseline = int(row.model_number), pd.isna(row.significant)
            at = y + aside[number]
            if np.isfinite(row.ci_low + row.ci_high):
                bar: dict[str, Any] = {"color": model_colour(number), "linewidth": 1.6, "alpha": 0.5, "zorder": 3}
                panel.hlines(at, row.ci_low, row.ci_high, **bar)
            look: dict[str, Any] = {**model_look(number), "linestyle": "none"}
            if not (baseline or bool(row.significant)):
                look["markerfacecolor"] = PAPER
            panel.plot([row.value], [at], zorder=4, **look)
    panel.set_yticks(range(len(order)), [f"{site}\n{group_title(group)}" for site, group in order])
    panel.set_ylim(len(order) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.axvline(0, color=INK, linewidth=0.6, zorder=1)
    panel.grid(axis="x")
    panel.set_xlabel("fall of the cosine")


def _stages(panel: Axes, rows: pd.DataFrame) -> None:
    """Draw stacked bars of the stages, one bar per model, first for norm1 and then for norm2."""
    numbers, norms = sorted(rows["model_number"].unique()), sorted(rows["site"].unique())
    ticks: dict[int, str] = {}
    for index, norm in enumerate(norms):
        first = index * (len(numbers) + 1)
        position = {number: first + index for index, number in enumerate(numbers)}
        inside = rows[rows["site"] == norm]
        stack(panel, inside.assign(bar=inside["model_number"].map(position)), x="bar")
        ticks |= {position[number]: letter_of(int(number)) for number in numbers}
        middle, above = first + (len(numbers) - 1) / 2, panel.get_xaxis_transform()
        panel.text(middle, 0.99, norm, transform=above, ha="center", va="top", fontsize="small")
    panel.set_xticks(list(ticks), list(ticks.values()))
    low, high = panel.get_ylim()
    panel.set_ylim(low, high + 0.14 * (high - low))
    panel.tick_params(axis="x", length=0)
    panel.grid(axis="y")
    zero_line(panel)
    panel.set_ylabel("fall of CLS–patch cosine")
    handles = stage_handles(rows)
    for handle in handles:
        handle.set_label(re.split(r" \(|:", str(handle.get_label()))[0].split(" ")[-1])  # "weight γ" is γ
    tight: dict[str, Any] = {"handlelength": 0.9, "handletextpad": 0.4, "columnspacing": 0.8, "borderpad": 0}
    panel.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.09), ncols=len(handles), **tight)
