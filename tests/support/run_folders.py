"""Change the files of a run folder as somebody might who wants it to load all the same."""

import json
from pathlib import Path

from tokenlens.storage.hashing import file_sha256
from tokenlens.storage.run_folder import MANIFEST


def forge(folder: Path, file: str, old: str, new: str) -> None:
    """Change a file and make the manifest agree."""
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    if file != MANIFEST:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"][file] = {"bytes": (folder / file).stat().st_size, "sha256": file_sha256(folder / file)}
        (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
