"""Images of webdataset shards (``wds/…``), read as a stream with the package ``webdataset``.

docs/decisions/0005-our-own-readers-of-streams.md says why timm's readers are not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenlens.images._optional import import_data_package
from tokenlens.images.decoding import is_image_name
from tokenlens.images.files import RawImage

PREFERRED = ("jpg", "png", "webp", "jpeg")


class WebDatasetImages:
    """The images of webdataset shards, undecoded, in the order of the shards.

    Args:
        pattern: path or URL of shards with braces (``data/train-{000..009}.tar``), one shard, or a folder of shards.

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
            shard_name = shard.rsplit("/", 1)[-1]
            try:
                with wds.gopen(shard) as stream:
                    files = wds.tariterators.tar_file_expander([{"url": shard, "stream": stream}])
                    for sample in wds.tariterators.group_by_keys(files):
                        yield _raw_image(shard_name, sample)
            except Exception as error:  # the rest of a damaged shard is lost, and counts as one skipped image
                reason = str(error.args[0] if error.args else "").partition(" @ ")[0]  # then a memory address
                reason = f"the shard is cut off or damaged ({type(error).__name__}: {reason})"
                yield RawImage(shard_name, reason=reason)


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
    missing = [shard for shard in shards if ":" not in shard and not Path(shard).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"no webdataset shard at {missing[0]}{more}; expected a folder or NAME-{{00..09}}.tar")
    return shards


def choose_image(extensions: Sequence[str]) -> str | None:
    """Return which file of a sample is its image, by the files' extensions; None if there is no image."""
    images = [extension for extension in extensions if is_image_name(f"image.{extension}")]
    return next((extension for extension in PREFERRED if extension in images), images[0] if images else None)


def _raw_image(shard: str, sample: dict[str, Any]) -> RawImage:
    extensions = [key for key in sample if not key.startswith("__")]
    image = choose_image(extensions)
    name = f"{shard}/{sample['__key__']}"
    if image is None:
        return RawImage(name, reason=f"no image in this sample, only {', '.join(extensions) or 'nothing'}")
    return RawImage(f"{name}.{image}", sample[image])
