"""The gallery: every script has its picture, drawn by the code that is shown, small and of the sample images only."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import sys
from types import ModuleType

import pytest
from PIL import Image

from tests.support.command_line import REPOSITORY
from tests.test_shape import imports

MAKING = REPOSITORY / "docs" / "making"
KILOBYTES = {".webp": 140, ".pdf": 320}
ANIMATED = 300


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(MAKING))
    spec = importlib.util.spec_from_file_location(name, MAKING / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def gallery(monkeypatch):
    return module("gallery", monkeypatch)


def test_every_entry_is_a_short_public_script_with_a_title_and_a_text(gallery):
    entries = gallery.read_entries()
    assert len(entries) >= 12
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert 10 < len(entry.title) < 60, entry.name
        assert entry.text.endswith("."), entry.name
        tree = ast.parse(entry.code)
        assert sum(isinstance(node, ast.stmt) for node in ast.walk(tree)) <= 20, entry.name
        assert not [name for name in imports(tree) if "._" in name], entry.name


def test_every_picture_is_current_small_and_of_the_sample_images(gallery):
    for entry in gallery.read_entries():
        assert entry.is_current(), f"{entry.script.name} has changed since its picture was drawn: run make gallery"
        record = entry.record()
        assert record["images"], entry.name
        assert all(source.startswith("sample: ") for source in record["images"]), entry.name
        with Image.open(entry.file(".webp")) as picture:
            animated = getattr(picture, "n_frames", 1) > 1
        sizes = {".webp": ANIMATED} if animated else KILOBYTES
        for suffix, most in sizes.items():
            assert entry.file(suffix).stat().st_size < 1000 * most, entry.file(suffix).name


def test_no_picture_is_left_without_its_script(gallery):
    names = {entry.name for entry in gallery.read_entries()}
    assert {path.stem for path in (gallery.FOLDER / "pictures").iterdir()} == names


def test_a_changed_script_is_out_of_date(gallery, tmp_path):
    entry = gallery.read_entries()[0]
    script = tmp_path / entry.script.name
    script.write_text(entry.script.read_text(encoding="utf-8").replace("image=", "image= "), encoding="utf-8")
    assert not dataclasses.replace(entry, script=script).is_current()
    script.write_text(entry.script.read_text(encoding="utf-8").replace(entry.title, "Another"), encoding="utf-8")
    assert dataclasses.replace(entry, script=script).is_current(), "words are not drawn"


def test_a_new_script_is_drawn_and_described(gallery, monkeypatch, tmp_path):
    (tmp_path / "01_new.py").write_text(
        '"""A new entry\n\nWhat it shows.\n"""\n\nimport tokenlens\n\n'
        'recording = tokenlens.record("tokenlens_tiny", limit=1, sites=["resid_post"], blocks=[0, 1])\n'
        "figure = tokenlens.plot.norm_strip(recording)\n",
        encoding="utf-8",
    )
    [entry] = gallery.read_entries(tmp_path)
    assert not entry.is_current()
    module("draw_gallery", monkeypatch).draw(entry)
    assert entry.is_current()
    assert entry.file(".pdf").read_bytes().startswith(b"%PDF")
    page = gallery.page_of(entry)
    assert page.startswith("# A new entry\n\nWhat it shows.\n")
    for text in ("`tokenlens_tiny` (shipped with tokenlens", "recording of 1 crops", "(pictures/new.pdf)", entry.code):
        assert text in page, text
