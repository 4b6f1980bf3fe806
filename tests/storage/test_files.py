"""A file is written whole or not at all."""

import os
import stat

import pytest

from tokenlens.storage.files import replacing, write_json, write_text


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_in_one_step(durable, tmp_path):
    file = tmp_path / "a.txt"
    write_text(file, "old", durable=durable)
    with replacing(file, durable=durable) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_after_an_error_the_old_file_is_there_and_nothing_else(error, tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_any_new_file_and_any_name_can_be_written(tmp_path):
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert len({stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}) == 1
    write_json(tmp_path / "a.json", {"file": os.fsdecode(b"\xe9\xff.png"), "µ": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8").count("\\udc") == 2
