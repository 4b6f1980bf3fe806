"""Write files whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write to; on success it takes the name ``path`` in one step.

    After an error or an interrupt the temporary file is removed and an existing file is left as it was.

    Args:
        path: the file to write or replace.
        durable: flush the file and its folder to disk before returning, so that a power cut cannot lose it.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~umask())  # mkstemp makes files that only their owner can read
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path, durable=durable) as temporary:
        # A path that is not valid Unicode holds lone surrogates, which JSON writes as backslash escapes.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Write a value as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False), durable=durable)


def umask() -> int:
    """Return the process's umask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
