"""Class folders on disk and in archives: their splits and classes, and what a wrong layout gets."""

from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest

from tests.support.image_files import files_below, read_labels, read_seeds, write_images, write_pets, write_tar
from tokenlens.images.labelled import open_labelled


def as_source(form: str, folder: Path) -> Path:
    """Return the same images as a folder or as an archive, with and without a folder around everything."""
    if form == "folder":
        return folder
    if form == "folder around":
        return folder.parent
    prefix = {"tar": "", "tar of .": "./", "tar with a folder around": "pets/"}[form]
    write_tar(folder.parent / "pets.tar", files_below(folder, prefix))
    return folder.parent / "pets.tar"


@pytest.mark.parametrize("form", ["folder", "folder around", "tar", "tar of .", "tar with a folder around"])
def test_splits_and_classes(form: str, tmp_path: Path) -> None:
    source = as_source(form, write_pets(tmp_path / "pets"))
    train, test = open_labelled(source), open_labelled(source, "test")
    assert train.classes == test.classes == ("cat", "dog", "eel")
    assert train.names == [f"cat/img{i}.png" for i in range(3)] + ["dog/img0.png", "dog/img1.png", "eel/img0.png"]
    assert read_labels(train) == [0, 0, 0, 1, 1, 2]
    assert train.labels is not None
    assert train.labels.dtype == np.int64
    assert read_seeds(train) == list(range(6))
    assert test.names == ["cat/img0.png", "eel/img0.png", "eel/img1.png"]
    assert read_labels(test) == [0, 2, 2]  # by the classes of the training images
    assert read_seeds(test) == [50, 51, 52]
    description = {key: train.description[key] for key in ("split", "count", "classes")}
    assert description == {"split": "train", "count": 6, "classes": 3}
    assert "pets" in train.description["source"] or form == "folder around"
    assert test.description["split"] == "val"


@pytest.mark.parametrize(
    ("damage", "split", "message"),
    [
        (lambda root: rmtree(root / "train"), "train", r"no split train in folder .*pets, only val; expected"),
        (lambda root: (root / "train" / "fox").mkdir(), "train", r"train, has folders without images: fox; expected o"),
        (lambda root: write_images(root / "val", {"fox": 1}), "test", "images do not have: fox; expected some of"),
        (lambda root: write_images(root / "train", {"": 2}), "train", r"2 images outside of class folders, e\.g\. img"),
        (lambda root: [rmtree(root / "train"), (root / "train").mkdir()], "train", r"no images in .*train or its sub"),
        (lambda root: [rmtree(root / "train"), rmtree(root / "val")], "train", r"no images in .*pets or its subfolder"),
    ],
)
def test_wrong_folders(tmp_path: Path, damage, split: str, message: str) -> None:
    folder = write_pets(tmp_path / "pets")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        open_labelled(folder, split)
