"""Labelled webdataset shards: their splits and classes, and what wrong shards get."""

import tarfile
from pathlib import Path

import pytest

from tests.support.image_files import encoded, picture, read_labels, read_seeds, write_tar
from tokenlens.images.labelled import open_labelled

pytest.importorskip("webdataset")


def write_samples(path: Path, labels: list[int], first: int) -> None:
    files: dict[str, bytes] = {}
    for number, label in enumerate(labels):
        files[f"{number:03d}.png"] = encoded(picture(first + number))
        files[f"{number:03d}.cls"] = str(label).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(path, files)


@pytest.mark.parametrize("pattern", ["set-{}-{}.tar", "{}/{}.tar"])
def test_shards_that_name_their_split(pattern: str, tmp_path: Path) -> None:
    write_samples(tmp_path / "set" / pattern.format("train", "000"), [0, 2, 1], 0)
    write_samples(tmp_path / "set" / pattern.format("train", "001"), [2, 2], 3)
    write_samples(tmp_path / "set" / pattern.format("validation", "000"), [1, 0], 5)
    train, test = open_labelled(f"wds/{tmp_path}/set"), open_labelled(f"wds/{tmp_path}/set", "test")
    assert (read_seeds(train), read_labels(train)) == (list(range(5)), [0, 2, 1, 2, 2])
    assert (read_seeds(test), read_labels(test)) == ([5, 6], [1, 0])
    assert train.classes == test.classes == ("0", "1", "2")
    assert train.names[3].endswith("001.tar/000.png")
    assert train.description["split"] == "train, 2 shards"
    (tmp_path / "set" / "classes.txt").write_text("cat\ndog\neel\n")
    assert open_labelled(f"wds/{tmp_path}/set", "test").classes == ("cat", "dog", "eel")
    (tmp_path / "set" / "classes.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"4 of 5 images of webdataset .*001\.png: 2; expected 0 to 0"):
        open_labelled(f"wds/{tmp_path}/set")


def test_a_tenth_of_undivided_shards_is_held_out(tmp_path: Path) -> None:
    write_samples(tmp_path / "part-0.tar", [0] * 10 + [1] * 10, 0)
    write_samples(tmp_path / "part-1.tar", [0] * 10, 20)
    source = f"wds/{tmp_path}/part-{{0..1}}.tar"
    train, test = open_labelled(source), open_labelled(source, "test")
    assert sorted(read_labels(test)) == [0, 0, 1]
    assert sorted(read_seeds(train) + read_seeds(test)) == list(range(30))
    assert test.description["split"].startswith("all, 2 shards, a tenth of each class")


def test_wrong_shards(tmp_path: Path) -> None:
    write_samples(tmp_path / "set-train-0.tar", [0, 1], 0)
    write_samples(tmp_path / "more.tar", [0, 1], 2)
    with pytest.raises(ValueError, match=r"some shards of .* have their split in their names \(.*-0\.tar\), others"):
        open_labelled(f"wds/{tmp_path}")
    write_tar(tmp_path / "more.tar", {"a.png": encoded(picture(0)), "b.png": b"", "b.cls": b"1"})
    with pytest.raises(ValueError, match=r"1 of 2 images of .* have no class.*more\.tar/a\.png: -1; expected 0 to 1"):
        open_labelled(f"wds/{tmp_path}/more.tar")
    write_tar(tmp_path / "more.tar", {"a.png": encoded(picture(0)), "b.png": b""})
    assert open_labelled(f"wds/{tmp_path}/more.tar").labels is None
    with pytest.raises(ValueError, match=r"no webdataset shard at .*none-00\.tar and 1 more"):
        open_labelled(f"wds/{tmp_path}/none-{{00..01}}.tar")
    with pytest.raises(ValueError, match=r"https://example\.org/shard-00\.tar is not on this machine"):
        open_labelled("wds/https://example.org/shard-{00..01}.tar")


def test_a_broken_shard_keeps_its_complete_samples_and_is_described(tmp_path: Path) -> None:
    files = {}
    for number in range(3):
        files |= {f"s{number}.png": encoded(picture(number)), f"s{number}.cls": str(number).encode()}
    write_tar(tmp_path / "train-0.tar", files)
    write_tar(tmp_path / "val-0.tar", files)
    path = tmp_path / "train-0.tar"
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        second, label, third = (archive.getmember(name) for name in ("s1.png", "s1.cls", "s2.png"))
    for end, complete, place in (
        (second.offset + 100, 1, "in the header after s0.cls"),
        (second.offset_data + 9, 1, "inside s1.png"),
        (label.offset, 1, "without an end mark"),  # no label is left of the second sample
        (label.offset_data, 1, "inside s1.cls"),
        (third.offset, 2, "without an end mark"),
        (third.offset_data + 9, 2, "inside s2.png"),
    ):
        path.write_bytes(content[:end])
        for _ in range(2):  # the second time from the cache
            images = open_labelled(f"wds/{tmp_path}")
            assert read_seeds(images) == read_labels(images) == list(range(complete))
            (note,) = images.description["notes"]
            assert note.startswith(f"{path}: the shard is broken: ")
            assert place in note
    with pytest.raises(ValueError, match=r"s2\.png: 2; expected 0 to 1 \(.*train-0\.tar: the shard is broken"):
        open_labelled(f"wds/{tmp_path}", "test")
    path.write_bytes(content)
    assert "notes" not in open_labelled(f"wds/{tmp_path}", "test").description
