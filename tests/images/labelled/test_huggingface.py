"""Labels of Hugging Face data sets."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.image_files import encoded, picture, read_labels, read_seeds, write_images, write_pets
from tokenlens.images.labelled import open_labelled

pytestmark = pytest.mark.usefixtures("offline")


def test_folder(tmp_path: Path) -> None:
    folder = write_pets(tmp_path / "pets")
    write_images(folder / "val", {"dog": 1}, first=60)  # datasets finds the classes of each split by itself
    train, test = open_labelled(f"hfds/{folder}"), open_labelled(f"hfds/{folder}", "test")
    assert train.classes == test.classes == ("cat", "dog", "eel")
    expected = open_labelled(folder)
    assert read_seeds(train) == read_seeds(expected)
    assert read_labels(train) == read_labels(expected)
    assert test.description["split"] == "validation"
    assert train.names[4] == "train[4]"
    named = open_labelled(f"hfds/{folder}:train", "test")
    assert len(named) == 2
    assert "a tenth of each class (it has no test split" in named.description["split"]


def test_data_set_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    def rows(column: str, labels: list[int | None], kind: object) -> Any:
        images = [{"bytes": encoded(picture(i)), "path": None} for i in range(len(labels))]
        features = datasets.Features({column: kind, "image": datasets.Image()})
        return datasets.Dataset.from_dict({column: labels, "image": images}, features=features)

    def save(name: str, data: Any) -> str:
        data.save_to_disk(tmp_path / name)
        return f"hfds/{tmp_path / name}"

    kind, numbers = datasets.ClassLabel(names=["cat", "dog"]), datasets.Value("int64")
    one = save("one", datasets.DatasetDict(train=rows("fine", [0, 1, 1], kind), test=rows("fine", [-1, -1], kind)))
    images = open_labelled(one)
    assert (read_labels(images), images.classes, read_seeds(images)) == ([0, 1, 1], ("cat", "dog"), [0, 1, 2])
    with pytest.raises(ValueError, match=r"one \(test\) have no labels; testing needs labels"):
        open_labelled(one, "test")
    with pytest.raises(ValueError, match=r"1 of 3 images of .*two, split all have no class.*all\[1\]: -1"):
        open_labelled(save("two", rows("fine", [0, None, 1], kind)))
    both = datasets.DatasetDict(train=rows("label", [0, 3], numbers), test=rows("label", [1], numbers))
    assert open_labelled(save("three", both), "test").classes == ("0", "1", "2", "3")
    assert open_labelled(save("four", rows("fine", [0, 1], numbers))).labels is None  # nothing calls them labels
    five = save("five", datasets.DatasetDict(test=rows("fine", [0], kind), extra=rows("fine", [0], kind)))
    with pytest.raises(ValueError, match=r"no split train in the data set .*five, only extra, test; expected train"):
        open_labelled(five)
