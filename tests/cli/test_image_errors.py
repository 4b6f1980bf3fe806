"""Bad images and data, as docs/error-messages.md describes them: a docstring is the first column of its table."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command_line import MODEL, TINY, refused, tiny_analyze, tokenlens
from tests.support.image_files import encoded, picture, write_images, write_pets, write_tar
from tokenlens.analysis.analysis import Analysis

QUICK = ("--no-report", "--metrics", "token_norm")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "reports" / "run"


def analyzed(out: Path, images: object, *options: object) -> tuple[dict, str]:
    """Analyze images in a fraction of a second; return what --json prints, and stderr."""
    result = tokenlens(
        "analyze", MODEL, *TINY[:3], *QUICK, "--json", "--overwrite", "--images", images, "--out", out, *options
    )
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    provenance = Analysis.load(out).provenance["images"]
    assert {name: provenance[name] for name in ("skipped", "copies", "notes")} == {
        name: told[name] for name in ("skipped", "copies", "notes")
    }
    assert all(note in result.stderr for note in told["notes"])
    return told, result.stderr


def masked(folder: Path) -> Path:
    """Images with masks, in our own layout."""
    for split in ("train", "val"):
        write_images(folder / split, {"images": 3, "masks": 3})
    (folder / "classes.txt").write_text("sky\ngrass\n")
    return folder


def test_layout_of_another_task(out, tmp_path):
    """images with masks where classes are expected, or the reverse; the layout of VOC, ADE20K, Cityscapes or COCO"""
    masks, classes = masked(tmp_path / "masks"), write_pets(tmp_path / "pets")
    probe = ("probe", MODEL, *TINY[:3], "--out", out, "--task")
    refused(tokenlens(*probe, "knn", "--data", masks), "images with masks", "--task segmentation")
    refused(tokenlens("train", "tiny_supervised", "--data", masks, "--out", out), "images with masks", "CLASS")
    refused(tokenlens(*probe, "segmentation", "--data", classes), "folder per class", "--task knn")
    assert not out.exists()


def test_masks_among_photographs(out, tmp_path):
    """masks beside the photographs to analyze"""
    refused(tiny_analyze(out, "--images", masked(tmp_path / "data")), "train/masks", "train/images")
    assert not out.exists()


def shard(path: Path, end: int | None) -> Path:
    files = {f"s{number}.jpg": encoded(picture(number), "JPEG") for number in range(3)}
    files = {name: data for key, jpg in files.items() for name, data in ((key, jpg), (key[:-3] + "cls", b"1"))}
    write_tar(path, files)
    path.write_bytes(path.read_bytes()[:end])
    return path


def test_broken_shard(out, tmp_path):
    """a webdataset shard that is cut off or damaged"""
    pytest.importorskip("webdataset")
    whole = shard(tmp_path / "w.tar", None).read_bytes()
    size = 512 + -(-len(encoded(picture(0), "JPEG")) // 512) * 512  # of an image
    for end, place in (
        (size + 1024 + 100, f"cut off at byte {size + 1124:,}, in the header after s0.cls"),
        (size + 1024 + 700, f"cut off at byte {size + 1724:,}, inside s1.jpg"),
        (size + 1024, f"without an end mark after byte {size + 1024:,} (s0.cls)"),
    ):
        shard(tmp_path / "w.tar", end)
        told, _ = analyzed(out, f"wds/{tmp_path}/w*.tar")
        assert told["images"] == 1
        (note,) = told["notes"]
        assert note.startswith(f"w.tar: the shard is broken: {place}")
        assert "; 1 sample before it was read, and what follows is lost" in note
    assert len(whole) > size + 1024
    shard(tmp_path / "w.tar", 0)
    refused(tiny_analyze(out, "--overwrite", "--images", f"wds/{tmp_path}"), "no readable image", "empty (0 bytes)")


def test_copies(out, tmp_path):
    """copies of an image"""
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture(0, 90, 90)))
    told, stderr = analyzed(out, tmp_path)
    assert told["images"] == 1
    assert len(told["copies"]) == 5
    assert "5 images are copies of others" in stderr
    table = Analysis.load(out).table
    assert set(table["n"]) == {1}
    assert table[["sd", "ci_low", "ci_high"]].isna().all(axis=None)  # one image has no interval
    (tmp_path / "6.png").write_bytes(encoded(picture(1, 90, 90)))
    assert analyzed(out, tmp_path)[0]["images"] == 2
    assert set(Analysis.load(out).table["n"]) == {2}


def test_black_images(out, tmp_path, weights):
    """nearly black images"""
    for number in range(8):
        Image.new("RGB", (40 + number, 40)).save(tmp_path / f"{number}.png")
    result = tokenlens(
        *("analyze", MODEL, "--checkpoint", weights, "--img-size", 64, "--images", tmp_path, "--no-report", "--json"),
        *("--out", out),
    )
    told = json.loads(result.stdout)
    assert told["images"] == 1
    assert "1 image is nearly black" in result.stderr
    assert {finding["verdict"] for finding in told["findings"]} <= {"inconclusive", "not applicable"}


def test_other_formats(out, tmp_path):
    """pictures in formats that are not read, as HEIC or camera raw"""
    write_images(tmp_path, {"": 2})
    for name in ("a.heic", "b.HEIC", "c.cr2"):
        (tmp_path / name).write_bytes(b"\0")
    told, _ = analyzed(out, tmp_path)
    assert told["images"] == 2
    assert told["notes"] == [
        "3 files in formats that are not read were left out (2 .heic, 1 .cr2), e.g. a.heic; convert them to JPEG or PNG"
    ]
    refused(tiny_analyze(out, "--overwrite", "--images", tmp_path / "a.heic"), ".heic", "convert it to JPEG")


def test_pipe(out, tmp_path):
    """a pipe or a device among the images"""
    write_images(tmp_path, {"": 1})
    os.mkfifo(tmp_path / "pipe.jpg")
    told, stderr = analyzed(out, tmp_path)
    assert told["images"] == 1
    assert "1 unreadable image was skipped: pipe.jpg: a pipe or a device, not a file" in stderr
    refused(tiny_analyze(out, "--overwrite", "--images", tmp_path / "pipe.jpg"), "a pipe or a device")


def test_what_is_no_image(out, tmp_path):
    """an archive, a table or a URL as images; a pattern that matches no image, or a list of paths that are no files"""
    for name, hint in (("a.zip", "unpack it"), ("a.csv", "a list or a table"), ("a.txt", "there is no file")):
        (tmp_path / name).write_bytes(b"PK")
        refused(tiny_analyze(out, "--images", tmp_path / name), name, hint)
    refused(tiny_analyze(out, "--images", "https://example.org/a.jpg"), "a URL", "download")
    refused(tiny_analyze(out, "--images", f"{tmp_path}/*.jpg"), "no image file matches the pattern")
    refused(tiny_analyze(out, "--images", "sampel"), "there is no sampel", "Did you mean sample?")
    refused(tiny_analyze(out, "--images", "wds/"), "names no data")
    assert not out.exists()
