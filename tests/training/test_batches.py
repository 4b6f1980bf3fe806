"""The laws of the order and the draws of training images: what a run sees depends on its seed and on nothing else."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.support.image_files import encoded, files_below, picture, write_images, write_tar
from tokenlens.images.decoding import UnreadableImageError
from tokenlens.images.labelled.classes import open_labelled
from tokenlens.training.batches import (
    BatchOrder,
    NothingReadable,
    TrainingSamples,
    random_states_kept,
    training_batches,
)
from tokenlens.training.objectives.base import TrainingBatch

DATA = os.environ.get("TOKENLENS_TEST_DATA")


def views(image: Image.Image) -> list[Tensor]:
    """Two views of different sizes that tell the image and draw from all three generators."""
    pixel = torch.tensor(image.getpixel((0, 0))).float()[:, None, None]
    draws = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    return [pixel.expand(3, 2, 2) + sum(draws), pixel.expand(3, 1, 1) + torch.tensor(draws)[:, None, None]]


class Pictures:
    """Pictures by number, some of them broken."""

    def __init__(self, count: int, broken: set[int] | None = None, labelled: bool = True) -> None:
        self.names = [f"img{number}" for number in range(count)]
        self.labels = np.arange(count) % 3 if labelled else None
        self.broken = broken or set()

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image.Image:
        if index in self.broken:
            raise UnreadableImageError("broken")
        return picture(index)


Batches = list[tuple[TrainingBatch, list[dict[str, str]]]]


def gather(images: Any, **options: Any) -> Batches:
    return list(training_batches(images, views, **{"batch_size": 8, "steps": 5, "seed": 0, **options}))


def same(left: Batches, right: Batches) -> bool:
    def equal(a: Tensor | None, b: Tensor | None) -> bool:
        return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))

    return len(left) == len(right) and all(
        all(equal(x, y) for x, y in zip(a.views, b.views, strict=True))
        and equal(a.labels, b.labels)
        and equal(a.indices, b.indices)
        and equal(a.positions, b.positions)
        and a.size == b.size
        and skipped == others
        for (a, skipped), (b, others) in zip(left, right, strict=True)
    )


# The order of the images

N, SEEDS = st.integers(1, 40), st.integers(-5, 2**70)
SHARES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))


def orders(n: int, seed: int, share: tuple[int, int, int], steps: int = 7) -> tuple[int, list[list[Any]]]:
    """The batch size, and each rank's lists."""
    world_size, accumulate, half = share
    size = 2 * half * world_size * accumulate
    return size, [
        list(BatchOrder(n, size, rank, world_size, accumulate, seed, steps=steps)) for rank in range(world_size)
    ]


