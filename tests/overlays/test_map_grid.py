"""Maps in rows and columns, and the scale that they share."""

import numpy as np
import pytest

from tokenlens.overlays.map_grid import MapGrid, quantile_limits, shared_limits


def grid(maps: np.ndarray, **options) -> MapGrid:
    settings = {"titles": tuple(f"block {i}" for i in range(len(maps))), "columns": len(maps), "quantity": "x"}
    return MapGrid("a.jpg", "vit", np.zeros((8, 8, 3)), maps, **settings | options)


def test_the_frame_has_a_row_per_map():
    maps = np.arange(16.0).reshape(4, 2, 2)
    frame = grid(maps, titles=("a", "b", "a", "b"), columns=2, rows=("before", "after")).frame()
    assert frame["row"].tolist() == ["before", "before", "after", "after"]
    assert frame["title"].tolist() == ["a", "b", "a", "b"]
    assert frame["mean"].tolist() == [1.5, 5.5, 9.5, 13.5]
    assert frame["max"].tolist() == [3, 7, 11, 15]


def test_a_title_per_map_is_needed():
    with pytest.raises(ValueError, match="expected 2 titles, one per map, got 1"):
        grid(np.zeros((2, 2, 2)), titles=("a",))


def test_signed_maps_share_a_scale_around_zero():
    grids = [grid(np.full((1, 2, 2), value), signed=True) for value in (0.1, -0.374)]
    assert shared_limits(grids) == (-0.38, 0.38)
    assert shared_limits([grid(np.full((1, 2, 2), 1.0000002), signed=True)]) == (-1, 1)


def test_other_scales_leave_out_outliers_and_their_ends_are_short_numbers():
    values = np.concatenate([np.linspace(0.9, 1.23, 999), [50]])
    assert quantile_limits(values) == (0.9, 1.3)
    assert quantile_limits(np.linspace(0, 8.37, 1000)) == (0, 8.4)
