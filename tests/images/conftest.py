"""Fixtures of the tests of images."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.image_files import encoded, picture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven images in two classes and below, three of them broken, and files that are no images."""
    root = tmp_path / "images"
    for index in range(8):
        path = root / "ab"[index % 2] / f"img{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(index)))
    (root / "b" / "deep").mkdir()
    (root / "b" / "deep" / "truncated.jpg").write_bytes(encoded(picture(8, 200, 200), "JPEG")[:2000])
    (root / "a" / "empty.png").write_bytes(b"")
    (root / "z<script>alert(1)<script>.jpeg").write_bytes(b"this is no image")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(encoded(picture(99)))
    return root


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Empty caches of Hugging Face, and no network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
