"""Files on a hub or a web server: the local copy if there is one, else a download that fails fast when offline."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import get_session

PROBE_SECONDS = 5.0
"""How long a server may take to answer at all; the hub's own client gives up after 48 s (measured)."""


class UnreachableError(ValueError):
    """A file is neither on this machine nor to be had over the network; the message says why."""


def unreachable(url: str) -> str | None:
    """Why a server cannot be reached, within ``PROBE_SECONDS``; None if it answers, whatever it answers.

    Asks over HTTP, so that proxies count, and in a thread of its own, because no timeout covers the name look-up.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    parts = urlsplit(url)
    root = f"{parts.scheme}://{parts.netloc}"
    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(root, timeout=PROBE_SECONDS)
        except Exception as error:  # any reason at all is the answer
            answers.append(f"{type(error).__name__}: {error}")
        else:
            answers.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if not answers:
        return f"{root} did not answer within {PROBE_SECONDS:g} s"
    return f"{root} cannot be reached ({answers[0]})" if answers[0] else None


def cached_hub_file(repo: str, names: Sequence[str], revision: str | None = None) -> Path | None:
    """The first of these files that this machine already holds of a Hugging Face repository; asks nobody."""
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def hub_file(repo: str, names: Sequence[str], revision: str | None = None) -> Path:
    """The first of these files that a Hugging Face repository has, from this machine if it is there.

    Raises:
        UnreachableError: if the hub does not answer, refuses, or has none of the files.
    """
    found = cached_hub_file(repo, names, revision)
    if found is not None:
        return found
    reason = unreachable(constants.ENDPOINT)
    if reason is not None:
        raise UnreachableError(f"{reason}, and the local cache {constants.HF_HUB_CACHE} does not hold {repo}")
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
        except Exception as error:  # not found, gated, cut off: of several libraries, with no common ancestor
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue  # the repository is there, this file is not
            raise UnreachableError(_failed(repo, error)) from error
    raise UnreachableError(f"the hub's {repo} has none of {', '.join(names)}")


def cached_url_file(url: str) -> Path | None:
    """The file that torch.hub keeps for this address, if it is there."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    return kept if kept.is_file() else None


def url_file(url: str) -> Path:
    """A file by its address, kept where torch.hub keeps it.

    Raises:
        UnreachableError: if the server does not answer or the download fails.
    """
    found = cached_url_file(url)
    if found is not None:
        return found
    reason = unreachable(url)
    if reason is not None:
        raise UnreachableError(reason)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    kept.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(kept))
    except (OSError, RuntimeError) as error:
        raise UnreachableError(_failed(url, error)) from error
    return kept


def _failed(what: str, error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    return f"{what} could not be downloaded ({type(error).__name__}: {first_line})"
