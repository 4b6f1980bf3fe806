"""Where a tar archive breaks off is said, wherever it is cut, as a file and as a stream."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from tests.support.image_files import write_tar
from tokenlens.images.tar_files import TarFiles

FILES = {f"{number}.jpg": bytes([number]) * 700 for number in range(3)}
ENTRY = 512 + 1024
"""Bytes of a header and the padded content."""


def read(source: Path | io.BytesIO) -> tuple[list[str], str]:
    """Return the complete files, and how the archive breaks off."""
    files = TarFiles(source)
    names = []
    for member in files:
        content = files.read(member)
        if content is not None:
            assert content == FILES[member.name]
            names.append(member.name)
    files.close()
    return names, files.problem


@pytest.mark.parametrize(
    ("size", "complete", "problem"),
    [
        (10240, 3, ""),
        (3 * ENTRY + 512, 3, ""),
        (3 * ENTRY, 3, "without an end mark after byte 4,608 (2.jpg), so files may be missing"),
        (2 * ENTRY + 300, 2, "cut off at byte 3,372, in the header after 1.jpg"),
        (2 * ENTRY + 512, 2, "cut off at byte 3,584, inside 2.jpg"),
        (ENTRY + 512 + 699, 1, "cut off at byte 2,747, inside 1.jpg"),
        (ENTRY + 512 + 700, 2, "cut off or damaged at byte 2,748, after 1.jpg (unexpected end of data)"),
        (0, 0, "it is empty (0 bytes)"),
    ],
)
def test_a_cut_is_located(tmp_path: Path, size: int, complete: int, problem: str) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, FILES)
    whole = path.read_bytes()
    assert len(whole) == 10240
    path.write_bytes(whole[:size])
    assert read(path) == (list(FILES)[:complete], problem)
    assert read(io.BytesIO(whole[:size])) == (list(FILES)[:complete], problem)


def test_a_header_of_garbage_ends_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, FILES)
    whole = bytearray(path.read_bytes())
    whole[ENTRY : ENTRY + 512] = b"garbage " * 64
    path.write_bytes(whole)
    for source in (path, io.BytesIO(whole)):
        names, problem = read(source)
        assert names == ["0.jpg"]
        assert "damaged at byte 1,536, in the header after 0.jpg" in problem


def test_compressed_streams_are_read_and_files_that_are_no_archive_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, FILES)
    whole = path.read_bytes()
    assert read(io.BytesIO(gzip.compress(whole))) == (list(FILES), "")
    assert read(io.BytesIO(gzip.compress(whole[:2500]))) == (["0.jpg"], "cut off at byte 2,500, inside 1.jpg")
    path.write_bytes(b"no archive" * 100)
    for source in (path, io.BytesIO(b"no archive" * 100)):
        with pytest.raises(tarfile.ReadError):
            TarFiles(source)
