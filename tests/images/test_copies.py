"""Copies of an image count once, in any number of processes, and implausible values are remarked on."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.image_batches import collect, shrink
from tests.support.image_files import encoded, picture
from tokenlens.images import ImageSource, iterate_distinct, open_images
from tokenlens.images.copies import _BatchFacts, _SeenImages


def read(source: ImageSource, batch_size: int = 2, **options: int) -> list[str]:
    return collect(list(iterate_distinct(source, batch_size, **options)), "names")


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Two photographs: five files of the first (one of another format), two of the second."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 0), ("e", 1), ("f", 0)):
        (tmp_path / f"{name}.png").write_bytes(encoded(picture(seed)))
    (tmp_path / "g.bmp").write_bytes(encoded(picture(0), "BMP"))
    return tmp_path


def test_of_copies_the_first_one_is_read(copies: Path) -> None:
    source = open_images(copies, transform=shrink)
    for batch_size in (1, 3, 16):
        assert read(source, batch_size) == ["a.png", "c.png"]
        assert source.copies == [
            {"name": f"{name}", "copy_of": first}
            for name, first in (("b.png", "a.png"), ("d.png", "a.png"), ("e.png", "c.png"), ("f.png", "a.png"))
        ] + [{"name": "g.bmp", "copy_of": "a.png"}]
        assert source.remarks == [
            "5 images are copies of others (the same pixels after preprocessing), e.g. b.png of a.png. One of each is "
            "analyzed and counted: 2 distinct images."
        ]
    assert read(source, workers=2) == ["a.png", "c.png"]


def test_rows_of_a_tensor_are_compared_as_well() -> None:
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    source = open_images(images[[0, 1, 0, 2, 1]])
    assert read(source) == ["image 0", "image 1", "image 3"]
    assert [copy["copy_of"] for copy in source.copies] == ["image 0", "image 1"]


def test_processes_keep_what_one_process_keeps() -> None:
    hashes = ["x", "y", "z", "x", "y", "w", "x", "v"]
    batches = [
        _BatchFacts([i, i + 1], [f"{i}", f"{i + 1}"], hashes[i : i + 2], [False] * 2, -1.0, 1.0) for i in (0, 2, 4, 6)
    ]
    one, two = _SeenImages(), _SeenImages()
    kept = set().union(*(one.add([batch]) for batch in batches))
    assert kept == {0, 1, 2, 5, 7}
    assert set().union(two.add([batches[1], batches[0]]), two.add(batches[2:])) == kept  # whichever rank comes first
    assert (two.copies, two.remarks()) == (one.copies, one.remarks())


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (255 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), r"values from 0\.\d+ to 25\d"),
        (torch.full((1, 3, 8, 8), 200.0), r"equal \(200\).*values from 200 to 200, but normalized images"),
        (torch.zeros(1, 3, 8, 8), r"^All values of all images are equal \(0\)"),
        (-3 + 6 * torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), "^$"),
    ],
)
def test_values_that_are_not_normalized_are_remarked_on(images: torch.Tensor, expected: str) -> None:
    source = open_images(images)
    read(source)
    assert re.search(expected, " ".join(source.remarks))
    loader: Any = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images), batch_size=2)
    from_loader = open_images(loader)
    read(from_loader)
    assert from_loader.remarks == source.remarks


def test_twelve_bits_in_sixteen_are_nearly_black(tmp_path: Path) -> None:
    levels = torch.arange(4096, dtype=torch.int32).reshape(64, 64).numpy().astype("uint16")
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(levels * 16).save(tmp_path / "b.png")
    source = open_images(tmp_path, transform=shrink)
    assert read(source) == ["a.png", "b.png"]
    (note,) = source.remarks
    assert note.startswith("1 image is nearly black (no value above 16 of 255), e.g. a.png. Data of 12 bits")
