"""Opening labelled images: every layout, its classes and splits, and what a wrong layout gets."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from tests.support.image_files import encoded, files_below, picture, write_images, write_tar
from tokenlens.images.decoding import UnreadableImageError
from tokenlens.images.labelled.classes import LabelledImages, held_out, open_labelled

DATA = os.environ.get("TOKENLENS_TEST_DATA")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes in train/ and two of them in val/."""
    root = tmp_path / "pets"
    write_images(root / "train", {"cat": 3, "dog": 2, "eel": 1})
    write_images(root / "val", {"cat": 1, "eel": 2}, first=50)
    return root


def seeds(images: LabelledImages) -> list[int]:
    """What each image says its seed is: the images that are read are those that are named."""
    return [images.read(index).getpixel((0, 0))[0] for index in range(len(images))]


def as_source(form: str, folder: Path, tmp_path: Path) -> str:
    """The same images as a folder, as archives with and without a folder around all."""
    if form == "folder":
        return str(folder)
    if form == "folder around":
        return str(folder.parent)
    prefix = {"tar": "", "tar of .": "./", "tar with a folder around": "pets/"}[form]
    write_tar(tmp_path / "pets.tar", files_below(folder, prefix))
    return str(tmp_path / "pets.tar")


@pytest.mark.parametrize("form", ["folder", "folder around", "tar", "tar of .", "tar with a folder around"])
def test_splits_and_classes_of_folders(form: str, folder: Path, tmp_path: Path) -> None:
    source = as_source(form, folder, tmp_path)
    train, test = open_labelled(source), open_labelled(source, "test")
    assert train.classes == test.classes == ("cat", "dog", "eel")
    assert train.names == [f"cat/img{i}.png" for i in range(3)] + ["dog/img0.png", "dog/img1.png", "eel/img0.png"]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert train.labels.dtype == np.int64
    assert seeds(train) == list(range(6))
    assert test.names == ["cat/img0.png", "eel/img0.png", "eel/img1.png"]
    assert test.labels is not None
    assert test.labels.tolist() == [0, 2, 2]  # by the classes of the training images
    assert seeds(test) == [50, 51, 52]
    assert train.description | {"source": "", "sha256": ""} == {
        "source": "",
        "split": "train",
        "count": 6,
        "classes": 3,
        "sha256": "",
    }
    assert "pets" in train.description["source"] or form == "folder around"
    assert test.description["split"] == "val"


def test_the_hash_tells_names_labels_and_classes(folder: Path, tmp_path: Path) -> None:
    def sha256() -> str:
        return str(open_labelled(folder).description["sha256"])

    first = sha256()
    assert first == open_labelled(as_source("tar", folder, tmp_path)).description["sha256"]
    (folder / "train" / "dog" / "img1.png").rename(folder / "train" / "cat" / "img3.png")
    second = sha256()
    (folder / "train" / "eel").rename(folder / "train" / "fox")
    assert len({first, second, sha256()}) == 3


def test_images_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", {"": 4})
    images = open_labelled(tmp_path / "photos")
    assert (images.labels, images.classes, len(images)) == (None, (), 4)
    with pytest.raises(ValueError, match=r"the images of folder .*photos \(all\) have no labels to test against"):
        open_labelled(tmp_path / "photos", "test")


@pytest.mark.parametrize("form", ["classes", "train only"])
def test_a_tenth_is_held_out_where_there_is_no_test_split(form: str, tmp_path: Path) -> None:
    counts = {"a": 20, "b": 30, "c": 3, "d": 1}
    write_images(tmp_path / "images" / ("" if form == "classes" else "train"), counts)
    train, test = open_labelled(tmp_path / "images"), open_labelled(tmp_path / "images", "test")
    assert test.labels is not None
    assert Counter(test.labels.tolist()) == {0: 2, 1: 3, 2: 1}  # at least one, but never the only one
    assert sorted(seeds(train) + seeds(test)) == list(range(54))
    assert "all but a tenth of each class" in train.description["split"]
    assert "a tenth of each class" in test.description["split"]
    assert open_labelled(tmp_path / "images", "test").names == test.names
    assert held_out(np.repeat([0, 1], [20, 30])).tolist() == held_out(np.repeat([0, 1], [20, 30])).tolist()


def test_an_unreadable_image_says_why(folder: Path) -> None:
    (folder / "train" / "cat" / "img0.png").write_bytes(b"broken")
    (folder / "train" / "cat" / "img1.png").unlink()
    (folder / "train" / "cat" / "img1.png").symlink_to("nowhere")
    (folder / "train" / "cat" / "img2.png").write_bytes(encoded(picture(0, width=1, height=30000)))
    images = open_labelled(folder)
    for index, reason in enumerate(["not an image that PIL can read", "No such file", "would exceed PIL's limit"]):
        with pytest.raises(UnreadableImageError, match=reason):
            images.read(index)


