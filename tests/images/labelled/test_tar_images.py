"""Images of tar archives are read in any order, also by several processes at once."""

import multiprocessing
import os
import pickle
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.image_files import encoded, picture, write_tar
from tokenlens.images.labelled.tar_images import OpenFiles, TarImages
from tokenlens.images.labelled.tar_index import index_images


def test_an_archive_that_goes_away_or_shrinks_has_unreadable_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {f"{number}.png": encoded(picture(number)) for number in range(4)})
    index = index_images(path)
    os.truncate(path, 5000)
    reasons = [TarImages([path], [index], prefix_names=False)[position].reason for position in range(4)]
    assert reasons == ["", "", "the archive ends before this image", "the archive ends before this image"]
    path.unlink()
    assert TarImages([path], [index], prefix_names=False)[0].reason == "No such file or directory"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_thousands_of_shards_do_not_use_up_the_open_files(tmp_path: Path) -> None:
    before = descriptors()
    paths = [tmp_path / str(number) for number in range(100)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 4)
    with closing(OpenFiles()) as opened:
        for _ in range(2):
            assert [opened.read(path, 1, 2) for path in paths] == [bytes([number]) * 2 for number in range(100)]
        assert descriptors() == before + OpenFiles.LIMIT
        copy = pickle.loads(pickle.dumps(opened))
        assert copy.read(paths[7], 0, 1) == b"\x07"
    copy.close()
    assert descriptors() == before


def _read_many(found: TarImages, names: list[str], results: multiprocessing.Queue) -> None:
    wrong = sum(found[position].content != names[position].encode() * 1000 for _ in range(20) for position in range(50))
    results.put(wrong)


def test_forked_processes_read_the_same_archive_at_once(tmp_path: Path) -> None:
    names = [f"{number:02d}.png" for number in range(50)]
    write_tar(tmp_path / "a.tar", {name: name.encode() * 1000 for name in names})
    found = TarImages([tmp_path / "a.tar"], [index_images(tmp_path / "a.tar")], prefix_names=False)
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
