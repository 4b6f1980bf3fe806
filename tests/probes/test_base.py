"""Laws of every probe that classifies images, and the probe of docs/add-a-probe.md, which is one file that works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.command_line import REPOSITORY, tokenlens
from tests.support.markdown import add_files, blocks
from tokenlens.probes import ImageFeatures, ImageProbe, hold_out, probe, probes

every_classifier = pytest.mark.parametrize(
    "name", [name for name in probes.names() if issubclass(probes.get(name), ImageProbe)]
)


def clusters(count: int, classes: int, spread: float, seed: int, channels: int = 12) -> ImageFeatures:
    """Features around a centre for each class; spread 0 is the centre itself."""
    random = np.random.RandomState(seed)
    centres_CF = np.random.RandomState(99).normal(size=(classes, channels))
    labels_N = random.randint(0, classes, count)
    features_NF = centres_CF[labels_N] + spread * random.normal(size=(count, channels))
    return ImageFeatures(torch.tensor(features_NF, dtype=torch.float32), labels_N, tuple("abcdefgh"[:classes]))


@every_classifier
def test_features_that_tell_everything_give_1_and_features_that_tell_nothing_a_share(name):
    head, names = probes.get(name)(), [str(i) for i in range(60)]
    splits = clusters(100, 4, 0.0, seed=0), clusters(60, 4, 0.0, seed=1)
    found = head.score(head.fit(splits[0], seed=0), splits[1], names)
    assert (found.value, found.ci_low, found.ci_high) == (1.0, 1.0, 1.0)
    same = [replace(split, features_NF=torch.ones_like(split.features_NF)) for split in splits]
    found = head.score(head.fit(same[0], seed=0), same[1], names)
    assert found.per_image["prediction"].nunique() == 1
    assert found.value == (found.per_image["label"] == found.per_image["prediction"][0]).mean()
    assert found.ci_low < found.value < found.ci_high


@every_classifier
def test_settings_are_chosen_on_training_images_alone(name):
    head, names = probes.get(name)(), [str(i) for i in range(40)]
    train, test = clusters(200, 5, 2.0, seed=0), clusters(40, 5, 2.0, seed=1)
    fitted = head.fit(train, seed=0)
    found = head.score(fitted, test, names)
    other = head.score(fitted, replace(test, labels_N=np.zeros_like(test.labels_N)), names)
    assert (found.per_image["prediction"] == other.per_image["prediction"]).all()
    sums_1S = head.count(fitted, test).sum(0, keepdims=True)
    assert head.measure(sums_1S)[0] == found.value, "the score follows from the counts of the images"
    tried = found.table[found.table["quantity"] == "accuracy on held-out training images"]
    assert (tried["n"] == hold_out(200, 0, train.labels_N).sum()).all()
    setting, _, best = tried["of"][tried["value"].idxmax()].replace(" =", "").rpartition(" ")
    assert found.protocol[setting].startswith(best)


def test_a_probe_is_one_file(colours, tmp_path, monkeypatch):
    [block] = blocks(REPOSITORY / "docs" / "add-a-probe.md", "python")
    assert Path(block.path).parent == Path("tokenlens/probes")
    add_files([block], tmp_path, monkeypatch)
    listed = tokenlens("list", "probes").stdout
    assert "nearest_mean  The class whose mean feature has the highest cosine" in listed
    result = probe("raw_pixels", "nearest_mean", colours)
    assert result.value == 1
    assert result.protocol["classifier"] == "cosine to the mean feature of each class"
