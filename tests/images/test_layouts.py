"""Data in the layout of another task are refused, with the layout's name and what fits it."""

from pathlib import Path

import pytest

from tests.support.image_files import encoded, picture, write_images, write_pets
from tokenlens.images.labelled import open_labelled, open_masks
from tokenlens.images.sources import open_images

OTHERS = {
    "JPEGImages SegmentationClass": "PASCAL VOC's own layout",
    "images/training images/validation annotations/training": "images with annotations, as in ADE20K",
    "leftImg8bit/train/aachen gtFine/train/aachen": "Cityscapes' own layout",
}


@pytest.fixture
def segmentation(tmp_path: Path) -> Path:
    """Our own layout of images with masks."""
    for split in ("train", "val"):
        write_images(tmp_path / split, {"images": 3, "masks": 3})
    (tmp_path / "classes.txt").write_text("sky\ngrass\n")
    return tmp_path


def test_masks_are_no_class(segmentation: Path) -> None:
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=r"images, masks where classes are expected: .* --task segmentation"):
            open_labelled(segmentation, split)  # type: ignore[arg-type]
    assert len(open_masks(segmentation)) == 3


def test_masks_are_no_photographs(segmentation: Path) -> None:
    with pytest.raises(ValueError, match=r"holds masks \(train/masks\) .* photographs alone \(train/images\)"):
        open_images(segmentation)
    assert open_images(segmentation / "train" / "images").total == 3


def test_masks_inside_class_folders_are_found(tmp_path: Path) -> None:
    write_images(tmp_path, {"bottle/train/good": 1, "bottle/ground_truth/broken": 1, "cable/train/good": 1})
    with pytest.raises(ValueError, match=r"holds masks \(bottle/ground_truth\) beside photographs"):
        open_labelled(tmp_path)


@pytest.mark.parametrize("folders", OTHERS)
def test_layouts_of_known_data_sets_are_named(tmp_path: Path, folders: str) -> None:
    write_images(tmp_path, dict.fromkeys(folders.split(), 2))
    with pytest.raises(ValueError, match=f"this is {OTHERS[folders]}; segmentation takes FOLDER/classes.txt"):
        open_labelled(tmp_path)
    with pytest.raises(ValueError, match=f"This is {OTHERS[folders]}, which has to be rearranged"):
        open_masks(tmp_path)
    with pytest.raises(ValueError, match=r"holds masks \((SegmentationClass|annotations|gtFine)\) beside photographs"):
        open_images(tmp_path)


@pytest.mark.parametrize(("folders", "layout"), [("train2017 val2017", "COCO's own layout"), ("Train Test", "splits")])
def test_splits_are_no_classes(tmp_path: Path, folders: str, layout: str) -> None:
    write_images(tmp_path, dict.fromkeys(folders.split(), 2))
    with pytest.raises(ValueError, match=f"this is {layout}"):
        open_labelled(tmp_path)


def test_classes_are_no_masks(tmp_path: Path) -> None:
    pets = write_pets(tmp_path)
    with pytest.raises(ValueError, match=r"only cat, dog, eel; .* a folder per class, which fits .* --task knn"):
        open_masks(pets)
    with pytest.raises(ValueError, match="a source of images and labels, but masks are read from folders alone"):
        open_masks(f"wds/{tmp_path}")


def test_a_class_may_be_called_mask(tmp_path: Path) -> None:
    write_images(tmp_path, {"mask": 2, "crane": 2})
    (tmp_path / "crane" / "late.png").write_bytes(encoded(picture(9)))
    assert open_labelled(tmp_path).classes == ("crane", "mask")
    assert open_images(tmp_path).total == 5
