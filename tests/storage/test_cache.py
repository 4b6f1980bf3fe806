"""The cache is in $TOKENLENS_CACHE or in the user's cache folder."""

from pathlib import Path

import pytest

from tokenlens.storage.cache import cache_folder


def test_location(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "cache"))
    assert cache_folder("kind") == tmp_path / "cache" / "kind"
    monkeypatch.delenv("TOKENLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("kind") == tmp_path / "xdg" / "tokenlens" / "kind"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("kind") == tmp_path / ".cache" / "tokenlens" / "kind"
