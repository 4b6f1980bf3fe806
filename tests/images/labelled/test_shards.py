"""The index of a tar archive finds what tarfile finds, is made once, and survives what may happen to its file."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.image_files import encoded, picture, write_tar
from tokenlens.images.labelled import shards
from tokenlens.images.labelled.shards import OpenFiles, TarRecords, index_images, index_samples
from tokenlens.images.packed_strings import Names
from tokenlens.storage.cache import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tar_index"


def records(path: Path) -> TarRecords:
    return TarRecords([path], [index_images(path)], named=False)


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"))))
def test_names_are_a_list(texts: list[str]) -> None:
    names = Names(texts)
    assert names == texts
    assert [names[index] for index in range(-len(texts), len(texts))] == texts + texts
    assert names[1:] == texts[1:]
    assert pickle.loads(pickle.dumps(names)) == names == Names.of_arrays(names.text, names.ends)
    with pytest.raises(IndexError):
        names[len(texts)]


def test_names_that_are_not_utf_8_keep_their_bytes() -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert os.fsencode(Names([name])[0]) == b"caf\xe9.png"


def test_the_index_finds_what_tarfile_finds(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    long = "x" * 90 + "/" + "y" * 120 + ".png"  # needs headers of its own in the tar
    files = {name: encoded(picture(number)) for number, name in enumerate(("./b/2.png", "a/1.png", long, "a/ä.JPEG"))}
    write_tar(path, {**files, "a/notes.txt": b"no image", "a/._1.png": b"hidden", ".git/1.png": b"hidden"})
    found = records(path)
    assert found.names == sorted(["b/2.png", "a/1.png", long, "a/ä.JPEG"])
    with tarfile.open(path) as archive:
        for position, name in enumerate(found.names):
            member = archive.extractfile(name if name != "b/2.png" else "./b/2.png")
            assert member is not None
            assert found[position].content == member.read()
            assert found[position].name == name


def test_links_and_replaced_files_are_what_tar_says(tmp_path: Path) -> None:
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
    found = records(path)
    content = dict(zip(found.names, (found[position].content for position in range(4)), strict=True))
    assert content == {"a/1.png": second, "b/hard.png": second, "b/soft.png": second, "b/lost.png": b""}


def test_the_headers_are_read_once_until_the_archive_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"1.png": encoded(picture(0))})
    read: list[Path] = []
    files = shards._files
    monkeypatch.setattr(shards, "_files", lambda path: read.append(path) or files(path))
    first = index_images(path)
    again = index_images(path)
    assert len(read) == 1
    assert again.names == first.names
    assert np.array_equal(again.offsets, first.offsets)
    assert np.array_equal(again.sizes, first.sizes)
    (kept,) = cache.iterdir()  # and no temporary file
    kept.write_bytes(kept.read_bytes()[:100])
    assert index_images(path).names == first.names  # a damaged index is made again
    kept.write_bytes(b"")
    assert index_images(path).names == first.names
    assert len(read) == 3
    write_tar(path, {"1.png": encoded(picture(0)), "2.png": encoded(picture(1))})
    assert index_images(path).names == ["1.png", "2.png"]


def test_without_a_cache_the_index_is_made_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "file"))
    write_tar(tmp_path / "a.tar", {"1.png": encoded(picture(0))})
    assert index_images(tmp_path / "a.tar").names == ["1.png"]


def test_the_cache_is_in_its_own_folder_or_in_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder("kind") == tmp_path / "cache" / "kind"
    monkeypatch.delenv("TOKENLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("kind") == tmp_path / "xdg" / "tokenlens" / "kind"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("kind") == tmp_path / ".cache" / "tokenlens" / "kind"


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_compressed_archives_are_refused(tmp_path: Path, mode: str) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": encoded(picture(0))}, mode)
    with pytest.raises(ValueError, match=r"a\.tar is a compressed archive"):
        index_images(tmp_path / "a.tar")


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {f"{number}.png": encoded(picture(number)) for number in range(4)})
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"a\.tar breaks off or is damaged"):
        index_images(path)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"a\.tar is no tar archive"):
        index_images(path)
    write_tar(path, {"notes.txt": b"no image"})
    with pytest.raises(ValueError, match=r"no images in .*a\.tar; looked for files that end in .*\.jpg.*found 1 other"):
        index_images(path)


def test_an_archive_that_goes_away_or_shrinks_has_unreadable_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {f"{number}.png": encoded(picture(number)) for number in range(4)})
    index = index_images(path)
    os.truncate(path, 5000)
    reasons = [TarRecords([path], [index], named=False)[position].reason for position in range(4)]
    assert reasons == ["", "", "the archive ends before this image", "the archive ends before this image"]
    path.unlink()
    assert TarRecords([path], [index], named=False)[0].reason == "No such file or directory"


def test_samples_of_a_shard(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    image = encoded(picture(0), "JPEG")
    write_tar(
        path,
        {
            "a/one.cls": b"3\n",
            "a/one.jpg": image,
            "a/two.seg.png": b"second choice",
            "a/two.jpg": image,
            "a/two.json": b'{"label": 5}',
            "three.JPEG": image,
            "three.json": b'{"cls": "7"}',
            "four.json": b'{"text": "no image"}',
            "__meta__.json": b"{}",
            "README": b"no extension",
            "five.webp": b"broken",
        },
    )
    index = index_samples(path)
    found = TarRecords([path], [index], named=True)
    assert found.names == [
        "shard.tar/a/one.jpg",
        "shard.tar/a/two.jpg",
        "shard.tar/three.jpeg",
        "shard.tar/four",
        "shard.tar/five.webp",
    ]
    assert found.labels.tolist() == [3, 5, 7, -1, -1]
    assert [found[position].content for position in range(5)] == [image, image, image, None, b"broken"]
    assert found[3].reason == "no image in this sample"
    assert index_samples(path).labels.tolist() == [3, 5, 7, -1, -1]  # from the cache


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": b"", "a.cls": b"cat"}, r"the class of .*shard\.tar/a is 'cat'; expected a number from 0"),
        ({"a.jpg": b"", "a.cls": b"-1"}, r"the class of .*/a is '-1'"),
        ({"a.jpg": b"", "a.json": b"{"}, r"the json of .*/a cannot be read"),
        ({"README": b""}, r"no samples in .*shard\.tar; expected files KEY\.jpg and KEY\.cls"),
    ],
)
def test_wrong_samples(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    write_tar(tmp_path / "shard.tar", files)
    with pytest.raises(ValueError, match=message):
        index_samples(tmp_path / "shard.tar")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_thousands_of_shards_do_not_use_up_the_open_files(tmp_path: Path) -> None:
    before = descriptors()
    paths = [tmp_path / str(number) for number in range(100)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 4)
    with OpenFiles() as opened:
        for _ in range(2):
            assert [opened.read(path, 1, 2) for path in paths] == [bytes([number]) * 2 for number in range(100)]
        assert descriptors() == before + OpenFiles.LIMIT
        copy = pickle.loads(pickle.dumps(opened))
        assert copy.read(paths[7], 0, 1) == b"\x07"
    copy.close()
    assert descriptors() == before


def _read_many(found: TarRecords, names: list[str], results: multiprocessing.Queue) -> None:
    wrong = sum(found[position].content != names[position].encode() * 1000 for _ in range(20) for position in range(50))
    results.put(wrong)


def test_forked_processes_read_the_same_archive_at_once(tmp_path: Path) -> None:
    names = [f"{number:02d}.png" for number in range(50)]
    write_tar(tmp_path / "a.tar", {name: name.encode() * 1000 for name in names})
    found = records(tmp_path / "a.tar")
    assert found[0].content == names[0].encode() * 1000  # open before the fork
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_read_many, args=(found, names, results)) for _ in range(2)]
    for child in children:
        child.start()
    _read_many(found, names, results)
    assert [results.get(timeout=60) for _ in range(3)] == [0, 0, 0]
    for child in children:
        child.join()
