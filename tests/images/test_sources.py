"""Opening images: every kind of source, its order, its shards, and what unreadable and wrong input gets."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import struct
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tokenlens.images.decoding import UnreadableImageError, decode, image_extensions
from tokenlens.images.sample import view
from tokenlens.images.sources import Batch, ImageSource, batches, open_images

SIZE = 16


def small(image: Image.Image) -> Tensor:
    """A transform that keeps enough of the image to tell one from another: (3, 16, 16) in [0, 1]."""
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def noise(seed: int, width: int = 24, height: int = 20, mode: str = "RGB") -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8), mode=None).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images in two classes and below, three of them broken, and files that are no images."""
    root = tmp_path / "images"
    for index in range(8):
        path = root / "ab"[index % 2] / f"img{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(index)))
    (root / "b" / "deep").mkdir()
    (root / "b" / "deep" / "truncated.jpg").write_bytes(encoded(noise(8, 200, 200), "JPEG")[:2000])
    (root / "a" / "empty.png").write_bytes(b"")
    (root / "z<script>alert(1)<script>.jpeg").write_bytes(b"this is no image")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(encoded(noise(99)))
    return root


BROKEN = {
    "a/empty.png": "empty file",
    "b/deep/truncated.jpg": "truncated",
    "z<script>alert(1)<script>.jpeg": "not an image that PIL can read",
}


def gather(source: ImageSource, batch_size: int = 4, **options: int) -> list[Batch]:
    return list(batches(source, batch_size, **options))


def flat(parts: list[Batch], what: str) -> list[Any]:
    return [value for part in parts for value in getattr(part, what)]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        (a.indices, a.names, a.hashes) == (b.indices, b.names, b.hashes) and torch.equal(a.images, b.images)
        for a, b in zip(left, right, strict=True)
    )


# Folders


