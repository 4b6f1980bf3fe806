"""Image files in folders: which are found, in which order and under which name."""

import os
from pathlib import Path

import pytest

from tests.support.image_batches import read_names, shrink
from tests.support.image_files import encoded, picture
from tokenlens.images.decoding import UnreadableImageError
from tokenlens.images.files import RawImage, find_images, preview_names
from tokenlens.images.labelled.masks import read_mask
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


def test_pictures_in_other_formats_are_counted(folder: Path) -> None:
    assert find_images(folder).notes == []
    for name in ("one.HEIC", "b/two.heic", "b/three.mp4", ".four.heic"):
        (folder / name).write_bytes(b"")
    assert find_images(folder).notes == [
        "3 files in formats that are not read were left out (2 .heic, 1 .mp4), e.g. b/three.mp4; convert them to JPEG "
        "or PNG"
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert RawImage.from_file("pipe.png", tmp_path / "pipe.png").reason == "a pipe or a device, not a file"
    with pytest.raises(UnreadableImageError, match=r"the mask pipe\.png: a pipe or a device"):
        read_mask(tmp_path / "pipe.png")
