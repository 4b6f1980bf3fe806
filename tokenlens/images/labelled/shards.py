"""Images in tar archives in any order: an index says where each one lies; it is made once and kept in a cache.

See docs/decisions/0009-an-index-of-tar-shards.md for why they are not read as a stream.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenlens.images.decoding import image_extensions
from tokenlens.images.items import Record, printable
from tokenlens.images.packed_strings import Names
from tokenlens.images.streams import WdsRecords
from tokenlens.storage.cache import cache_folder

VERSION = 1
"""Of what is kept in the cache: an index of another version is made again."""

LABEL_FIELDS = ("label", "cls")
"""Where a sample's json says its class, if it has no .cls file."""


@dataclass(frozen=True)
class TarIndex:
    """Where the images of one archive lie, N of them.

    Args:
        names: of the files inside.
        offsets: (N,) int64, of an image's first byte in the archive.
        sizes: (N,) int64, bytes; −1 where a webdataset sample has no image.
        labels: (N,) int64, class numbers of webdataset samples; −1 where there is none.
    """

    names: Names
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


def index_images(path: Path) -> TarIndex:
    """All image files in a tar archive, sorted by name, hidden ones left out.

    Raises:
        ValueError: if it is no complete, uncompressed tar archive, or holds no images.
    """
    return _kept(path, "images", _images)


def index_samples(path: Path) -> TarIndex:
    """All samples of a webdataset shard, in its order: ``KEY.jpg`` with ``KEY.cls`` or ``KEY.json``.

    The label is the number in the .cls file or, without one, the field "label" or "cls" of the json.

    Raises:
        ValueError: if it is no complete, uncompressed tar archive, or a .cls file holds no number from 0.
    """
    return _kept(path, "samples", _samples)


