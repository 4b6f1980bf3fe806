"""Labelled images: what is held out, what the hash covers, and what a wrong source gets."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support.image_files import (
    encoded,
    files_below,
    picture,
    read_labels,
    read_seeds,
    write_images,
    write_pets,
    write_tar,
)
from tokenlens.images.decoding import UnreadableImageError
from tokenlens.images.labelled import open_labelled

DATA = os.environ.get("TOKENLENS_TEST_DATA")


def test_the_hash_covers_names_labels_and_classes(tmp_path: Path) -> None:
    folder = write_pets(tmp_path / "pets")

    def sha256() -> str:
        return str(open_labelled(folder).description["sha256"])

    first = sha256()
    write_tar(tmp_path / "pets.tar", files_below(folder))
    assert first == open_labelled(tmp_path / "pets.tar").description["sha256"]
    (folder / "train" / "dog" / "img1.png").rename(folder / "train" / "cat" / "img3.png")
    second = sha256()
    (folder / "train" / "eel").rename(folder / "train" / "fox")
    assert len({first, second, sha256()}) == 3


def test_images_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", {"": 4})
    images = open_labelled(tmp_path / "photos")
    assert (images.labels, images.classes, len(images)) == (None, (), 4)
    with pytest.raises(ValueError, match=r"the images of folder .*photos \(all\) have no labels; testing needs labels"):
        open_labelled(tmp_path / "photos", "test")


@pytest.mark.parametrize("form", ["classes", "train only"])
def test_a_tenth_is_held_out_where_there_is_no_test_split(form: str, tmp_path: Path) -> None:
    counts = {"a": 20, "b": 30, "c": 3, "d": 1}
    write_images(tmp_path / "images" / ("" if form == "classes" else "train"), counts)
    train, test = open_labelled(tmp_path / "images"), open_labelled(tmp_path / "images", "test")
    assert Counter(read_labels(test)) == {0: 2, 1: 3, 2: 1}  # at least one, but never the only one
    assert sorted(read_seeds(train) + read_seeds(test)) == list(range(54))
    assert "all but a tenth of each class" in train.description["split"]
    assert "a tenth of each class" in test.description["split"]
    assert open_labelled(tmp_path / "images", "test").names == test.names


def test_a_selection_has_its_own_description(tmp_path: Path) -> None:
    images = open_labelled(write_pets(tmp_path / "pets"))
    few = images.select(np.array([5, 0]), "two of them")
    assert (few.names, read_labels(few), read_seeds(few)) == (["eel/img0.png", "cat/img0.png"], [2, 0], [5, 0])
    assert (few.description["split"], few.description["count"]) == ("two of them", 2)
    assert few.description["sha256"] != images.description["sha256"]


def test_an_unreadable_image_says_why(tmp_path: Path) -> None:
    cats = write_pets(tmp_path / "pets") / "train" / "cat"
    (cats / "img0.png").write_bytes(b"broken")
    (cats / "img1.png").unlink()
    (cats / "img1.png").symlink_to("nowhere")
    (cats / "img2.png").write_bytes(encoded(picture(0, width=1, height=30000)))
    images = open_labelled(tmp_path / "pets")
    for index, reason in enumerate(["not an image that PIL can read", "No such file", "would exceed PIL's limit"]):
        with pytest.raises(UnreadableImageError, match=reason):
            images.read(index)


def test_wrong_sources(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"")
    for source, message in [
        (tmp_path / "none", r"there is no .*none; expected a folder of images, a \.tar of such a folder, wds/"),
        (tmp_path / "a.zip", r"a\.zip is an archive; unpack it and give the folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_labelled(source)
    with pytest.raises(ValueError, match="expected the split train or test, got 'val'"):
        open_labelled(tmp_path, "val")  # type: ignore[arg-type]


@pytest.mark.pretrained
@pytest.mark.skipif(DATA is None, reason="TOKENLENS_TEST_DATA is not set")
def test_tiny_imagenet_from_its_archive() -> None:
    assert DATA is not None
    source = Path(DATA) / "classification" / "tinyimagenet100_64px.tar"
    train, test = open_labelled(source), open_labelled(source, "test")
    assert (len(train), len(test), len(train.classes)) == (20000, 2500, 100)
    assert train.classes == test.classes
    for images, each in ((train, 200), (test, 25)):
        assert np.bincount(read_labels(images)).tolist() == [each] * 100
        for index in range(0, len(images), 997):
            assert images.names[index].startswith(images.classes[read_labels(images)[index]] + "/")
            assert images.read(index).size == (64, 64)
