"""Tables come back exactly as they were written."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlens.storage.tables import read_table, select_rows


@settings(max_examples=50, deadline=None)
@given(numbers=st.lists(st.floats(width=64), min_size=1, max_size=8))
def test_every_float_comes_back_to_its_last_digit(numbers, tmp_path_factory):
    table = pd.DataFrame({"metric": "nan", "value": numbers})
    file = tmp_path_factory.mktemp("table") / "table.csv"
    table.to_csv(file, index=False)
    pd.testing.assert_frame_equal(
        read_table(file).astype({"value": "float64"}), table, check_exact=True, check_dtype=False
    )


def test_each_column_has_the_type_of_what_it_holds(tmp_path):
    table = pd.DataFrame(
        {
            "metric": ["NA", ""],
            "block": pd.array([0, pd.NA], dtype="Int64"),
            "value": [1.0, np.nan],
            "hits": [3, -4],
            "paired": [True, False],
        }
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    read = read_table(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(read, table.astype({"metric": read["metric"].dtype}))


def test_rows_are_selected_by_one_value_or_several():
    table = pd.DataFrame({"metric": ["a", "a", "b"], "block": [0, 1, 0]})
    assert len(select_rows(table, metric="a")) == 2
    assert select_rows(table, metric=["a", "b"], block=0)["metric"].tolist() == ["a", "b"]
    assert select_rows(table, metric="c").empty
