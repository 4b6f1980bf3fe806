"""The batches of a training depend on the seed alone: not on processes, workers, restarts or the kind of data set."""

from __future__ import annotations

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
from tests.support.tiny_training import NumberedImages, telling_views
from tokenlens.images.labelled.classes import open_labelled
from tokenlens.training.batches import BatchOrder, NothingReadable, Sample, TrainingSamples, training_batches
from tokenlens.training.objectives.base import TrainingBatch

N, SEEDS = st.integers(1, 40), st.integers(-5, 2**70)
SHARES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))


def orders(n: int, seed: int, share: tuple[int, int, int], steps: int = 7) -> tuple[int, list[list[Any]]]:
    """Return the batch size, and each rank's lists."""
    world_size, accumulate, half = share
    size = 2 * half * world_size * accumulate
    return size, [
        list(BatchOrder(n, size, rank, world_size, accumulate, seed, steps=steps)) for rank in range(world_size)
    ]


@settings(deadline=None, max_examples=40)
@given(N, SEEDS, st.integers(1, 90))
def test_each_epoch_has_each_image_once_and_joins_the_next(n: int, seed: int, batch_size: int) -> None:
    steps = -(-4 * n // batch_size)
    seen = [key for batch in BatchOrder(n, batch_size, seed=seed, steps=steps) for key in batch]
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
        assert sorted(itertools.chain(*parts), key=lambda key: key[2]) == expected
        for part in parts:
            positions = [position for _, _, position in part]
            assert len(positions) == len(parts[0])
            assert [size - 1 - position for position in reversed(positions)] == positions  # its own mirror image


@settings(deadline=None, max_examples=40)
@given(N, SEEDS, SHARES, st.integers(0, 7))
def test_an_order_from_a_later_step_is_the_rest(n: int, seed: int, share: tuple[int, int, int], start: int) -> None:
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
def test_invalid_sizes_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchOrder(4, **{"batch_size": 8, "steps": 5, **options})


def read(samples: TrainingSamples, *key: Any) -> Sample:
    sample = samples[key]
    assert not isinstance(sample, NothingReadable)
    return sample


def test_views_depend_on_seed_epoch_and_image_only() -> None:
    images = NumberedImages(20)

    def draws(seed: int, epoch: int, index: int, position: int = 0, used: TrainingSamples | None = None) -> Tensor:
        return read(used or TrainingSamples(images, telling_views, seed), epoch, index, position).views[1] - index

    first = draws(0, 0, 3)
    used = TrainingSamples(images, telling_views, 0)
    for index in (5, 3, 7):
        draws(0, 0, index, used=used)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    assert torch.equal(draws(0, 0, 3, position=6, used=used), first)
    others = [draws(1, 0, 3), draws(0, 1, 3), draws(0, 0, 4), draws(1, 0, 0), draws(0, 1, 0)]
    for one, other in itertools.combinations([first, *others], 2):
        assert (one - other).abs().min() > 1e-6  # none of the three generators repeats itself


def test_an_unreadable_image_is_replaced_by_the_next_and_named() -> None:
    samples = TrainingSamples(NumberedImages(6, broken={2, 3, 5}), telling_views, seed=0)
    for requested, taken, names in ((1, 1, []), (2, 4, ["img2", "img3"]), (5, 0, ["img5"])):
        sample = read(samples, 0, requested, 7)
        assert (sample.index, sample.label, sample.position) == (taken, taken % 3, 7)
        assert sample.skipped == [{"name": name, "reason": "broken"} for name in names]
    # The same image twice, with other draws.
    assert not torch.equal(read(samples, 0, 3, 0).views[1], read(samples, 0, 4, 0).views[1])


DATA = os.environ.get("TOKENLENS_TEST_DATA")
Batches = list[tuple[TrainingBatch, list[dict[str, str]]]]


def collect(images: Any, **options: Any) -> Batches:
    return list(training_batches(images, telling_views, **{"batch_size": 8, "steps": 5, "seed": 0, **options}))


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


def test_batches_are_the_images_of_their_indices() -> None:
    images = NumberedImages(20)
    batches = collect(images)
    assert len(batches) == 5
    for batch, skipped in batches:
        assert [tuple(view.shape) for view in batch.views] == [(8, 3, 2, 2), (8, 3, 1, 1)]
        assert batch.size == 8
        assert skipped == []
        assert batch.labels is not None
        assert batch.labels.tolist() == [images.labels[index] for index in batch.indices]
        assert batch.views[1][:, 0, 0, 0].floor().int().tolist() == batch.indices.tolist()
    assert collect(NumberedImages(20, labelled=False))[0][0].labels is None


def test_global_random_states_are_unchanged() -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    collect(NumberedImages(20))
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("broken", [set(), {0, 3, 4, 5}])
def test_runs_agree_however_they_are_split(broken: set[int]) -> None:
    images = NumberedImages(11, broken)
    whole = collect(images)
    assert same(collect(images, workers=2), whole)
    assert same(collect(images, start_step=3), whole[3:])
    assert same(collect(images, start_step=2, workers=1), whole[2:])
    parts = [collect(images, rank=rank, world_size=2, accumulate=2, workers=rank) for rank in (0, 1)]
    for step, (batch, skipped) in enumerate(whole):
        shares = [parts[rank][2 * step + part] for rank in (0, 1) for part in (0, 1)]
        order = torch.cat([share.positions for share, _ in shares]).argsort()
        for number in range(2):
            assert torch.equal(torch.cat([share.views[number] for share, _ in shares])[order], batch.views[number])
        assert torch.equal(torch.cat([share.indices for share, _ in shares])[order], batch.indices)
        assert sorted(map(str, itertools.chain(*(items for _, items in shares)))) == sorted(map(str, skipped))


def test_unreadable_images_are_listed_each_time() -> None:
    batches = collect(NumberedImages(6, broken={2, 3, 5}), batch_size=6, steps=1)
    skipped = [item["name"] for _, items in batches for item in items]
    assert sorted(skipped) == ["img2", "img3", "img3", "img5"]


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image_is_one_sentence(workers: int) -> None:
    with pytest.raises(ValueError, match=r"^none of the 9 training images is readable \(img\d: broken; img") as caught:
        collect(NumberedImages(9, broken=set(range(9))), workers=workers)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_the_views_is_no_unreadable_image() -> None:
    def wrong(image: Image.Image) -> list[Tensor]:
        raise RuntimeError("a mistake")

    with pytest.raises(RuntimeError, match="a mistake"):
        next(iter(training_batches(NumberedImages(4), wrong, batch_size=2, steps=1, seed=0)))


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
    folder = collect(open_labelled(tmp_path / "set"))
    archive = collect(open_labelled(tmp_path / "set.tar"), workers=2)
    shards = collect(open_labelled(f"wds/{tmp_path}/{{train,val}}-0.tar"), workers=1)
    assert same(folder, archive)
    assert any(skipped for _, skipped in folder)
    assert same([(batch, []) for batch, _ in folder], [(batch, []) for batch, _ in shards])  # names differ


@pytest.mark.pretrained
@pytest.mark.skipif(DATA is None, reason="TOKENLENS_TEST_DATA is not set")
def test_tiny_imagenet_with_workers_and_resumed() -> None:
    assert DATA is not None
    images = open_labelled(Path(DATA) / "classification" / "tinyimagenet100_64px.tar")
    whole = collect(images, batch_size=64, steps=6)
    assert same(collect(images, batch_size=64, steps=6, start_step=4, workers=2), whole[4:])
    assert all(skipped == [] for _, skipped in whole)


def test_the_workers_end_with_the_iterator() -> None:
    before = set(multiprocessing.active_children())
    batches = training_batches(NumberedImages(8), telling_views, batch_size=4, steps=100, seed=0, workers=1)
    next(batches)
    assert set(multiprocessing.active_children()) - before
    del batches
    for child in set(multiprocessing.active_children()) - before:
        child.join(10)
        assert not child.is_alive()
