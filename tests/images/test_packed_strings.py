"""Packed strings are a list of strings."""

import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenlens.images.packed_strings import PackedStrings


@settings(deadline=None, max_examples=50, database=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_they_are_a_list(texts: list[str]) -> None:
    strings = PackedStrings(texts)
    assert strings == texts
    assert [strings[index] for index in range(-len(texts), len(texts))] == texts + texts
    assert strings[1:] == texts[1:]
    assert pickle.loads(pickle.dumps(strings)) == strings == PackedStrings.from_arrays(strings.text, strings.ends)
    with pytest.raises(IndexError):
        strings[len(texts)]


def test_names_that_are_not_utf_8_keep_their_bytes() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert os.fsencode(PackedStrings([name])[0]) == b"caf\xe9.png"