def test_folder_sorted_hashed_and_with_its_broken_images_named(folder: Path) -> None:
    source = open_images(folder, transform=small)
    parts = gather(source)
    names = flat(parts, "names")
    assert source.total == 11
    assert str(folder) in source.description
    assert names == [f"a/img{i}.png" for i in (0, 2, 4, 6)] + [f"b/img{i}.png" for i in (1, 3, 5, 7)]
    assert flat(parts, "indices") == [1, 2, 3, 4, 6, 7, 8, 9]
    assert flat(parts, "hashes") == [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    for part in parts:
        assert part.images.dtype == torch.float32
        for image, name in zip(part.images, part.names, strict=True):
            assert torch.equal(image, small(Image.open(folder / name)))
    assert {item["name"]: item["reason"] for item in source.skipped}.keys() == BROKEN.keys()
    for item in source.skipped:
        assert BROKEN[item["name"]] in item["reason"]
        assert "0x" not in item["reason"]  # no memory address: the same words every time
        assert "\n" not in item["reason"]


def test_going_through_twice_and_with_workers_gives_the_same(folder: Path) -> None:
    source = open_images(folder, transform=small)
    random_state = torch.get_rng_state()
    first, skipped = gather(source), list(source.skipped)
    again = gather(source, workers=2)
    assert same(first, again)
    assert source.skipped == skipped
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 2), (3, 2), (2, 3), (4, 8)])
def test_ranks_share_out_the_batches_of_one_process(folder: Path, world_size: int, batch_size: int) -> None:
    whole = open_images(folder, transform=small)
    expected = gather(whole, batch_size)
    parts, skipped = [], []
    for rank in range(world_size):
        source = open_images(folder, transform=small)
        mine = gather(source, batch_size, rank=rank, world_size=world_size)
        assert all(part.indices[0] // batch_size % world_size == rank for part in mine)
        parts += mine
        skipped += source.skipped
    assert same(sorted(parts, key=lambda part: part.indices[0]), expected)
    assert sorted(item["name"] for item in skipped) == sorted(BROKEN)


def test_limit_is_a_seeded_subset_in_order_and_said(folder: Path) -> None:
    chosen = [flat(gather(open_images(folder, transform=small, limit=5, seed=seed)), "names") for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] == sorted(chosen[0])
    assert chosen[0] != chosen[2]
    source = open_images(folder, transform=small, limit=5, seed=1)
    assert source.total == 5
    assert "a random 5 of 11 images (seed 1)" in source.description
    parts = gather(source)
    assert set(flat(parts, "indices")) <= set(range(5))
    everything = open_images(folder, transform=small, limit=50)
    assert everything.total == 11
    assert "random" not in everything.description


def test_single_file_and_default_transform(folder: Path) -> None:
    (part,) = gather(open_images(folder / "a" / "img0.png"))
    assert part.names == ["img0.png"]
    assert part.images.shape == (1, 3, 224, 224)
    assert gather(open_images(str(folder / "a" / "img0.png"), image_size=(32, 48)))[0].images.shape == (1, 3, 32, 48)


def test_links_are_followed_once_and_capitals_count(folder: Path) -> None:
    (folder / "b" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "b" / "CAPITALS.PNG").write_bytes(encoded(noise(42)))
    names = flat(gather(open_images(folder, transform=small)), "names")
    assert len(names) == 9
    assert "b/CAPITALS.PNG" in names


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX alone")
def test_a_name_that_is_no_text_is_made_printable(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(encoded(noise(1)))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert flat(gather(open_images(tmp_path, transform=small)), "names") == ["\\xff.png"]


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*nowhere; images are a folder of images"):
        open_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"no images in .* looked for files that end in .*\.jpeg \.jpf \.jpg") as error:
        open_images(tmp_path)
    assert ".eps" not in str(error.value)
    (tmp_path / "shard.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="webdataset shards are read with wds/"):
        open_images(tmp_path / "shard.tar")
    for index in range(5):
        (tmp_path / f"{index}.png").write_bytes(b"")
    source = open_images(tmp_path)
    with pytest.raises(ValueError, match=r"no readable image in folder .*: all 5 are unreadable \(0\.png: empty file;"):
        gather(source)
    assert len(source.skipped) == 5
    assert gather(source, rank=1, world_size=2) == []  # other ranks may have more luck: the caller sums up


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_limit_must_be_a_number_of_images(folder: Path, limit: object) -> None:
    with pytest.raises(ValueError, match="limit is a number of images, at least 1"):
        open_images(folder, limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}, {"rank": 2, "world_size": 2}, {"rank": -1}])
def test_wrong_batches(folder: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected batch_size ≥ 1"):
        batches(open_images(folder), **{"batch_size": 1, **options})


# Files of every kind


def test_decompression_bombs_are_skipped_by_pils_own_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bomb.png").write_bytes(encoded(Image.new("RGB", (100, 100))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    source = open_images(folder, transform=small, image_size=(SIZE, SIZE))
    assert len(flat(gather(source), "names")) == 8
    (bomb,) = [item for item in source.skipped if item["name"] == "bomb.png"]
    assert bomb["reason"].startswith("DecompressionBombError: Image size (10000 pixels) exceeds limit")


def test_a_real_bomb_header_allocates_nothing() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    bomb = b"\x89PNG\r\n\x1a\n" + chunks
    with pytest.raises(ValueError, match="DecompressionBombError"):
        decode(bomb)


def test_a_line_that_the_transform_would_enlarge_beyond_memory_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "line.png").write_bytes(encoded(Image.new("RGB", (1, 30000))))
    (tmp_path / "strip.png").write_bytes(encoded(Image.new("RGB", (4, 300))))
    source = open_images(tmp_path)
    assert flat(gather(source), "names") == ["strip.png"]
    assert source.skipped[0]["name"] == "line.png"
    assert "1×30000 pixels: enlarged to the model's size" in source.skipped[0]["reason"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    image = Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode)
    decoded = decode(encoded(image, kind))
    assert decoded.mode == "RGB"
    assert np.asarray(decoded).min() >= 254