def remove(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("wrong", "split", "message"),
    [
        (lambda root: remove(root / "train"), "train", r"no split train in folder .*pets, only val; expected"),
        (lambda root: remove(root / "train" / "dog"), "train", None),
        (lambda root: (root / "train" / "fox").mkdir(), "train", r"train, has folders without images: fox; expected a"),
        (
            lambda root: write_images(root / "val", {"fox": 1}),
            "test",
            r"val, has classes that the training images do not have: fox; expected some of cat, dog, eel",
        ),
        (
            lambda root: write_images(root / "train", {"": 2}),
            "train",
            r"train, has 2 images outside of class folders, e\.g\. img0\.png; expected a folder for each class \(cat",
        ),
        (lambda root: [remove(root / "train"), (root / "train").mkdir()], "train", r"no images in .*train or below it"),
        (lambda root: [remove(root / "train"), remove(root / "val")], "train", r"no images in .*pets or below it"),
    ],
)
def test_wrong_folders(folder: Path, wrong, split: str, message: str | None) -> None:
    wrong(folder)
    if message is None:
        assert open_labelled(folder, split).classes == ("cat", "eel")
        return
    with pytest.raises(ValueError, match=message):
        open_labelled(folder, split)


def test_wrong_sources(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"")
    for source, message in [
        (tmp_path / "none", r"there is no .*none; images for training are a folder of images, a \.tar of one, wds/"),
        (tmp_path / "a.zip", r"a\.zip is a file; images for training are a folder"),
        (f"wds/{tmp_path}/none-{{00..01}}.tar", r"no webdataset shard at .*none-00\.tar and 1 more"),
        ("wds/https://example.org/shard-{00..01}.tar", r"https://example\.org/shard-00\.tar is not on this machine"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_labelled(source)
    with pytest.raises(ValueError, match="a split is train or test, got 'val'"):
        open_labelled(folder, "val")  # type: ignore[arg-type]


# Shards


def write_samples(path: Path, labels: list[int], first: int) -> None:
    files: dict[str, bytes] = {}
    for number, label in enumerate(labels):
        files[f"{number:03d}.png"] = encoded(picture(first + number))
        files[f"{number:03d}.cls"] = str(label).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(path, files)


@pytest.mark.parametrize("form", ["names", "folders"])
def test_shards_that_say_their_split(form: str, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    place = {"names": "set-{}-{}.tar", "folders": "{}/{}.tar"}[form]
    write_samples(tmp_path / "set" / place.format("train", "000"), [0, 2, 1], 0)
    write_samples(tmp_path / "set" / place.format("train", "001"), [2, 2], 3)
    write_samples(tmp_path / "set" / place.format("validation", "000"), [1, 0], 5)
    train, test = open_labelled(f"wds/{tmp_path}/set"), open_labelled(f"wds/{tmp_path}/set", "test")
    assert train.labels is not None
    assert test.labels is not None
    assert (seeds(train), train.labels.tolist()) == (list(range(5)), [0, 2, 1, 2, 2])
    assert (seeds(test), test.labels.tolist()) == ([5, 6], [1, 0])
    assert train.classes == test.classes == ("0", "1", "2")
    assert train.names[3].endswith("001.tar/000.png")
    assert train.description["split"] == "train, 2 shards"
    (tmp_path / "set" / "classes.txt").write_text("cat\ndog\neel\n")
    assert open_labelled(f"wds/{tmp_path}/set", "test").classes == ("cat", "dog", "eel")
    (tmp_path / "set" / "classes.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"4 of 5 images of webdataset .*001\.png: 2; expected 0 to 0"):
        open_labelled(f"wds/{tmp_path}/set")


def test_shards_of_one_split_hold_a_tenth_out(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_samples(tmp_path / "part-0.tar", [0] * 10 + [1] * 10, 0)
    write_samples(tmp_path / "part-1.tar", [0] * 10, 20)
    source = f"wds/{tmp_path}/part-{{0..1}}.tar"
    train, test = open_labelled(source), open_labelled(source, "test")
    assert test.labels is not None
    assert sorted(test.labels.tolist()) == [0, 0, 1]
    assert sorted(seeds(train) + seeds(test)) == list(range(30))
    assert test.description["split"].startswith("all, 2 shards, a tenth of each class")


def test_wrong_shards(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_samples(tmp_path / "set-train-0.tar", [0, 1], 0)
    write_samples(tmp_path / "more.tar", [0, 1], 2)
    with pytest.raises(ValueError, match=r"some shards of .* say their split in their names \(.*-0\.tar\), others"):
        open_labelled(f"wds/{tmp_path}")
    write_tar(tmp_path / "more.tar", {"a.png": encoded(picture(0)), "b.png": b"", "b.cls": b"1"})
    with pytest.raises(ValueError, match=r"1 of 2 images of .* have no class .*more\.tar/a\.png: -1; expected 0 to 1"):
        open_labelled(f"wds/{tmp_path}/more.tar")
    write_tar(tmp_path / "more.tar", {"a.png": encoded(picture(0)), "b.png": b""})
    assert open_labelled(f"wds/{tmp_path}/more.tar").labels is None


# Hugging Face data sets


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Caches of the test's own, and no network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.usefixtures("offline")
def test_hugging_face_folder(folder: Path) -> None:
    write_images(folder / "val", {"dog": 1}, first=60)  # datasets finds the classes of each split by itself
    train, test = open_labelled(f"hfds/{folder}"), open_labelled(f"hfds/{folder}", "test")
    assert train.classes == test.classes == ("cat", "dog", "eel")
    expected = open_labelled(folder)
    assert seeds(train) == seeds(expected)
    assert train.labels is not None
    assert expected.labels is not None
    assert train.labels.tolist() == expected.labels.tolist()
    assert test.description["split"] == "validation"
    assert train.names[4] == "train[4]"
    named = open_labelled(f"hfds/{folder}:train", "test")
    assert len(named) == 2
    assert "a tenth of each class (it has no test split" in named.description["split"]


@pytest.mark.usefixtures("offline")
def test_hugging_face_data_set_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    def saved(labels: list[int | None], kind: object) -> datasets.Dataset:
        rows = {"fine": labels, "image": [{"bytes": encoded(picture(i)), "path": None} for i in range(len(labels))]}
        return datasets.Dataset.from_dict(rows, features=datasets.Features(fine=kind, image=datasets.Image()))

    kind = datasets.ClassLabel(names=["cat", "dog"])
    datasets.DatasetDict(train=saved([0, 1, 1], kind), test=saved([-1, -1], kind)).save_to_disk(tmp_path / "one")
    images = open_labelled(f"hfds/{tmp_path / 'one'}")
    assert images.labels is not None
    assert (images.labels.tolist(), images.classes, seeds(images)) == ([0, 1, 1], ("cat", "dog"), [0, 1, 2])
    with pytest.raises(ValueError, match=r"one \(test\) have no labels to test against"):
        open_labelled(f"hfds/{tmp_path / 'one'}", "test")
    saved([0, None, 1], kind).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"1 of 3 images of .*two, split all have no class .*all\[1\]: -1"):
        open_labelled(f"hfds/{tmp_path / 'two'}")
    numbers = datasets.Value("int64")
    both = {"train": saved([0, 3], numbers), "test": saved([1], numbers)}
    both = {name: rows.rename_column("fine", "label") for name, rows in both.items()}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "three")
    assert open_labelled(f"hfds/{tmp_path / 'three'}", "test").classes == ("0", "1", "2", "3")
    saved([0, 1], datasets.Value("int64")).save_to_disk(tmp_path / "four")
    assert open_labelled(f"hfds/{tmp_path / 'four'}").labels is None  # numbers that nothing calls a label
    datasets.DatasetDict(test=saved([0], kind), extra=saved([0], kind)).save_to_disk(tmp_path / "five")
    with pytest.raises(ValueError, match=r"no split train in the data set .*five, only extra, test; expected train"):
        open_labelled(f"hfds/{tmp_path / 'five'}")


@pytest.mark.pretrained
@pytest.mark.skipif(DATA is None, reason="TOKENLENS_TEST_DATA is not set")
def test_tiny_imagenet_from_its_archive() -> None:
    assert DATA is not None
    source = Path(DATA) / "classification" / "tinyimagenet100_64px.tar"
    train, test = open_labelled(source), open_labelled(source, "test")
    assert (len(train), len(test), len(train.classes)) == (20000, 2500, 100)
    assert train.classes == test.classes
    for images, each in ((train, 200), (test, 25)):
        assert images.labels is not None
        assert np.bincount(images.labels).tolist() == [each] * 100
        for index in range(0, len(images), 997):
            assert images.names[index].startswith(images.classes[images.labels[index]] + "/")
            assert images.read(index).size == (64, 64)
