"""Images and a run that several test modules of training use."""

from __future__ import annotations

import pytest

from tests.support.tiny_training import tiny_recipe, train, write_colours


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Three classes of eight images."""
    return write_colours(tmp_path_factory.mktemp("data") / "colours")


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """A finished run of a specialized model."""
    return train(tiny_recipe(specialization="paper"), data, tmp_path_factory.mktemp("runs") / "run")
