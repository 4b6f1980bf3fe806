"""Features are cached under everything that they depend on, and never used when that has changed."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import timm
from PIL import Image

from tests.support.coloured_images import class_folders
from tokenlens.probes import FrozenModel, probe

MODEL = {"pretrained": False, "img_size": 64, "batch_size": 8}


def forbidden(*_args):
    raise AssertionError("the model must not run")


def test_features_are_computed_once(colours, cache, monkeypatch):
    first = probe("test_vit", "knn", colours, **MODEL)
    assert len(list(cache.iterdir())) == 2
    assert first.provenance["seconds"]["features"] > 0
    monkeypatch.setattr(FrozenModel, "features", forbidden)
    again = probe("test_vit", "knn", colours, **MODEL)
    assert again.value == first.value
    pd.testing.assert_frame_equal(again.per_image, first.per_image)
    for source in ("patch_mean", "both"):
        assert probe("test_vit", "linear", colours, source=source, **MODEL).protocol["source"] != "CLS token"


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"img_size": 32}, {"limit": 9}, {"blocks": [2]}, {"amp": True}],
)
def test_they_are_kept_under_all_that_they_depend_on(change, colours, cache):
    arguments = {"model": "test_vit", **MODEL}
    probe(task="knn", data=colours, **arguments)
    before = set(cache.iterdir())
    probe(task="knn", data=colours, **arguments | change)
    assert len(set(cache.iterdir()) - before) == 2


def test_a_module_is_known_by_what_it_computes(colours, cache):
    one = timm.create_model("test_vit", img_size=64)
    other = timm.create_model("test_vit", img_size=64)
    other.load_state_dict(one.state_dict())
    other.norm.eps = 0.5  # in no state dict
    probe(one, "knn", colours, batch_size=8)
    probe(other, "knn", colours, batch_size=8)
    assert len(list(cache.iterdir())) == 4


def test_a_changed_picture_under_the_same_name_is_seen(tmp_path, cache):
    data = class_folders(tmp_path / "data", train=3, test=2)
    probe("raw_pixels", "knn", data)
    kept = {path: (path / "pixels.npy").read_bytes() for path in cache.iterdir()}
    Image.new("RGB", (32, 32), "white").save(data / "train" / "blue" / "0.png")
    probe("raw_pixels", "knn", data)
    assert [path for path, content in kept.items() if (path / "pixels.npy").read_bytes() != content]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "MANIFEST.json").unlink(),
        lambda folder: (folder / "index.json").write_text("{}", encoding="utf-8"),
        lambda folder: (folder / "pixels.npy").write_bytes((folder / "pixels.npy").read_bytes()[:200]),
    ],
)
def test_what_is_damaged_is_computed_again(damage, colours, cache):
    first = probe("raw_pixels", "knn", colours)
    for folder in cache.iterdir():
        damage(folder)
    assert probe("raw_pixels", "knn", colours).value == first.value


def test_nothing_half_written_is_left(colours, cache, monkeypatch):
    run = FrozenModel.features
    calls = []

    def stops(self, pixels_B3HW):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, pixels_B3HW)

    monkeypatch.setattr(FrozenModel, "features", stops)
    with pytest.raises(KeyboardInterrupt):
        probe("test_vit", "knn", colours, **MODEL)
    assert list(cache.iterdir()) == []
    assert probe("test_vit", "knn", colours, **MODEL).n == 12


def test_without_the_cache_nothing_is_written(colours, cache):
    with_cache = probe("test_vit", "linear", colours, **MODEL)
    shutil.rmtree(cache)
    without = probe("test_vit", "linear", colours, cache=False, **MODEL)
    assert not cache.exists()
    assert without.value == with_cache.value
