"""Files of the Hugging Face Hub or a web server: taken from the local cache, or downloaded; fails fast when offline."""

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
"""Seconds that a server has to answer; the Hub's client gives up only after 48 s (measured)."""


class UnreachableError(ValueError):
    """A file that is not on this machine and cannot be downloaded; the message states why."""


def why_unreachable(url: str) -> str | None:
    """Return why a server cannot be reached within ``PROBE_SECONDS``; None if it answers anything at all.

    The request goes over HTTP, so that proxies are used, and in a thread, because no timeout covers the DNS lookup.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    parts = urlsplit(url)
    root = f"{parts.scheme}://{parts.netloc}"
    answers: list[str | None] = []

    def request() -> None:
        try:
            get_session().head(root, timeout=PROBE_SECONDS)
        except Exception as error:  # whatever the reason, the server is unreachable
            answers.append(f"{type(error).__name__}: {error}")
        else:
            answers.append(None)

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if not answers:
        return f"{root} did not answer within {PROBE_SECONDS:g} s"
    return f"{root} cannot be reached ({answers[0]})" if answers[0] else None


def find_cached_hub_file(repo: str, names: Sequence[str], revision: str | None = None) -> Path | None:
    """Return the first of these files of a Hub repository that is in the local cache; uses no network."""
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def download_hub_file(repo: str, names: Sequence[str], revision: str | None = None) -> Path:
    """Return the first of these files that a Hub repository has, from the local cache if possible.

    Raises:
        UnreachableError: if the Hub does not answer, refuses, or has none of the files.
    """
    found = find_cached_hub_file(repo, names, revision)
    if found is not None:
        return found
    reason = why_unreachable(constants.ENDPOINT)
    if reason is not None:
        raise UnreachableError(f"{reason}, and {repo} is not in the local cache {constants.HF_HUB_CACHE}")
    for name in names:
        try:
            return Path(huggingface_hub.hf_hub_download(repo, name, revision=revision))
        except Exception as error:  # not found, gated, interrupted: errors of several libraries without a common base
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                continue  # the repository exists, the file does not
            raise UnreachableError(_download_failed(repo, error)) from error
    raise UnreachableError(f"the Hub repository {repo} has none of {', '.join(names)}")


def find_cached_url(url: str) -> Path | None:
    """Return the file that torch.hub has downloaded from this URL, if there is one."""
    path = _torch_hub_path(url)
    return path if path.is_file() else None


def download_url(url: str) -> Path:
    """Return the file at a URL, from torch.hub's cache if possible.

    Raises:
        UnreachableError: if the server does not answer or the download fails.
    """
    found = find_cached_url(url)
    if found is not None:
        return found
    reason = why_unreachable(url)
    if reason is not None:
        raise UnreachableError(reason)
    path = _torch_hub_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except (OSError, RuntimeError) as error:
        raise UnreachableError(_download_failed(url, error)) from error
    return path


def _torch_hub_path(url: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name


def _download_failed(source: str, error: Exception) -> str:
    first_line = str(error).strip().split("\n")[0]
    return f"{source} could not be downloaded ({type(error).__name__}: {first_line})"
