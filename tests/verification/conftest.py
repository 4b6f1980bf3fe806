"""One small verification that all test modules of this folder read: three seeds of two variants, from given weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.tiny_training import train
from tests.support.tiny_verification import tiny_data, tiny_scale
from tokenlens.verification import verify

SEEDS = 3


def knn_hits(folder, variant):
    """Return whether k-NN was right for each test image, the mean over the seeds of a variant, from the files."""
    probes = [folder / "probes" / f"{variant}_seed{seed}_knn_cls_32" for seed in range(SEEDS)]
    return np.mean([pd.read_csv(probe / "per_image.csv")["correct"] for probe in probes], axis=0)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="session")
def start(data, tmp_path_factory):
    """A run folder to start from: the scale's model, with another seed than any of its trainings."""
    recipe = replace(tiny_scale().recipe, seed=77)
    return train(recipe, data / "classification", tmp_path_factory.mktemp("runs") / "before", name="tiny").path


@pytest.fixture(scope="session")
def found(data, start, tmp_path_factory):
    out = tmp_path_factory.mktemp("verify") / "toy"
    verification = verify(tiny_scale(), data, seeds=SEEDS, start=start, out=out, report=False)
    verification.save(out)
    return verification


@pytest.fixture
def copy(found, tmp_path):
    """The same folder, to be changed."""
    return Path(shutil.copytree(found.path, tmp_path / "toy"))