def test_transparency_is_dropped_also_from_palettes() -> None:
    red = Image.new("RGBA", (4, 4), (200, 10, 20, 0))
    assert decode(encoded(red)).getpixel((0, 0)) == (200, 10, 20)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 20])
    assert decode(encoded(palette, transparency=bytes([255, 0]))).getpixel((0, 0)) == (200, 10, 20)


def test_sixteen_bits_are_scaled_not_cut_off() -> None:
    grey_HW = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    decoded = np.asarray(decode(encoded(Image.fromarray(grey_HW))))
    assert decoded[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (decoded[..., 0] == decoded[..., 2]).all()


@pytest.mark.parametrize("values", [np.array([[0.5]], dtype=np.float32), np.array([[70000]], dtype=np.int32)])
def test_pixels_without_a_stated_range_are_unreadable(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="pixels have no stated range"):
        decode(encoded(Image.fromarray(values), "TIFF"))


def test_exif_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(1, 30, 20), "JPEG", exif=exif)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (20, 30)
    assert decode(data).size == (30, 20)


def test_postscript_never_reaches_ghostscript(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import EpsImagePlugin

    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("Ghostscript was called")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", refuse)
    (tmp_path / "disguised.jpg").write_bytes(encoded(noise(1), "EPS"))
    (tmp_path / "good.jpg").write_bytes(encoded(noise(1), "JPEG"))
    source = open_images(tmp_path, transform=small)
    assert flat(gather(source), "names") == ["good.jpg"]
    assert source.skipped == [{"name": "disguised.jpg", "reason": "not an image that PIL can read"}]
    assert {".jpg", ".png", ".webp", ".tif"} <= image_extensions()
    assert not {".eps", ".ps", ".h5", ".mpg", ".wmf"} & image_extensions()


def test_random_damage_never_crashes() -> None:
    chance = random.Random(0)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        for _ in range(15):
            data = bytearray(encoded(noise(1), kind))
            for _ in range(8):
                data[chance.randrange(4, len(data))] = chance.randrange(256)
            with contextlib.suppress(UnreadableImageError):  # nothing else comes out
                assert decode(bytes(data[: chance.randrange(len(data))])).mode == "RGB"


# The sample set


def test_sample_is_seeded_views_of_real_photographs() -> None:
    source = open_images("sample", transform=small)
    assert source.total == 64
    for word in ("64 views", "china.jpg", "flower.jpg", "grace_hopper.jpg", "seed 0"):
        assert word in source.description
    parts = gather(source, 16)
    names = flat(parts, "names")
    assert len(set(names)) == len(set(flat(parts, "hashes"))) == 64
    assert names[:4] == ["china-view000", "flower-view001", "grace_hopper-view002", "china-view003"]
    assert source.skipped == []
    few = gather(open_images("sample", transform=small, limit=5), 16)
    assert flat(few, "hashes") == flat(parts, "hashes")[:5]
    other = gather(open_images("sample", transform=small, limit=5, seed=1), 16)
    assert not set(flat(other, "hashes")) & set(flat(few, "hashes"))


def test_sample_views_are_the_same_forever() -> None:
    """Sizes from NumPy's frozen RandomState (2.4), seen 2026-11-22; pixels may differ by the JPEG decoder."""
    assert [view(index).size for index in range(4)] == [(231, 275), (235, 247), (231, 208), (324, 254)]


# Tensors


def test_tensor() -> None:
    images = torch.randn(7, 3, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    source = open_images(images, image_size=(SIZE, SIZE))
    assert (source.total, source.description) == (7, "tensor 7×3×16×16")
    parts = gather(source, 3, workers=2)
    assert [len(part.indices) for part in parts] == [3, 3, 1]
    together = torch.cat([part.images for part in parts])
    assert torch.equal(together, images.detach().float())
    assert not together.requires_grad
    assert flat(parts, "names") == [f"image {index}" for index in range(7)]
    assert len(set(flat(parts, "hashes"))) == 7
    assert flat(gather(open_images(images[2:])), "hashes") == flat(parts, "hashes")[2:]
    subset = open_images(images, limit=3)
    assert flat(gather(subset), "names") == sorted(flat(gather(subset), "names"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), "must be of shape N×3×height×width, got 3×8×8"),
        (torch.zeros(2, 8, 8, 3), "must be of shape N×3×height×width, got 2×8×8×3"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"floating-point numbers, got torch\.uint8"),
        (torch.full((2, 3, 8, 8), float("nan")), "holds NaN or infinite"),
        (torch.full((2, 3, 8, 8), float("inf")), "holds NaN or infinite"),
        (torch.zeros(2, 3, 9, 8), "must be 8×8 pixels for this model, got 2×3×9×8"),
        (torch.zeros(0, 3, 8, 8), "is empty"),
        (np.zeros((2, 3, 8, 8)), None),
        (3, "got int"),
        (None, "got NoneType"),
    ],
)
def test_wrong_tensors(images: Any, message: str | None) -> None:
    with pytest.raises(ValueError, match=message or "item 0 of the data set is of type ndarray"):
        gather(open_images(images, image_size=(8, 8)))


