"""Images with masks: what is read is what was written, and errors say what is wrong with a folder or a mask."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.image_files import encoded, picture, png
from tokenlens.images.decoding import UnreadableImageError
from tokenlens.images.labelled.masks import open_masks, read_mask

DATA = os.environ.get("TOKENLENS_TEST_DATA")

MASK_HW = np.array([[0, 1, 2, 255]] * 3, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 2)):
        for part in ("images", "masks"):
            (tmp_path / split / part).mkdir(parents=True)
        for number in range(count):
            (tmp_path / split / "images" / f"{number}.jpg").write_bytes(encoded(picture(number, 4, 3), "JPEG"))
            (tmp_path / split / "masks" / f"{number}.png").write_bytes(encoded(Image.fromarray(MASK_HW)))
    (tmp_path / "classes.txt").write_text("sky\ngrass\nbody of water\n")
    return tmp_path


def test_images_and_their_masks(folder: Path) -> None:
    train, test = open_masks(folder), open_masks(folder, "test")
    assert (len(train), len(test)) == (3, 2)
    assert train.names == ["0.jpg", "1.jpg", "2.jpg"]
    assert train.classes == ("sky", "grass", "body of water")
    image, mask_HW = train.read(1)
    assert image.mode == "RGB"
    assert image.size == (4, 3)
    assert mask_HW.dtype == np.uint8
    assert np.array_equal(mask_HW, MASK_HW)
    described = {"source": f"folder {folder}", "split": "val", "count": 2, "classes": 3}
    assert test.description == described | {"sha256": test.description["sha256"]}
    assert train.description["sha256"] != test.description["sha256"]


def palette() -> Image.Image:
    image = Image.fromarray(MASK_HW).convert("P")
    image.putdata(MASK_HW.ravel().tolist())
    image.putpalette(np.random.RandomState(0).randint(0, 256, 768).tolist())  # colours, as in VOC
    return image


def test_a_mask_is_grey_levels_or_palette_indices(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    for image in (Image.fromarray(MASK_HW), palette(), Image.fromarray(MASK_HW.astype(np.uint16))):
        image.save(path)
        assert np.array_equal(read_mask(path), MASK_HW)
    Image.fromarray(MASK_HW == 1).save(path)  # 1 bit
    assert np.array_equal(read_mask(path), MASK_HW == 1)
    for bits, row in ((2, b"\x1b"), (4, b"\x01\x23")):  # PIL cannot write these
        path.write_bytes(png(4, 1, bits, 0, b"\0" + row))
        assert np.array_equal(read_mask(path), [[0, 1, 2, 3]])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.fromarray(MASK_HW[:2]), r"the mask 0\.png has 4×2 pixels, but its image has 4×3; expected the same"),
        (Image.fromarray(MASK_HW + np.uint8(3)), r"contains 3, 4, 5, but there are 3 classes; expected 0 to 2, or 255"),
        (Image.fromarray(MASK_HW).convert("RGB"), r"mask 0\.png has colours \(PIL mode RGB\); expected one channel"),
        (Image.fromarray(MASK_HW.astype(np.uint16) * 2), r"mask 0\.png contains 510; expected values from 0 to 255"),
    ],
)
def test_a_wrong_mask_is_an_error(folder: Path, mask: Image.Image, message: str) -> None:
    mask.save(folder / "train" / "masks" / "0.png")
    with pytest.raises(ValueError, match=message) as caught:
        open_masks(folder).read(0)
    assert not isinstance(caught.value, UnreadableImageError)  # which would be skipped


def test_a_broken_file_is_unreadable(folder: Path) -> None:
    (folder / "train" / "masks" / "0.png").write_bytes(encoded(Image.fromarray(MASK_HW))[:-40])
    (folder / "train" / "images" / "1.jpg").write_bytes(b"broken")
    (folder / "train" / "masks" / "2.png").write_bytes(b"")
    images = open_masks(folder)
    for index, reason in ((0, r"the mask 0\.png: "), (1, "not an image that PIL can read"), (2, r"the mask 2\.png: ")):
        with pytest.raises(UnreadableImageError, match=reason):
            images.read(index)


def moved(path: str, to: str):
    return lambda root: (root / path).rename(root / to)


@pytest.mark.parametrize(
    ("change", "split", "message"),
    [
        (moved("train", "training"), "train", r"no split train in folder .*, only val; expected train and one of val"),
        (moved("val", "other"), "test", r"no test folder in .*, only train; expected FOLDER/classes\.txt"),
        (moved("train/masks", "train/annotations"), "train", r"no folder masks in .*train, only annotations, images"),
        (moved("train/images", "train/pictures"), "train", r"no folder images in .*train, only masks, pictures"),
        (moved("classes.txt", "names.txt"), "train", r"no classes\.txt in .*, with one class name per line"),
        (moved("train/images/0.jpg", "0.jpg"), "train", r"1 masks in .*train have no image: 0\.png; expected images"),
        (moved("train/masks/0.png", "0.png"), "train", r"1 images in .*train have no mask: 0\.jpg; expected images"),
        (moved("train/masks/0.png", "train/masks/0.jpg"), "train", r"masks in .*train are not PNG files: 0\.jpg"),
        (moved("train/images/0.jpg", "train/images/1.png"), "train", r"images has 1\.jpg and 1\.png; expected one"),
    ],
)
def test_wrong_folders(folder: Path, change, split: str, message: str) -> None:
    change(folder)
    with pytest.raises(ValueError, match=message):
        open_masks(folder, split)


def test_folders_without_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*none; expected images with masks as FOLDER"):
        open_masks(tmp_path / "none")
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"no folder train in .*, only images; expected FOLDER/classes"):
        open_masks(tmp_path)


@pytest.mark.pretrained
@pytest.mark.skipif(DATA is None, reason="TOKENLENS_TEST_DATA is not set")
def test_msrc() -> None:
    assert DATA is not None
    seen: set[int] = set()
    for split, count in (("train", 356), ("test", 235)):
        images = open_masks(Path(DATA) / "segmentation" / "msrc", split)  # type: ignore[arg-type]
        assert (len(images), len(images.classes)) == (count, 21)
        assert images.classes[2] == "tree"
        for index in range(count):
            _, mask_HW = images.read(index)
            seen |= set(np.unique(mask_HW).tolist())
    assert seen == {*range(21), 255}
