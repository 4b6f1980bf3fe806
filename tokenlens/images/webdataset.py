"""Images of webdataset shards (``wds/…``), read as a stream with the package ``webdataset``.

docs/decisions/0005-our-own-readers-of-streams.md says why timm's readers are not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from tokenlens.images._optional import import_data_package
from tokenlens.images.decoding import is_image_name
from tokenlens.images.files import RawImage
from tokenlens.images.tar_files import TarFiles, split_sample_name
from tokenlens.storage.wording import counted

BROKEN = "the shard is broken"
PREFERRED = ("jpg", "png", "webp", "jpeg")


class WebDatasetImages:
    """The images of webdataset shards, undecoded, in the order of the shards.

    Args:
        pattern: path or URL of shards with braces (``data/train-{000..009}.tar``), a path with wildcards
            (``data/train-*.tar``), one shard, or a folder of shards.

    Raises:
        ValueError: if the package or a shard is missing.
    """

    def __init__(self, pattern: str) -> None:
        self.shards = find_shards(pattern)
        count = len(self.shards)
        self.description = f"webdataset {pattern}, {count} {'shard' if count == 1 else 'shards'}"

    def __iter__(self) -> Iterator[RawImage]:
        wds = import_data_package("webdataset", "wds/…")
        for shard in self.shards:
            name, count = shard.rsplit("/", 1)[-1], 0
            try:
                with wds.gopen(shard) as stream:
                    files = TarFiles(stream)
                    for sample in _samples(files):
                        count += 1
                        yield _raw_image(name, *sample)
            except Exception as error:  # whatever a server, a pipe or a decompressor raises
                problem = f"it cannot be read on ({error})"
            else:
                problem = files.problem
            if problem:
                yield RawImage(name, reason=describe_break(problem, count))


def find_shards(pattern: str) -> list[str]:
    """Return the paths or URLs of the shards that ``pattern`` names; see ``WebDatasetImages``.

    Raises:
        ValueError: if the package or a shard is missing.
    """
    wds = import_data_package("webdataset", "wds/…")
    folder = Path(pattern).expanduser()
    if folder.is_dir():
        shards = [str(shard) for shard in sorted(folder.glob("*.tar"))]
        if not shards:
            raise ValueError(f"no webdataset shards in {folder}; expected files that end in .tar")
        return shards
    shards = list(wds.shardlists.expand_urls(str(folder) if pattern.startswith("~") else pattern))
    if set(pattern) & set("*?["):
        shards = [shard for one in shards for shard in sorted(glob(one))]
        if not shards:
            raise ValueError(
                f"no file fits the pattern {pattern}; expected a folder, NAME-{{00..09}}.tar or NAME-*.tar"
            )
    missing = [shard for shard in shards if ":" not in shard and not Path(shard).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"no webdataset shard at {missing[0]}{more}; expected a folder or NAME-{{00..09}}.tar")
    return shards


def choose_image(extensions: Sequence[str]) -> str | None:
    """Return which file of a sample is its image, by the files' extensions; None if there is no image."""
    images = [extension for extension in extensions if is_image_name(f"image.{extension}")]
    return next((extension for extension in PREFERRED if extension in images), images[0] if images else None)


def describe_break(problem: str, samples: int) -> str:
    """Return what a break in a shard costs, as text."""
    before = f"{counted(samples, 'sample')} before it {'were' if samples > 1 else 'was'}" if samples else "nothing was"
    return f"{BROKEN}: {problem}; {before} read, and what follows is lost"


def is_break(reason: str) -> bool:
    """Return whether the reason of a skipped image is that its shard breaks off."""
    return reason.startswith(BROKEN)


def _samples(files: TarFiles) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield key and files of each complete sample; the content of files that are no images is left out."""
    key, sample = "", dict[str, bytes]()
    for member in files:
        parts = split_sample_name(member.name)
        if parts is None or not member.isreg():
            continue
        if parts[0] != key and sample:
            yield key, sample
            sample = {}
        key, extension = parts
        content = files.read(member) if is_image_name(f"image.{extension}") else b""
        if content is None:
            return
        sample[extension] = content
    incomplete = split_sample_name(files.incomplete)
    if sample and (incomplete is None or incomplete[0] != key):
        yield key, sample


def _raw_image(shard: str, key: str, sample: dict[str, bytes]) -> RawImage:
    image = choose_image(list(sample))
    name = f"{shard}/{key}"
    if image is None:
        return RawImage(name, reason=f"no image in this sample, only {', '.join(sample)}")
    return RawImage(f"{name}.{image}", sample[image])
