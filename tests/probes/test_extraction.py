"""Features do not depend on batches; unreadable images are counted, and features that are not finite are refused."""

from __future__ import annotations

import math

import pytest
import timm

from tests.support.coloured_images import class_folders
from tokenlens.probes import probe

MODEL = {"pretrained": False, "img_size": 64, "batch_size": 8}


@pytest.mark.parametrize("task", ["knn", "linear"])
def test_batches_do_not_matter(task, colours):
    whole = probe("test_vit", task, colours, cache=False, **MODEL | {"batch_size": 64})
    parts = probe("test_vit", task, colours, cache=False, **MODEL | {"batch_size": 5})
    assert parts.value == whole.value


def test_unreadable_images_are_counted_and_named(tmp_path):
    data = class_folders(tmp_path / "data")
    (data / "train" / "red" / "3.png").write_bytes(b"no image")
    (data / "val" / "blue" / "1.png").write_bytes(b"")
    for _ in range(2):  # computed and kept
        result = probe("raw_pixels", "knn", data)
        assert result.n == 11
        assert [(one["split"], one["name"]) for one in result.provenance["skipped"]] == [
            ("train", "red/3.png"),
            ("test", "blue/1.png"),
        ]
        assert result.protocol["training images"].endswith("29 images, 1 unreadable left out")
        assert "blue/1.png" not in set(result.per_image["image"])


def test_nothing_readable_is_an_error(tmp_path):
    data = class_folders(tmp_path / "data", train=1, test=1)
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 3 images could be read \(blue/0.png: empty file"):
        probe("raw_pixels", "knn", data)


def test_features_that_are_not_finite_are_an_error(colours):
    model = timm.create_model("test_vit", img_size=64)
    model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in the features of .*, first for image 'blue/0"):
        probe(model, "knn", colours, batch_size=8)
