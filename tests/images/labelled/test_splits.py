"""Class names are read with and without numbers."""

from pathlib import Path

import pytest

from tokenlens.images.labelled.splits import read_class_names


@pytest.mark.parametrize("text", ["sky\nbody of water\n", "0 sky\n1 body of water\n", "0: sky\n1: body of water\n\n"])
def test_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    assert read_class_names(tmp_path / "classes.txt") == ("sky", "body of water")


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("1 sky\n2 grass\n", "numbered 1, 2; expected 0, 1, 2")]
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_names(tmp_path / "classes.txt")
