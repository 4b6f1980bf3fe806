"""Batches do not depend on workers or ranks, and DataLoaders keep their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tests.support.image_batches import collect, equal, merge_ranks, read_all, read_names, shrink
from tests.support.image_files import picture
from tokenlens.images.batches import iterate_batches
from tokenlens.images.sources import open_images


def test_reading_again_with_workers_gives_the_same(folder: Path) -> None:
    source = open_images(folder, transform=shrink)
    random_state = torch.get_rng_state()
    first, skipped = read_all(source), list(source.skipped)
    assert equal(first, read_all(source, workers=2))
    assert source.skipped == skipped
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (3, 2), (2, 3), (4, 8)])
def test_ranks_share_the_batches_of_one_process(folder: Path, world_size: int, batch_size: int) -> None:
    source = open_images(folder, transform=shrink)
    expected, expected_skipped = read_all(source, batch_size), list(source.skipped)
    assert equal(merge_ranks(source, batch_size, world_size), expected)
    skipped = []
    for rank in range(world_size):
        share = read_all(source, batch_size, rank=rank, world_size=world_size)
        assert all(batch.indices[0] // batch_size % world_size == rank for batch in share)
        skipped += source.skipped
    assert sorted(item["name"] for item in skipped) == sorted(item["name"] for item in expected_skipped)


def test_no_readable_image(tmp_path: Path) -> None:
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"")
    source = open_images(tmp_path, transform=shrink)
    with pytest.raises(ValueError, match=r"no readable image in folder .*: 5 images unreadable \(0\.png: empty file;"):
        read_all(source)
    assert len(source.skipped) == 5
    assert read_all(source, rank=1, world_size=2) == []  # other ranks may have readable images: the caller checks


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"rank": 2, "world_size": 2}, {"rank": -1}])
def test_wrong_options(folder: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected batch_size ≥ 1"):
        iterate_batches(open_images(folder), **{"batch_size": 1, **options})


class Tensors(Dataset[tuple[Tensor, int]]):
    """Seven preprocessed images, the third unreadable if an error is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 2 and self.error is not None:
            raise self.error
        return shrink(picture(index)), index


def test_a_data_loader_keeps_its_own_batches() -> None:
    source = open_images(DataLoader(Tensors(), batch_size=3))
    assert source.total == 7
    batches = read_all(source, 64)
    assert [batch.indices for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    torch.testing.assert_close(batches[2].images[0], shrink(picture(6)))
    assert [batch.indices for batch in read_all(source, 64, rank=1, world_size=2)] == [[3, 4, 5]]
    assert equal(merge_ranks(source, 64, 2), batches)
    limited = open_images(DataLoader(Tensors(), batch_size=3), limit=4)
    assert limited.total == 4
    assert collect(read_all(limited), "indices") == [0, 1, 2, 3]


def test_data_loaders_that_cannot_be_shared_or_read() -> None:
    shuffled = open_images(DataLoader(Tensors(), batch_size=3, shuffle=True))
    assert len(read_names(shuffled)) == 7
    with pytest.raises(ValueError, match="may change its order; for several ranks"):
        read_all(shuffled, rank=0, world_size=2)
    sampler: Any = DistributedSampler(Tensors(), num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="is sharded already"):
        read_all(open_images(DataLoader(Tensors(), sampler=sampler)), rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"failed at batch 1: image file is truncated. Pass its data set instead"):
        read_all(open_images(DataLoader(Tensors(OSError("image file is truncated")), batch_size=2)))
    with pytest.raises(ValueError, match="batch 0 of the DataLoader must have 8×8 pixels"):
        read_all(open_images(DataLoader(Tensors()), image_size=(8, 8)))
    with pytest.raises(ValueError, match="batches must be tensors"):
        read_all(open_images(DataLoader(["a.png", "b.png"], batch_size=2)))  # type: ignore[arg-type]