@settings(deadline=None, max_examples=40)
@given(N, SEEDS, st.integers(1, 90))
def test_each_epoch_has_each_image_once_and_joins_the_next(n: int, seed: int, batch_size: int) -> None:
    steps = -(-4 * n // batch_size)
    seen = [place for batch in BatchOrder(n, batch_size, seed=seed, steps=steps) for place in batch]
    assert len(seen) == steps * batch_size
    for epoch in range(4):
        part = seen[epoch * n : (epoch + 1) * n]
        assert {one for one, _, _ in part} == {epoch}
        assert sorted(index for _, index, _ in part) == list(range(n))


@settings(deadline=None, max_examples=40)
@given(N, SEEDS, SHARES)
def test_ranks_and_parts_together_are_the_batch_of_one_process(n: int, seed: int, share: tuple[int, int, int]) -> None:
    size, ranks = orders(n, seed, share)
    accumulate = share[1]
    whole = list(BatchOrder(n, size, seed=seed, steps=7))
    for step, expected in enumerate(whole):
        assert [position for _, _, position in expected] == list(range(size))
        parts = [lists[step * accumulate + part] for lists in ranks for part in range(accumulate)]
        assert sorted(itertools.chain(*parts), key=lambda place: place[2]) == expected
        for part in parts:
            positions = [position for _, _, position in part]
            assert len(positions) == len(parts[0])
            assert [size - 1 - position for position in reversed(positions)] == positions  # its own mirror image


@settings(deadline=None, max_examples=40)
@given(N, SEEDS, SHARES, st.integers(0, 7))
def test_from_a_later_step_on_it_is_the_rest(n: int, seed: int, share: tuple[int, int, int], start: int) -> None:
    size, ranks = orders(n, seed, share)
    world_size, accumulate, _ = share
    for rank, whole in enumerate(ranks):
        rest = BatchOrder(n, size, rank, world_size, accumulate, seed, start_step=start, steps=7)
        assert list(rest) == whole[start * accumulate :]
        assert len(rest) == len(list(rest))


def test_seeds_and_epochs_differ_in_their_order() -> None:
    orders = [BatchOrder(50, 1, seed=seed, steps=1) for seed in (0, 1, 2**40)]
    found = {tuple(order.permutation(epoch)) for order in orders for epoch in (0, 1)}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 12, "world_size": 2, "accumulate": 2}, "batch_size=12 .* multiple of 8, e.g. 8 or 16"),
        ({"batch_size": 3, "world_size": 2}, "among 2 processes with 1 parts each: expected a multiple of 4, e.g. 4"),
        ({"batch_size": 0}, "of at least 1"),
        ({"rank": 1}, "0 ≤ rank < world_size.* got n=4, batch_size=8, accumulate=1, rank=1, world_size=1"),
        ({"start_step": 6}, "start_step ≤ steps"),
    ],
)
def test_what_cannot_be_is_said_at_once(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        training_batches(Pictures(4), views, **{"batch_size": 8, "steps": 5, "seed": 0, **options})


# The samples


def test_batches_are_the_images_of_their_indices() -> None:
    images = Pictures(20)
    batches = gather(images)
    assert len(batches) == 5
    for batch, skipped in batches:
        assert [tuple(view.shape) for view in batch.views] == [(8, 3, 2, 2), (8, 3, 1, 1)]
        assert batch.size == 8
        assert skipped == []
        assert batch.labels is not None
        assert batch.labels.tolist() == [images.labels[index] for index in batch.indices]
        assert batch.views[1][:, 0, 0, 0].floor().int().tolist() == batch.indices.tolist()
    assert gather(Pictures(20, labelled=False))[0][0].labels is None


def test_views_depend_on_seed_epoch_and_image_only() -> None:
    images = Pictures(20)

    def draws(seed: int, epoch: int, index: int, position: int = 0, used: TrainingSamples | None = None) -> Tensor:
        sample = (used or TrainingSamples(images, views, seed))[epoch, index, position]
        assert not isinstance(sample, NothingReadable)
        return sample.views[1] - index

    first = draws(0, 0, 3)
    used = TrainingSamples(images, views, 0)
    for index in (5, 3, 7):
        draws(0, 0, index, used=used)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    assert torch.equal(draws(0, 0, 3, position=6, used=used), first)
    others = [draws(1, 0, 3), draws(0, 1, 3), draws(0, 0, 4), draws(1, 0, 0), draws(0, 1, 0)]
    for one, other in itertools.combinations([first, *others], 2):
        assert (one - other).abs().min() > 1e-6  # none of the three generators repeats itself


def test_global_random_states_are_left_alone() -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = states()
    gather(Pictures(20))
    assert states() == before
    with contextlib.suppress(KeyError), random_states_kept():
        random.random(), np.random.rand(), torch.rand(())
        raise KeyError
    assert states() == before


@pytest.mark.parametrize("broken", [set(), {0, 3, 4, 5}])
def test_runs_agree_however_they_are_shared_out(broken: set[int]) -> None:
    images = Pictures(11, broken)
    whole = gather(images)
    assert same(gather(images, workers=2), whole)
    assert same(gather(images, start_step=3), whole[3:])
    assert same(gather(images, start_step=2, workers=1), whole[2:])
    parts = [gather(images, rank=rank, world_size=2, accumulate=2, workers=rank) for rank in (0, 1)]
    for step, (batch, skipped) in enumerate(whole):
        shares = [parts[rank][2 * step + part] for rank in (0, 1) for part in (0, 1)]
        order = torch.cat([share.positions for share, _ in shares]).argsort()
        for number in range(2):
            assert torch.equal(torch.cat([share.views[number] for share, _ in shares])[order], batch.views[number])
        assert torch.equal(torch.cat([share.indices for share, _ in shares])[order], batch.indices)
        assert sorted(map(str, itertools.chain(*(items for _, items in shares)))) == sorted(map(str, skipped))


def test_an_unreadable_image_is_replaced_by_the_next_and_named() -> None:
    images = Pictures(6, broken={2, 3, 5})
    samples = TrainingSamples(images, views, seed=0)
    for asked, taken, names in ((1, 1, []), (2, 4, ["img2", "img3"]), (5, 0, ["img5"])):
        sample = samples[0, asked, 7]
        assert not isinstance(sample, NothingReadable)
        assert sample.index == taken
        assert sample.label == taken % 3
        assert sample.position == 7
        assert sample.skipped == [{"name": name, "reason": "broken"} for name in names]
    replaced, own = samples[0, 3, 0], samples[0, 4, 0]
    assert not isinstance(replaced, NothingReadable)
    assert not isinstance(own, NothingReadable)
    assert not torch.equal(replaced.views[1], own.views[1])  # the same image, seen with draws of its own
    skipped = [item["name"] for _, items in gather(images, batch_size=6, steps=1) for item in items]
    assert sorted(skipped) == ["img2", "img3", "img3", "img5"]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_sentence(workers: int) -> None:
    with pytest.raises(ValueError, match=r"^none of the 9 training images is readable \(img\d: broken; img") as caught:
        gather(Pictures(9, broken=set(range(9))), workers=workers)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_views_is_no_unreadable_image() -> None:
    def wrong(image: Image.Image) -> list[Tensor]:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        next(iter(training_batches(Pictures(4), wrong, batch_size=2, steps=1, seed=0)))


def test_folder_archive_and_shard_give_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path / "set" / "train", {"a": 5, "b": 6})
    write_images(tmp_path / "set" / "val", {"a": 1})
    paths = sorted((tmp_path / "set" / "train").rglob("*.png"))
    paths[3].write_bytes(encoded(picture(3))[:-200])
    contents = [path.read_bytes() for path in paths]
    write_tar(tmp_path / "set.tar", files_below(tmp_path / "set"))
    shard: dict[str, bytes] = {}
    for number, data in enumerate(contents):
        shard |= {f"{number:02d}.png": data, f"{number:02d}.cls": str(int(number >= 5)).encode()}
    write_tar(tmp_path / "train-0.tar", shard)
    write_tar(tmp_path / "val-0.tar", {"0.png": b"", "0.cls": b"0"})
    folder = gather(open_labelled(tmp_path / "set"))
    archive = gather(open_labelled(tmp_path / "set.tar"), workers=2)
    shards = gather(open_labelled(f"wds/{tmp_path}/{{train,val}}-0.tar"), workers=1)
    assert same(folder, archive)
    assert any(skipped for _, skipped in folder)
    assert same([(batch, []) for batch, _ in folder], [(batch, []) for batch, _ in shards])  # names differ


@pytest.mark.pretrained
@pytest.mark.skipif(DATA is None, reason="TOKENLENS_TEST_DATA is not set")
def test_tiny_imagenet_with_workers_and_resumed() -> None:
    assert DATA is not None
    images = open_labelled(Path(DATA) / "classification" / "tinyimagenet100_64px.tar")
    whole = gather(images, batch_size=64, steps=6)
    assert same(gather(images, batch_size=64, steps=6, start_step=4, workers=2), whole[4:])
    assert all(skipped == [] for _, skipped in whole)


def test_the_workers_end_with_the_iterator() -> None:
    before = set(multiprocessing.active_children())
    batches = training_batches(Pictures(8), views, batch_size=4, steps=100, seed=0, workers=1)
    next(batches)
    assert set(multiprocessing.active_children()) - before
    del batches
    for child in set(multiprocessing.active_children()) - before:
        child.join(10)
        assert not child.is_alive()
