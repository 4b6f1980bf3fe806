"""Opening images: folders, files, limits, and wrong input."""

import hashlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.image_batches import collect, read_all, read_names, shrink
from tests.support.image_files import write_tar
from tokenlens.images.sources import open_images

BROKEN = {
    "a/empty.png": "empty file",
    "b/deep/truncated.jpg": "truncated",
    "z<script>alert(1)<script>.jpeg": "not an image that PIL can read",
}


def test_a_folder_is_sorted_and_hashed_and_its_broken_images_are_named(folder: Path) -> None:
    source = open_images(folder, transform=shrink)
    batches = read_all(source)
    names = collect(batches, "names")
    assert source.total == 11
    assert str(folder) in source.description
    assert names == [f"a/img{i}.png" for i in (0, 2, 4, 6)] + [f"b/img{i}.png" for i in (1, 3, 5, 7)]
    assert collect(batches, "indices") == [1, 2, 3, 4, 6, 7, 8, 9]
    assert collect(batches, "hashes") == [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    for batch in batches:
        assert batch.images.dtype == torch.float32
        for image, name in zip(batch.images, batch.names, strict=True):
            assert torch.equal(image, shrink(Image.open(folder / name)))
    assert {item["name"] for item in source.skipped} == BROKEN.keys()
    for item in source.skipped:
        assert BROKEN[item["name"]] in item["reason"]
        assert "0x" not in item["reason"]  # no memory address: the same text every time
        assert "\n" not in item["reason"]


def test_limit_is_a_seeded_subset_in_order_and_described(folder: Path) -> None:
    chosen = [read_names(open_images(folder, transform=shrink, limit=5, seed=seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert chosen[0] != chosen[2]
    source = open_images(folder, transform=shrink, limit=5, seed=1)
    assert source.total == 5
    assert "a random 5 of 11 images (seed 1)" in source.description
    assert set(collect(read_all(source), "indices")) <= set(range(5))
    everything = open_images(folder, transform=shrink, limit=50)
    assert everything.total == 11
    assert "random" not in everything.description


def test_single_file_and_default_transform(folder: Path) -> None:
    (batch,) = read_all(open_images(folder / "a" / "img0.png"))
    assert batch.names == ["img0.png"]
    assert batch.images.shape == (1, 3, 224, 224)
    assert read_all(open_images(str(folder / "a" / "img0.png"), image_size=(32, 48)))[0].images.shape == (1, 3, 32, 48)


def test_missing_paths_and_archives(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*nowhere; expected a folder of images, an image file"):
        open_images(tmp_path / "nowhere")
    write_tar(tmp_path / "shard.tar", {})
    with pytest.raises(ValueError, match="to read it as a webdataset shard, write wds/"):
        open_images(tmp_path / "shard.tar")


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_limit_must_be_a_number_of_images(folder: Path, limit: object) -> None:
    with pytest.raises(ValueError, match="limit must be a whole number of images, at least 1"):
        open_images(folder, limit=limit)  # type: ignore[arg-type]


def test_a_list_of_files(folder: Path) -> None:
    paths = [folder / "b" / "img1.png", folder / "a" / "img0.png"]
    source = open_images([str(path) for path in paths], transform=shrink)
    assert source.description == "list of 2 files"
    assert read_names(source) == [str(path) for path in paths]
    with pytest.raises(ValueError, match=r"list of 3 files: there is no file nowhere\.png"):
        open_images([*paths, "nowhere.png"])


def test_a_list_in_a_file_and_a_pattern(folder: Path) -> None:
    (folder / "list.txt").write_text("b/img1.png\n\na/img0.png\n")
    listed = open_images(folder / "list.txt", transform=shrink)
    assert read_names(listed) == [str(folder / "b/img1.png"), str(folder / "a/img0.png")]
    assert listed.description == f"list {folder / 'list.txt'} of 2 files"
    (folder / "a" / "notes.md").write_text("")
    found = open_images(f"{folder}/**/*", transform=shrink)
    assert read_names(found) == [f"{folder}/{name}" for name in read_names(open_images(folder, transform=shrink))]
    assert len(found.notes) == 1
    assert found.notes[0].startswith("3 files that match the pattern but are no images were left out: ")
    assert read_names(open_images(f"{folder}/b/*1.png", transform=shrink)) == [str(folder / "b/img1.png")]


def test_several_data_sets_are_not_one(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"by name \(train, test\); give one of them, e\.g\. images\['train'\]"):
        open_images({"train": [1], "test": [2]})  # type: ignore[arg-type]


def test_seeds_have_a_range(folder: Path) -> None:
    for seed in (-1, 2**32, True, 1.5):
        with pytest.raises(ValueError, match="a seed is a whole number from 0 to 4294967295"):
            open_images(folder, seed=seed)  # type: ignore[arg-type]
