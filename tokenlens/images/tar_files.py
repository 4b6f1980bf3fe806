"""Read the files of a tar archive in order, and say where a damaged archive breaks off.

``tarfile`` ends silently at a header that is cut off or unreadable, as if the archive were complete.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


class _Header(tarfile.TarInfo):
    """A header that leaves the reason in its archive when it cannot be read."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> _Header:
        try:
            header = super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            archive.unread_header = (type(error).__name__, str(error))
            raise
        assert isinstance(header, _Header)
        return header


class TarFiles:
    """The regular files and links of a tar archive, in order.

    Args:
        source: path of an archive that is not compressed, or an open stream of one, which may be compressed.

    Attributes:
        problem: after the iteration, where and how the archive breaks off, or "" for a complete one.
        incomplete: the file in which it breaks off, or "".

    Raises:
        tarfile.ReadError: if it is not a tar archive at all; an empty one has a problem instead.
    """

    def __init__(self, source: Path | IO[bytes]) -> None:
        self.problem = self.incomplete = ""
        self._archive: Any = None
        self._path = source if isinstance(source, Path) else None
        mode: Any = "r|*" if self._path is None else "r:"
        given: Any = {"fileobj": source} if self._path is None else {"name": source}
        try:
            self._archive = tarfile.open(**given, mode=mode, tarinfo=_Header)  # noqa: SIM115  closed by ``close``
        except tarfile.ReadError as error:
            if str(error) != "empty file":
                raise
            self.problem = "it is empty (0 bytes)"

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        last = ""
        try:
            while self._archive is not None and (member := self._archive.next()) is not None:
                self._archive.members.clear()  # a list of all headers
                if self._path is None or member.offset_data + member.size <= self._path.stat().st_size:
                    last = member.name
                else:
                    self._break(f"cut off at byte {self._path.stat().st_size:,}, inside {member.name}", member.name)
                    return
                if not member.isdir():
                    yield member
        except tarfile.ReadError as error:
            self._break(f"cut off or damaged at byte {self._position():,}, after {last} ({error})")
            return
        if self._archive is None or self.problem:
            return
        kind, reason = self._archive.unread_header
        if kind == "TruncatedHeaderError":
            self._break(f"cut off at byte {self._position():,}, in the header after {last}")
        elif kind == "EmptyHeaderError":
            self._break(f"without an end mark after byte {self._position():,} ({last}), so files may be missing")
        elif kind != "EOFHeaderError":
            self._break(f"damaged at byte {self._archive.offset:,}, in the header after {last} ({reason})")

    def read(self, member: tarfile.TarInfo) -> bytes | None:
        """Return the content of the file that the iteration has just yielded; None if the archive ends inside it."""
        try:
            file = self._archive.extractfile(member)
            return b"" if file is None else bytes(file.read())
        except tarfile.ReadError:
            self._break(f"cut off at byte {self._position():,}, inside {member.name}", member.name)
            return None

    def close(self) -> None:
        """Close the archive."""
        if self._archive is not None:
            self._archive.close()

    def _position(self) -> int:
        position = int(self._archive.fileobj.tell())  # of a compressed archive, in its decompressed content
        return position if self._path is None else min(position, self._path.stat().st_size)

    def _break(self, problem: str, incomplete: str = "") -> None:
        self.problem = self.problem or problem
        self.incomplete = self.incomplete or incomplete


def split_sample_name(name: str) -> tuple[str, str] | None:
    """Split a file's name in a webdataset shard into the key of its sample and its extension, in lower case.

    Files without an extension, and webdataset's own (``__…__``), belong to no sample.

    >>> split_sample_name("a/one.seg.PNG"), split_sample_name("README"), split_sample_name("__meta__.json")
    (('a/one', 'seg.png'), None, None)
    """
    folder, slash, base = name.rpartition("/")
    key, dot, extension = base.partition(".")
    return (folder + slash + key, extension.lower()) if key and dot and not base.startswith("__") else None
