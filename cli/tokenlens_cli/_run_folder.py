"""Choose the folder of a result, and save the result there."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tokenlens_cli._output import say

if TYPE_CHECKING:
    from tokenlens.storage.result import Result

LONGEST_NAME = 100
"""Characters in a folder's name. File systems allow 255 bytes, and temporary folders append a few."""


def default_folder(name: str) -> Path:
    """Return ``reports/<name>`` with every character replaced that could leave ``reports``.

    >>> default_folder("hf-hub:timm/vit_base_patch16_224.mae").as_posix()
    'reports/hf-hub_timm_vit_base_patch16_224.mae'
    >>> default_folder("local-dir:../../models").as_posix()
    'reports/local-dir_.._.._models'
    """
    safe = re.sub(r"[^\w.+-]+", "_", name).lstrip(".-") or "model"
    if len(safe) > LONGEST_NAME:
        safe = f"{safe[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return Path("reports") / safe


def save_result(result: Result, folder: Path, *, overwrite: bool, report: bool) -> None:
    """Write the run folder with its report; if the report cannot be drawn, save the numbers and raise ValueError."""
    if report:
        say("drawing the figures")
    try:
        result.save(folder, overwrite=overwrite, report=report)
    except OSError:
        raise
    except Exception as error:
        if not report:
            raise
        result.save(folder, overwrite=overwrite, report=False)
        raise ValueError(
            f"the report could not be drawn ({type(error).__name__}: {error}). The numbers are saved in {folder}; "
            f"`tokenlens report {folder}` tries again"
        ) from error
