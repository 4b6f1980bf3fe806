"""Data sets of PyTorch, with items of every form."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from tests.support.image_batches import SIZE, collect, equal, merge_ranks, read_all, read_names, shrink
from tests.support.image_files import picture
from tokenlens.images.sources import open_images


class Items(Dataset[Any]):
    """Six images in one of several forms, the third unreadable."""

    def __init__(self, form: str) -> None:
        self.form = form

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            raise OSError("image file is truncated")
        image, tensor = picture(index), shrink(picture(index))
        return {
            "image": image,
            "tensor": tensor,
            "tuple": (image, 3),
            "list": [tensor, 3],
            "dict": {"image": image, "label": 3},
            "pixels": {"pixel_values": tensor},
            "photo": {"photo": image, "label": torch.tensor(3)},
            "photos": {"left": image, "right": image},
            "text": "a.png",
            "bytes": torch.zeros(3, SIZE, SIZE, dtype=torch.uint8),
            "label": {"label": 3},
            "sizes": torch.zeros(3, SIZE, SIZE + index),
        }[self.form]


@pytest.mark.parametrize("form", ["image", "tensor", "tuple", "list", "dict", "pixels", "photo"])
def test_data_sets_of_every_form(form: str) -> None:
    source = open_images(Items(form), transform=shrink, image_size=(SIZE, SIZE))
    batches = read_all(source, workers=int(form == "dict"))
    assert collect(batches, "indices") == [0, 1, 3, 4, 5]
    assert collect(batches, "names")[0] == "item 0"
    torch.testing.assert_close(batches[0].images[0], shrink(picture(0)))
    assert source.skipped == [{"name": "item 2", "reason": "image file is truncated"}]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("text", "^item 0 of the data set is no image but the text .*; expected a PIL image"),
        ("label", "^item 0 of the data set is no image but a dict with "),
        (
            "photos",
            "^item 0 of the data set is no image but a dict with left, right; expected .* a dict with one image",
        ),
        ("bytes", r"^item 0 must hold preprocessed floating-point numbers, got torch\.uint8"),
        ("sizes", r"^the images of a batch differ in shape: item 0 has \(3, 16, 16\), item 1 has \(3, 16, 17\)"),
    ],
)
def test_data_sets_that_hold_no_images(form: str, message: str, workers: int) -> None:
    with pytest.raises(ValueError, match=message):
        read_all(open_images(Items(form), transform=shrink), workers=workers)


def test_torchvision_folder_keeps_its_file_names(folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    source = open_images(ImageFolder(folder), transform=shrink)
    names = read_names(source)
    assert names == [f"a/img{i}.png" for i in (0, 2, 4, 6)] + [f"b/img{i}.png" for i in (1, 3, 5, 7)]
    assert [item["name"] for item in source.skipped] == ["a/empty.png", "b/deep/truncated.jpg"]


class Stream(IterableDataset[Any]):
    """Seven images, one after the other."""

    def __iter__(self) -> Iterator[Any]:
        yield from ((picture(index), index) for index in range(7))


def test_iterable_data_sets_are_read_once_in_order() -> None:
    source = open_images(Stream(), transform=shrink)
    assert source.total is None
    batches = read_all(source, 2)
    assert collect(batches, "indices") == list(range(7))
    assert equal(read_all(source, 2, workers=3), batches)
    assert collect(read_all(source, 2, rank=1, world_size=2), "indices") == [2, 3, 6]
    assert equal(merge_ranks(source, 2, 2), batches)
    first = open_images(Stream(), transform=shrink, limit=3)
    assert "the first 3 images" in first.description
    assert collect(read_all(first, 2), "indices") == [0, 1, 2]


def test_tensor() -> None:
    images = torch.randn(7, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    source = open_images(images, image_size=(SIZE, SIZE))
    assert (source.total, source.description) == (7, "tensor 7×3×16×16")
    batches = read_all(source, 3, workers=2)
    assert [len(batch.indices) for batch in batches] == [3, 3, 1]
    together = torch.cat([batch.images for batch in batches])
    assert torch.equal(together, images.detach().float())
    assert not together.requires_grad
    assert collect(batches, "names") == [f"image {index}" for index in range(7)]
    assert len(set(collect(batches, "hashes"))) == 7
    assert collect(read_all(open_images(images[2:])), "hashes") == collect(batches, "hashes")[2:]
    names = read_names(open_images(images, limit=3))
    assert names == sorted(names)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "must have the shape N×channels×height×width, got 3×8×8"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"floating-point numbers, got torch\.uint8"),
        (torch.full((2, 3, 8, 8), float("nan")), "contains NaN or infinite"),
        (torch.full((2, 3, 8, 8), float("inf")), "contains NaN or infinite"),
        (torch.zeros(2, 3, 9, 8), "must have 8×8 pixels for this model, got 2×3×9×8"),
        (torch.zeros(0, 3, 8, 8), "is empty"),
        (np.zeros((2, 3, 8, 8)), "got a NumPy array; torch.from_numpy turns it into a tensor"),
        (3, "got the number 3"),
        (None, "got nothing"),
    ],
)
def test_wrong_tensors(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_all(open_images(images, image_size=(8, 8)))
