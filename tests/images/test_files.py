"""Image files in folders: which are found, in which order and under which name."""

import os
from pathlib import Path

import pytest

from tests.support.image_batches import read_names, shrink
from tests.support.image_files import encoded, picture
from tokenlens.images.files import find_images, preview_names
from tokenlens.images.sources import open_images


def test_links_are_followed_once_and_capitals_count(folder: Path) -> None:
    (folder / "b" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "b" / "CAPITALS.PNG").write_bytes(encoded(picture(42)))
    names = find_images(folder).names
    assert len(names) == 12
    assert names == sorted(names)
    assert "b/CAPITALS.PNG" in names


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX alone")
def test_a_name_that_is_not_utf_8_is_made_printable(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(encoded(picture(1)))
    except OSError:
        pytest.skip("this file system accepts UTF-8 names only")
    assert read_names(open_images(tmp_path, transform=shrink)) == ["\\xff.png"]


def test_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images in .*; expected files that end in .*\.jpeg \.jpf \.jpg") as error:
        find_images(tmp_path)
    assert ".eps" not in str(error.value)


def test_long_lists_of_names_are_shortened() -> None:
    assert [preview_names(list("abcdefg"[:n])) for n in (0, 2, 6)] == ["none", "a, b", "a, b, c, d, e … (6 in total)"]