def _kept(path: Path, kind: str, build: Callable[[Path], TarIndex]) -> TarIndex:
    """The index from the cache, if the archive has not changed since; otherwise a new one, which is put there."""
    stat = path.stat()
    key = json.dumps([VERSION, kind, os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
    kept = cache_folder("tar_index") / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}.npz"
    try:
        with open(kept, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = Names.of_arrays(arrays["text"], arrays["ends"])
            return TarIndex(names, arrays["offsets"], arrays["sizes"], arrays["labels"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # not there yet, or damaged
    index = build(path)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept.parent, prefix=".", delete=False) as new:
            try:
                np.savez(
                    new,
                    text=index.names.text,
                    ends=index.names.ends,
                    offsets=index.offsets,
                    sizes=index.sizes,
                    labels=index.labels,
                )
                new.close()
                os.replace(new.name, kept)
            except BaseException:
                os.unlink(new.name)
                raise
    except OSError:
        pass  # a full disk or a home that cannot be written to: the next run reads the headers again
    return index


Place = tuple[int, int]
"""Offset and size."""


def _files(path: Path) -> dict[str, Place]:
    """Name → place of every file in an archive; a link has the place of what it points to."""
    if not tarfile.is_tarfile(path):
        raise ValueError(f"{path} is no tar archive")
    files: dict[str, Place] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name).lstrip("/")
                if member.isreg():
                    files[name] = (member.offset_data, member.size)
                elif member.islnk() or member.issym():
                    links[name] = posixpath.normpath(
                        member.linkname if member.islnk() else posixpath.join(posixpath.dirname(name), member.linkname)
                    )
    except tarfile.ReadError as error:
        try:
            tarfile.open(path, "r:").close()
        except tarfile.ReadError:
            raise ValueError(
                f"{path} is a compressed archive, in which no image can be found without reading all before it; "
                "expected a plain .tar (gunzip, unxz or bunzip2 makes one)"
            ) from error
        raise ValueError(f"the archive {path} breaks off or is damaged ({error}); copy it again") from error
    return {**files, **{name: files.get(target, (0, 0)) for name, target in links.items()}}


def _index(places: Mapping[str, Place], labels: Sequence[int] | None = None) -> TarIndex:
    offsets, sizes = np.array(list(places.values()), dtype=np.int64).reshape(-1, 2).T.copy()
    return TarIndex(Names(places), offsets, sizes, np.array(labels or [-1] * len(places), dtype=np.int64))


def _images(path: Path) -> TarIndex:
    files = _files(path)
    images = sorted(
        name
        for name in files
        if posixpath.splitext(name)[1].lower() in image_extensions()
        and not any(part.startswith(".") for part in name.split("/"))
    )
    if not images:
        looked_for = " ".join(sorted(image_extensions()))
        raise ValueError(f"no images in {path}; looked for files that end in {looked_for}, found {len(files)} others")
    return _index({name: files[name] for name in images})


def _samples(path: Path) -> TarIndex:
    samples: dict[str, dict[str, Place]] = {}
    for name, place in _files(path).items():
        folder, base = posixpath.split(name)
        key, dot, extension = base.partition(".")
        # Files without an extension, and those that webdataset keeps for itself (__…__), belong to no sample.
        if key and dot and not base.startswith("__"):
            samples.setdefault(posixpath.join(folder, key), {})[extension.lower()] = place
    places, labels = {}, []
    with OpenFiles() as opened:
        for key, files in samples.items():
            images = [kind for kind in files if f".{kind.rpartition('.')[2]}" in image_extensions()]
            image = next((kind for kind in WdsRecords.PREFERRED if kind in images), images[0] if images else None)
            places[key if image is None else f"{key}.{image}"] = (0, -1) if image is None else files[image]
            labels.append(
                _label(
                    f"{path}/{key}",
                    {kind: opened.read(path, *files[kind]) for kind in ("cls", "json") if kind in files},
                )
            )
    if not places:
        raise ValueError(f"no samples in {path}; expected files KEY.jpg and KEY.cls or KEY.json")
    return _index(places, labels)


def _label(sample: str, files: Mapping[str, bytes]) -> int:
    """What a sample's files say its class is; −1 if they do not."""
    value: Any = None
    if "cls" in files:
        value = files["cls"].decode("utf-8", "replace").strip()
    elif "json" in files:
        try:
            fields = json.loads(files["json"])
        except ValueError as error:
            raise ValueError(f"the json of {sample} cannot be read: {error}") from error
        if isinstance(fields, dict):
            value = next((fields[field] for field in LABEL_FIELDS if fields.get(field) is not None), None)
    if value is None:
        return -1
    try:
        label = int(value)
    except (TypeError, ValueError):
        label = -1
    if label < 0:
        raise ValueError(f"the class of {sample} is {value!r}; expected a number from 0")
    return label


class OpenFiles:
    """Reads parts of files, in any order, and keeps the files that it read last open.

    A file is opened in the process that reads it: descriptors are neither pickled nor taken over by a fork.
    """

    LIMIT = 64  # a process may have 1024 open in most places, and data sets have thousands of shards

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """The bytes from ``offset`` on; fewer than ``size`` where the file ends.

        Raises:
            OSError: if the file cannot be read.
        """
        if self._process != os.getpid():
            self._start()
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
        else:
            self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._descriptors) > self.LIMIT:
                os.close(self._descriptors.popitem(last=False)[1])
        return os.pread(self._descriptors[path], size, offset)

    def close(self) -> None:
        """Close what this process opened."""
        if self._process == os.getpid():
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()


class TarRecords:
    """Images of tar archives, undecoded, in any order.

    Args:
        paths: of the archives, S of them.
        indices: of each archive.
        named: whether an image's name begins with its archive's.
    """

    def __init__(self, paths: Sequence[Path], indices: Sequence[TarIndex], named: bool) -> None:
        self.paths = list(paths)
        self.names = Names(
            f"{path.name}/{name}" if named else name
            for path, index in zip(paths, indices, strict=True)
            for name in index.names
        )
        self.archives = np.repeat(np.arange(len(indices)), [len(index.names) for index in indices])
        self.offsets = np.concatenate([index.offsets for index in indices])
        self.sizes = np.concatenate([index.sizes for index in indices])
        self.labels = np.concatenate([index.labels for index in indices])
        self._opened = OpenFiles()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> Record:
        name = printable(self.names[position])
        size = int(self.sizes[position])
        if size < 0:
            return Record(name, reason="no image in this sample")
        try:
            content = self._opened.read(self.paths[self.archives[position]], int(self.offsets[position]), size)
        except OSError as error:
            return Record(name, reason=error.strerror or str(error))
        if len(content) < size:
            return Record(name, reason="the archive ends before this image")
        return Record(name, content)
