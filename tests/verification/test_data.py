"""The data of a verification are found in their folder, and training images chosen from them."""

from __future__ import annotations

import numpy as np
import pytest

from tokenlens.verification.data import find_data, training_images


def test_training_images_are_as_many_of_each_class(data):
    source = find_data(data).labelled
    images = training_images(source, 24)
    assert np.bincount(images.labels).tolist() == [8, 8, 8]
    assert "a random 8 of each class, 24 of 33 (seed 0)" in images.description["split"]
    assert images.description["count"] == len(images) == len(images.names) == 24
    assert images.description["sha256"] == training_images(source, 25).description["sha256"]
    assert images.description["sha256"] != training_images(source, None).description["sha256"]
    assert [images.read(place).size for place in (0, 23)] == [(40, 40), (40, 40)]
    with pytest.raises(ValueError, match="at least one training image per class, got 2 images of 3 classes"):
        training_images(source, 2)


def test_data_are_looked_for(data, tmp_path):
    found = find_data(data, teacher_file="teacher.safetensors")
    assert found.labelled == str(data / "classification")
    assert found.masks == str(data / "segmentation" / "toy")
    assert found.images == str(data / "photos")
    assert found.teacher is None
    assert find_data(labelled="wds/x", images="sample").masks is None
    with pytest.raises(ValueError, match="expected a folder with classification/"):
        find_data(tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        find_data(tmp_path / "nowhere")
    for name in ("a", "b"):
        (tmp_path / "classification" / name / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="found 2 "):
        find_data(tmp_path)
