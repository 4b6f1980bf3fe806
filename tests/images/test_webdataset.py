"""Webdataset shards as a stream, whole, damaged and missing."""

import hashlib
import sys
from pathlib import Path

import pytest

from tests.support.image_batches import collect, equal, merge_ranks, read_all, read_names, shrink
from tests.support.image_files import encoded, picture, write_tar
from tokenlens.images.sources import open_images
from tokenlens.images.webdataset import is_break


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of four samples, one of them unreadable and one without an image."""
    pytest.importorskip("webdataset")
    for shard in (0, 1):
        files: dict[str, bytes] = {}
        for number in range(4):
            jpeg = encoded(picture(4 * shard + number), "JPEG")
            if shard and number == 2:
                files["sample2.json"] = b'{"a": 1}'
            else:
                files[f"sample{number}.jpg"] = jpeg[:300] if shard and number == 1 else jpeg
                files[f"sample{number}.cls"] = b"1"
        write_tar(tmp_path / f"part-{shard:03d}.tar", files)
    return tmp_path


def test_shards(shards: Path) -> None:
    source = open_images(f"wds/{shards}/part-{{000..001}}.tar", transform=shrink)
    assert source.total is None
    assert "2 shards" in source.description
    batches = read_all(source, 3)
    names = [f"part-{shard:03d}.tar/sample{i}.jpg" for shard in range(2) for i in (range(4), (0, 3))[shard]]
    assert collect(batches, "names") == names
    assert collect(batches, "indices") == [0, 1, 2, 3, 4, 7]
    assert collect(batches, "hashes")[0] == hashlib.sha256(encoded(picture(0), "JPEG")).hexdigest()
    assert [item["name"] for item in source.skipped] == ["part-001.tar/sample1.jpg", "part-001.tar/sample2"]
    assert source.skipped[1]["reason"] == "no image in this sample, only json"
    assert equal(read_all(open_images(f"wds/{shards}", transform=shrink), 3), batches)
    assert equal(read_all(source, 3, workers=2), batches)
    assert equal(merge_ranks(source, 3, 2), batches)
    assert collect(read_all(open_images(f"wds/{shards}", transform=shrink, limit=2)), "indices") == [0, 1]


def test_the_rest_of_a_shard_that_is_cut_off_is_lost_and_named(shards: Path) -> None:
    first = shards / "part-000.tar"
    first.write_bytes(first.read_bytes()[:3500])
    source = open_images(f"wds/{shards}", transform=shrink)
    names = read_names(source)
    assert "part-001.tar/sample3.jpg" in names
    assert "part-000.tar/sample3.jpg" not in names
    (broken,) = (item for item in source.skipped if item["name"] == "part-000.tar")
    assert is_break(broken["reason"])
    assert "cut off at byte 3,500, inside sample1.jpg; 1 sample before it was read, and what" in broken["reason"]


def test_missing_shards(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no webdataset shard at .*part-002\.tar and 1 more"):
        open_images(f"wds/{shards}/part-{{000..003}}.tar")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"no webdataset shards in .*none; expected files that end in \.tar"):
        open_images(f"wds/{tmp_path}/none")


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ValueError, match=r"needs the package webdataset: pip install 'tokenlens-vit\[data\]'"):
        open_images(f"wds/{shards}")
