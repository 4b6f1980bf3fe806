"""The share of each stage of norm1 in the fall of the CLS–patch cosine, as bars."""

from __future__ import annotations

from typing import NamedTuple

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.block_numbers import NumbersMissing, format_number, read_blocks
from tokenlens.analysis.rules import MIN_FALL
from tokenlens.figures.style import STAGE_COLOURS
from tokenlens.report.page_figures import page_colour
from tokenlens.storage.wording import counted

_TITLES = {"centring": "centring (x − μ)", "gamma": "weight γ", "beta": "bias β"}


class Bar(NamedTuple):
    """A bar from ``start`` to ``start + width``, in per cent of the axis, with its text."""

    title: str
    text: str
    start: float
    width: float
    colour: str


class Fall(NamedTuple):
    """The fall in one block: number, value, its text, and the height of its bar in per cent of the largest."""

    block: int
    value: float
    text: str
    height: float


class StageShares(NamedTuple):
    """Bars of the stages, the position of 0 in per cent of the axis, what the shares are of, and the fall by block."""

    bars: list[Bar]
    zero: float
    note: str
    falls: list[Fall]


def stage_shares(analysis: Analysis) -> StageShares | None:
    """Return the stages of norm1 in per cent of the fall, means over blocks; None without numbers.

    Where the fall is below ``MIN_FALL`` a share of it says nothing, and the bars are cosines.
    """
    metric, group = "norm_differentiation", "cls-patch"
    try:
        total = read_blocks(analysis, metric, "total", group)
    except NumbersMissing:
        return None
    stages = {part: read_blocks(analysis, metric, part, group, optional=True) for part in _TITLES}
    fall = float(total[0].mean())
    values = {part: float(numbers[0].mean()) for part, numbers in stages.items() if numbers is not None}
    relative = fall >= MIN_FALL
    if relative:
        values = {part: 100 * value / fall for part, value in values.items()}
    low, high = min(0.0, *values.values()), max(0.0, *values.values())
    span = (high - low) or 1.0
    bars = [
        Bar(
            _TITLES[part],
            f"{value:.0f} %".replace("-", "−") if relative else format_number(value),
            round(100 * (min(value, 0.0) - low) / span, 2),
            round(100 * abs(value) / span, 2),
            page_colour(STAGE_COLOURS[part]),
        )
        for part, value in values.items()
    ]
    where = f"mean over {counted(total.shape[1], 'block')}"
    what = f"of the fall of {format_number(fall)}" if relative else "in cosine: the fall is too small for shares"
    note = f"{what}, {where}; division by σ changes no cosine"
    return StageShares(bars, round(-100 * low / span, 2), note, _falls(analysis))


def _falls(analysis: Analysis) -> list[Fall]:
    rows = analysis.select("norm_differentiation", part="total", site="norm1", group="cls-patch").sort_values("block")
    largest = float(rows["value"].abs().max()) or 1.0
    return [
        Fall(int(block), float(value), format_number(float(value)), round(100 * abs(float(value)) / largest, 1))
        for block, value in zip(rows["block"], rows["value"], strict=True)
    ]
