"""Small labelled data, and a cache of features for each test."""

from __future__ import annotations

import pytest

from tests.support.coloured_images import class_folders, mask_folders


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def masks(tmp_path_factory):
    return mask_folders(tmp_path_factory.mktemp("masks"), train=8, test=4)
