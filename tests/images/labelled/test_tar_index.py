"""The index of a tar archive finds what tarfile finds, is built once, and outdated or damaged copies are replaced."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.image_files import encoded, picture, write_tar
from tokenlens.images.labelled import tar_index
from tokenlens.images.labelled.tar_images import TarImages
from tokenlens.images.labelled.tar_index import index_images, index_samples


def open_images(path: Path) -> TarImages:
    return TarImages([path], [index_images(path)], prefix_names=False)


def test_the_index_finds_what_tarfile_finds(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    long = "x" * 90 + "/" + "y" * 120 + ".png"  # needs extra headers in the archive
    files = {name: encoded(picture(number)) for number, name in enumerate(("./b/2.png", "a/1.png", long, "a/ä.JPEG"))}
    write_tar(path, {**files, "a/notes.txt": b"no image", "a/._1.png": b"hidden", ".git/1.png": b"hidden"})
    found = open_images(path)
    assert found.names == sorted(["b/2.png", "a/1.png", long, "a/ä.JPEG"])
    with tarfile.open(path) as archive:
        for position, name in enumerate(found.names):
            member = archive.extractfile(name if name != "b/2.png" else "./b/2.png")
            assert member is not None
            assert found[position].content == member.read()
            assert found[position].name == name


def test_links_and_replaced_files_are_as_in_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    first, second = encoded(picture(0)), encoded(picture(1))
    write_tar(path, {"a/1.png": first})
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("b/hard.png", tarfile.LNKTYPE, "a/1.png"),
            ("b/soft.png", tarfile.SYMTYPE, "../a/1.png"),
            ("b/lost.png", tarfile.SYMTYPE, "../a/none.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
        info = tarfile.TarInfo("a/1.png")  # tar -r adds a newer version of a file at the end
        info.size = len(second)
        archive.addfile(info, io.BytesIO(second))
    found = open_images(path)
    content = dict(zip(found.names, (found[position].content for position in range(4)), strict=True))
    assert content == {"a/1.png": second, "b/hard.png": second, "b/soft.png": second, "b/lost.png": b""}


def test_the_headers_are_read_once_until_the_archive_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"1.png": encoded(picture(0))})
    read: list[Path] = []
    read_headers = tar_index._read_headers
    monkeypatch.setattr(tar_index, "_read_headers", lambda path: read.append(path) or read_headers(path))
    first = index_images(path)
    again = index_images(path)
    assert len(read) == 1
    assert again.names == first.names
    assert np.array_equal(again.offsets, first.offsets)
    assert np.array_equal(again.sizes, first.sizes)
    (kept,) = (cache / "tar_index").iterdir()  # and no temporary file
    kept.write_bytes(kept.read_bytes()[:100])
    assert index_images(path).names == first.names  # a damaged index is built again
    kept.write_bytes(b"")
    assert index_images(path).names == first.names
    assert len(read) == 3
    write_tar(path, {"1.png": encoded(picture(0)), "2.png": encoded(picture(1))})
    assert index_images(path).names == ["1.png", "2.png"]


def test_without_a_cache_the_index_is_built_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "file"))
    write_tar(tmp_path / "a.tar", {"1.png": encoded(picture(0))})
    assert index_images(tmp_path / "a.tar").names == ["1.png"]


def test_compressed_and_broken_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for mode in ("w:gz", "w:xz"):
        write_tar(path, {"1.png": encoded(picture(0))}, mode)
        with pytest.raises(ValueError, match=r"a\.tar is a compressed archive"):
            index_images(path)
    write_tar(path, {f"{number}.png": encoded(picture(number)) for number in range(4)})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"a\.tar is broken: cut off at byte 5,000, inside 2\.png; copy it again"):
        index_images(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.tar is not a tar archive"):
        index_images(path)
    write_tar(path, {"notes.txt": b"no image"})
    with pytest.raises(ValueError, match=r"no images in .*a\.tar, but 1 other file; expected .*\.jpg"):
        index_images(path)


def test_samples_of_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    image = encoded(picture(0), "JPEG")
    one = {"a/one.cls": b"3\n", "a/one.jpg": image}
    two = {"a/two.seg.png": b"second choice", "a/two.jpg": image, "a/two.json": b'{"label": 5}'}
    three = {"three.JPEG": image, "three.json": b'{"cls": "7"}'}
    others = {"four.json": b'{"text": "no image"}', "__meta__.json": b"{}", "README": b"text", "five.webp": b"broken"}
    write_tar(path, {**one, **two, **three, **others})
    index = index_samples(path)
    found = TarImages([path], [index], prefix_names=True)
    names = ("a/one.jpg", "a/two.jpg", "three.jpeg", "four", "five.webp")
    assert found.names == [f"shard.tar/{name}" for name in names]
    assert found.labels.tolist() == [3, 5, 7, -1, -1]
    assert [found[position].content for position in range(5)] == [image, image, image, None, b"broken"]
    assert found[3].reason == "no image in this sample"
    assert index_samples(path).labels.tolist() == [3, 5, 7, -1, -1]  # from the cache


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": b"", "a.cls": b"cat"}, r"the class of .*shard\.tar/a is 'cat'; expected a whole number from 0"),
        ({"a.jpg": b"", "a.cls": b"-1"}, r"the class of .*/a is '-1'"),
        ({"a.jpg": b"", "a.json": b"{"}, r"the JSON of .*/a cannot be read"),
        ({"README": b""}, r"no samples in .*shard\.tar; expected files KEY\.jpg and KEY\.cls"),
    ],
)
def test_wrong_samples(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "shard.tar", files)
    with pytest.raises(ValueError, match=message):
        index_samples(tmp_path / "shard.tar")