# Data sets


class Items(Dataset[Any]):
    """Six images, in a form of choice, the third unreadable."""

    def __init__(self, form: str) -> None:
        self.form = form

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            raise OSError("image file is truncated")
        if index >= 6:
            raise IndexError(index)
        image, tensor = noise(index), small(noise(index))
        return {
            "image": image,
            "tensor": tensor,
            "tuple": (image, 3),
            "list": [tensor, 3],
            "dict": {"image": image, "label": 3},
            "pixels": {"pixel_values": tensor},
            "text": "a.png",
            "bytes": torch.zeros(3, SIZE, SIZE, dtype=torch.uint8),
            "label": {"label": 3},
            "sizes": torch.zeros(3, SIZE, SIZE + index),
        }[self.form]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("form", ["image", "tensor", "tuple", "list", "dict", "pixels"])
def test_data_sets_of_every_form(form: str, workers: int) -> None:
    source = open_images(Items(form), transform=small, image_size=(SIZE, SIZE))
    parts = gather(source, workers=workers)
    assert flat(parts, "indices") == [0, 1, 3, 4, 5]
    assert flat(parts, "names")[0] == "item 0"
    torch.testing.assert_close(parts[0].images[0], small(noise(0)))
    assert source.skipped == [{"name": "item 2", "reason": "image file is truncated"}]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("text", "^item 0 of the data set is of type str; expected a PIL image"),
        ("label", "^item 0 of the data set is of type dict"),
        ("bytes", r"^item 0 must be preprocessed floating-point numbers, got torch\.uint8"),
        ("sizes", r"^images of one batch differ in shape: item 0 is \(3, 16, 16\), item 1 \(3, 16, 17\)"),
    ],
)
def test_data_sets_that_hold_no_images(form: str, message: str, workers: int) -> None:
    with pytest.raises(ValueError, match=message):
        gather(open_images(Items(form), transform=small), workers=workers)


def test_torchvision_folder_keeps_its_file_names(folder: Path) -> None:
    from torchvision.datasets import ImageFolder

    source = open_images(ImageFolder(folder), transform=small)
    names = flat(gather(source), "names")
    assert names == [f"a/img{i}.png" for i in (0, 2, 4, 6)] + [f"b/img{i}.png" for i in (1, 3, 5, 7)]
    assert [item["name"] for item in source.skipped] == ["a/empty.png", "b/deep/truncated.jpg"]


class Stream(IterableDataset[Any]):
    """Seven images, one after the other."""

    def __iter__(self) -> Iterator[Any]:
        yield from ((noise(index), index) for index in range(7))


