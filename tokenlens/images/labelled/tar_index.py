"""An index of the images in a tar archive, built once and kept in the cache.

docs/decisions/0009-an-index-of-tar-shards.md says why archives are not read as a stream.
"""

# Shapes: N images.

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tokenlens.images.decoding import image_extensions, is_image_name
from tokenlens.images.packed_strings import PackedStrings
from tokenlens.images.tar_files import TarFiles, split_sample_name
from tokenlens.images.webdataset import choose_image, describe_break
from tokenlens.storage.cache import cache_folder
from tokenlens.storage.files import replacing
from tokenlens.storage.wording import counted

VERSION = 2
"""Version of the cached index; an index of another version is built again."""

LABEL_FIELDS = ("label", "cls")
"""Fields of a sample's JSON that may hold its class, if it has no .cls file."""

ByteRange = tuple[int, int]
"""Offset and size in bytes."""


@dataclass(frozen=True)
class TarIndex:
    """Positions of the N images in one archive.

    Args:
        names: of the files in the archive.
        offsets: (N,) int64, of an image's first byte in the archive.
        sizes: (N,) int64, bytes; -1 where a webdataset sample has no image.
        labels: (N,) int64, class numbers of webdataset samples; -1 where there is none.
        problem: where and how the archive breaks off, or "" for a complete one.
    """

    names: PackedStrings
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    problem: str = ""


def index_images(path: Path) -> TarIndex:
    """Index all image files in a tar archive, sorted by name, without hidden files.

    Raises:
        ValueError: if it is not a complete, uncompressed tar archive, or contains no images.
    """
    return _cached(path, "images", _build_image_index)


def index_samples(path: Path) -> TarIndex:
    """Index all samples of a webdataset shard, in their order: ``KEY.jpg`` with ``KEY.cls`` or ``KEY.json``.

    The label is the number in the .cls file or, without one, the field "label" or "cls" of the JSON. Of a shard that is
    cut off, the complete samples before the break are indexed, and ``problem`` says where it breaks off.

    Raises:
        ValueError: if it is not an uncompressed tar archive, or a label is not a whole number from 0.
    """
    return _cached(path, "samples", _build_sample_index)


def _cached(path: Path, kind: str, build: Callable[[Path], TarIndex]) -> TarIndex:
    """Return the index from the cache if the archive has not changed since; otherwise build and cache it."""
    stat = path.stat()
    key = json.dumps([VERSION, kind, os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
    cached = cache_folder("tar_index") / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()}.npz"
    try:
        with open(cached, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = PackedStrings.from_arrays(arrays["text"], arrays["ends"])
            problem = str(arrays["problem"])
            return TarIndex(names, arrays["offsets"], arrays["sizes"], arrays["labels"], problem)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # missing or damaged
    index = build(path)
    arrays = {"text": index.names.text, "ends": index.names.ends}
    arrays |= {"offsets": index.offsets, "sizes": index.sizes, "labels": index.labels}
    arrays["problem"] = np.array(index.problem)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with replacing(cached) as temporary, temporary.open("wb") as new:
            np.savez(new, **arrays)
    except OSError:
        pass  # the disk is full or the cache is not writable: the next run reads the headers again
    return index


def _read_headers(path: Path) -> tuple[dict[str, ByteRange], TarFiles]:
    """Return the byte range of every complete file in an archive by name, and the archive.

    A link has the range of its target.
    """
    files: dict[str, ByteRange] = {}
    links: dict[str, str] = {}
    try:
        archive = TarFiles(path)
    except tarfile.ReadError as error:
        if tarfile.is_tarfile(path):
            raise ValueError(
                f"{path} is a compressed archive, where finding an image means reading everything before it; expected "
                "a plain .tar (decompress it with gunzip, unxz or bunzip2)"
            ) from error
        raise ValueError(f"{path} is not a tar archive") from error
    for member in archive:
        name = posixpath.normpath(member.name).lstrip("/")
        if member.isreg():
            files[name] = (member.offset_data, member.size)
        elif member.islnk() or member.issym():
            links[name] = posixpath.normpath(
                member.linkname if member.islnk() else posixpath.join(posixpath.dirname(name), member.linkname)
            )
    archive.close()
    return {**files, **{name: files.get(target, (0, 0)) for name, target in links.items()}}, archive


def _build_image_index(path: Path) -> TarIndex:
    files, archive = _read_headers(path)
    if archive.problem:  # whole classes may be missing
        raise ValueError(f"the archive {path} is broken: {archive.problem}; copy it again")
    images = sorted(
        name for name in files if is_image_name(name) and not any(part.startswith(".") for part in name.split("/"))
    )
    if not images:
        expected = " ".join(sorted(image_extensions()))
        found = counted(len(files), "other file")
        raise ValueError(f"no images in {path}, but {found}; expected files that end in {expected}")
    return _build_index({name: files[name] for name in images})


def _build_sample_index(path: Path) -> TarIndex:
    samples: dict[str, dict[str, ByteRange]] = {}
    files, shard = _read_headers(path)
    for name, byte_range in files.items():
        if parts := split_sample_name(name):
            samples.setdefault(parts[0], {})[parts[1]] = byte_range
    if shard.problem and samples:
        last = next(reversed(samples))
        incomplete = split_sample_name(posixpath.normpath(shard.incomplete))
        if (incomplete and incomplete[0] == last) or next(iter(samples.values())).keys() - samples[last].keys():
            del samples[last]
    if not samples:
        problem = f": {shard.problem}" if shard.problem else "; expected files KEY.jpg and KEY.cls or KEY.json"
        raise ValueError(f"no samples in {path}{problem}")
    images, labels = {}, []
    with path.open("rb") as archive:
        for key, sample in samples.items():
            image = choose_image(list(sample))
            images[key if image is None else f"{key}.{image}"] = (0, -1) if image is None else sample[image]
            labels.append(_read_label(f"{path}/{key}", sample, archive))
    problem = describe_break(shard.problem, len(samples)) if shard.problem else ""
    return _build_index(images, labels, problem)


def _build_index(files: Mapping[str, ByteRange], labels: Sequence[int] | None = None, problem: str = "") -> TarIndex:
    offsets, sizes = np.array(list(files.values()), dtype=np.int64).reshape(-1, 2).T.copy()
    numbers = np.array(labels or [-1] * len(files), dtype=np.int64)
    return TarIndex(PackedStrings(files), offsets, sizes, numbers, problem)


def _read_label(sample: str, files: Mapping[str, ByteRange], archive: BinaryIO) -> int:
    """Return the class number that a sample's files give; -1 if they give none."""
    kind = next((kind for kind in ("cls", "json") if kind in files), None)
    if kind is None:
        return -1
    offset, size = files[kind]
    archive.seek(offset)
    content = archive.read(size)
    value: Any = None
    if kind == "cls":
        value = content.decode("utf-8", "replace").strip()
    else:
        try:
            fields = json.loads(content)
        except ValueError as error:
            raise ValueError(f"the JSON of {sample} cannot be read: {error}") from error
        if isinstance(fields, dict):
            value = next((fields[field] for field in LABEL_FIELDS if fields.get(field) is not None), None)
        if value is None:
            return -1
    try:
        label = int(value)
    except (TypeError, ValueError):
        label = -1
    if label < 0:
        raise ValueError(f"the class of {sample} is {value!r}; expected a whole number from 0")
    return label
