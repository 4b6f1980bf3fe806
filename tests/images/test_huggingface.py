"""Hugging Face data sets: folders, what save_to_disk wrote, and no network."""

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.support.image_batches import collect, read_all, read_names, shrink
from tests.support.image_files import encoded, picture
from tokenlens.images.sources import open_images


@pytest.mark.usefixtures("offline")
def test_folder(folder: Path) -> None:
    source = open_images(f"hfds/{folder}", transform=shrink)
    assert source.total == 11
    assert "split train" in source.description
    batches = read_all(source)
    names = collect(batches, "names")
    assert len(names) == 8
    assert names[0].startswith("train[")
    assert names[0].endswith("img0.png")
    expected = read_all(open_images(folder, transform=shrink))
    assert sorted(collect(batches, "hashes")) == sorted(collect(expected, "hashes"))
    assert len(source.skipped) == 3
    assert any("<script>" in item["name"] for item in source.skipped)
    assert open_images(f"hfds/{folder}:train", limit=2).total == 2
    assert open_images(f"hfds/{folder}:train[:5]").total == 5
    with pytest.raises(ValueError, match="no split 'best'; available: train"):
        open_images(f"hfds/{folder}:best")


@pytest.mark.usefixtures("offline")
def test_data_set_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    kinds = datasets.Features({"label": datasets.Value("int64"), "picture": datasets.Image()})
    files = [encoded(picture(0)), None, b"broken", encoded(picture(3))]
    pictures = [data if data is None else {"bytes": data, "path": None} for data in files]
    saved = datasets.Dataset.from_dict({"label": [0, 1, 2, 3], "picture": pictures}, features=kinds)
    saved.save_to_disk(tmp_path / "one")
    source = open_images(f"hfds/{tmp_path / 'one'}", transform=shrink)
    assert collect(read_all(source, workers=1), "names") == ["all[0]", "all[3]"]
    assert source.skipped == [
        {"name": "all[1]", "reason": "no image in this row"},
        {"name": "all[2]", "reason": "not an image that PIL can read"},
    ]
    datasets.DatasetDict(train=saved, test=saved.select([0])).save_to_disk(tmp_path / "two")
    assert read_names(open_images(f"hfds/{tmp_path / 'two'}")) == ["test[0]"]
    assert open_images(f"hfds/{tmp_path / 'two'}:train").total == 4
    with pytest.raises(ValueError, match=r"a split cannot be sliced: expected one of train, test, got 'train\[:2\]'"):
        open_images(f"hfds/{tmp_path / 'two'}:train[:2]")
    saved.remove_columns("picture").save_to_disk(tmp_path / "three")
    with pytest.raises(ValueError, match="has no column of images, only label"):
        open_images(f"hfds/{tmp_path / 'three'}")
    with pytest.raises(ValueError, match="the data set 'nobody/nothing' cannot be loaded"):
        open_images("hfds/nobody/nothing")


def test_an_unreachable_hub_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"there is no folder 'nobody/nothing', and .* cannot be reached"):
        open_images("hfds/nobody/nothing:train")
    assert time.monotonic() - started < 10