@pytest.mark.parametrize("workers", [0, 3])
def test_iterable_data_sets_come_once_in_order(workers: int) -> None:
    source = open_images(Stream(), transform=small)
    assert source.total is None
    parts = gather(source, 2, workers=workers)
    assert flat(parts, "indices") == list(range(7))
    shares = [gather(source, 2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [flat(share, "indices") for share in shares] == [[0, 1, 4, 5], [2, 3, 6]]
    assert same(sorted(shares[0] + shares[1], key=lambda part: part.indices[0]), parts)
    first = open_images(Stream(), transform=small, limit=3)
    assert "the first 3 images" in first.description
    assert flat(gather(first, 2), "indices") == [0, 1, 2]


# DataLoaders


class Tensors(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return small(noise(index)), index


def test_data_loader_keeps_its_own_batches() -> None:
    source = open_images(DataLoader(Tensors(), batch_size=3))
    assert source.total == 7
    parts = gather(source, 64)
    assert [part.indices for part in parts] == [[0, 1, 2], [3, 4, 5], [6]]
    torch.testing.assert_close(parts[2].images[0], small(noise(6)))
    shares = [gather(source, 64, rank=rank, world_size=2) for rank in (0, 1)]
    assert [[part.indices for part in share] for share in shares] == [[[0, 1, 2], [6]], [[3, 4, 5]]]
    limited = open_images(DataLoader(Tensors(), batch_size=3), limit=4)
    assert limited.total == 4
    assert flat(gather(limited), "indices") == [0, 1, 2, 3]


def test_data_loaders_that_cannot_be_shared_out_or_read() -> None:
    shuffled = open_images(DataLoader(Tensors(), batch_size=3, shuffle=True))
    assert len(flat(gather(shuffled), "names")) == 7
    with pytest.raises(ValueError, match="may change its order; for several ranks"):
        gather(shuffled, rank=0, world_size=2)
    sampler: Any = torch.utils.data.DistributedSampler(Tensors(), num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="is sharded already"):
        gather(open_images(DataLoader(Tensors(), sampler=sampler)), rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"failed at batch 1: image file is truncated. Hand over its data set"):
        gather(open_images(DataLoader(Items("tensor"), batch_size=2)))
    with pytest.raises(ValueError, match="batch 0 of the DataLoader must be 8×8 pixels"):
        gather(open_images(DataLoader(Tensors()), image_size=(8, 8)))
    with pytest.raises(ValueError, match="batches must be tensors"):
        gather(open_images(DataLoader(Items("text"), batch_size=2)))


# Data at scale


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
    source = open_images(f"hfds/{folder}", transform=small)
    assert source.total == 11
    assert "split train" in source.description
    parts = gather(source)
    assert len(flat(parts, "names")) == 8
    assert flat(parts, "names")[0].startswith("train[")
    assert flat(parts, "names")[0].endswith("img0.png")
    expected = gather(open_images(folder, transform=small))
    assert sorted(flat(parts, "hashes")) == sorted(flat(expected, "hashes"))
    assert len(source.skipped) == 3
    assert any("<script>" in item["name"] for item in source.skipped)
    assert open_images(f"hfds/{folder}:train", limit=2).total == 2
    assert open_images(f"hfds/{folder}:train[:5]").total == 5
    with pytest.raises(ValueError, match="no split 'best'; available: train"):
        open_images(f"hfds/{folder}:best")


@pytest.mark.usefixtures("offline")
def test_hugging_face_data_set_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    kinds = datasets.Features({"label": datasets.Value("int64"), "picture": datasets.Image()})
    rows = {"label": [0, 1, 2, 3], "picture": [encoded(noise(0)), None, b"broken", encoded(noise(3))]}
    rows["picture"] = [data if data is None else {"bytes": data, "path": None} for data in rows["picture"]]
    saved = datasets.Dataset.from_dict(rows, features=kinds)
    saved.save_to_disk(tmp_path / "one")
    source = open_images(f"hfds/{tmp_path / 'one'}", transform=small)
    parts = gather(source, workers=1)
    assert flat(parts, "names") == ["all[0]", "all[3]"]
    assert source.skipped == [
        {"name": "all[1]", "reason": "no image in this row"},
        {"name": "all[2]", "reason": "not an image that PIL can read"},
    ]
    datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(tmp_path / "two")
    assert open_images(f"hfds/{tmp_path / 'two'}").total == 1
    assert open_images(f"hfds/{tmp_path / 'two'}:train").total == 4
    with pytest.raises(ValueError, match="no slice can be taken"):
        open_images(f"hfds/{tmp_path / 'two'}:train[:2]")
    saved.remove_columns("picture").save_to_disk(tmp_path / "three")
    with pytest.raises(ValueError, match="has no column of images, only label"):
        open_images(f"hfds/{tmp_path / 'three'}")
    with pytest.raises(ValueError, match="the data set 'nobody/nothing' cannot be loaded"):
        open_images("hfds/nobody/nothing")


def test_a_hub_that_cannot_be_reached_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"is no folder on this machine, and .* cannot be reached"):
        open_images("hfds/nobody/nothing:train")
    assert time.monotonic() - started < 10


def write_shard(path: Path, samples: list[dict[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for extension, content in sample.items():
                info = tarfile.TarInfo(f"sample{number}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of four samples, one of them unreadable and one without an image."""
    pytest.importorskip("webdataset")
    jpegs = [encoded(noise(index), "JPEG") for index in range(8)]
    for shard in (0, 1):
        samples = [{"cls": b"1", "jpg": data} for data in jpegs[4 * shard : 4 * shard + 4]]
        if shard:
            samples[1] = {"jpg": samples[1]["jpg"][:300]}
            samples[2] = {"json": json.dumps({"a": 1}).encode()}
        write_shard(tmp_path / f"part-{shard:03d}.tar", samples)
    return tmp_path


def test_webdataset_shards(shards: Path) -> None:
    source = open_images(f"wds/{shards}/part-{{000..001}}.tar", transform=small)
    assert source.total is None
    assert "2 shards" in source.description
    parts = gather(source, 3)
    assert flat(parts, "names") == [f"part-000.tar/sample{i}.jpg" for i in range(4)] + [
        "part-001.tar/sample0.jpg",
        "part-001.tar/sample3.jpg",
    ]
    assert flat(parts, "indices") == [0, 1, 2, 3, 4, 7]
    assert flat(parts, "hashes")[0] == hashlib.sha256(encoded(noise(0), "JPEG")).hexdigest()
    assert [item["name"] for item in source.skipped] == ["part-001.tar/sample1.jpg", "part-001.tar/sample2"]
    assert source.skipped[1]["reason"] == "no image in this sample, only json"
    assert same(gather(open_images(f"wds/{shards}", transform=small), 3), parts)
    assert same(gather(source, 3, workers=2), parts)
    shares = [gather(source, 3, rank=rank, world_size=2) for rank in (0, 1)]
    assert same(sorted(shares[0] + shares[1], key=lambda part: part.indices[0]), parts)
    assert flat(gather(open_images(f"wds/{shards}", transform=small, limit=2)), "indices") == [0, 1]


def test_a_shard_that_breaks_off_costs_its_rest_and_is_named(shards: Path) -> None:
    first = shards / "part-000.tar"
    first.write_bytes(first.read_bytes()[:2500])
    source = open_images(f"wds/{shards}", transform=small)
    names = flat(gather(source), "names")
    assert "part-001.tar/sample3.jpg" in names
    assert "part-000.tar/sample3.jpg" not in names
    assert any(item["name"] == "part-000.tar" and "breaks off" in item["reason"] for item in source.skipped)


def test_shards_that_are_not_there(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no webdataset shard at .*part-002\.tar and 1 more"):
        open_images(f"wds/{shards}/part-{{000..003}}.tar")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"no webdataset shards in .*none; looked for files that end in \.tar"):
        open_images(f"wds/{tmp_path}/none")


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ValueError, match=r"needs the package webdataset: pip install 'tokenlens-vit\[data\]'"):
        open_images(f"wds/{shards}")
