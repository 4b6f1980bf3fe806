"""Bad input, as docs/error-messages.md describes it: a test's docstring is the first column of that page's table."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support.command_line import MODEL, REPOSITORY, TINY, finished, process, refused, tiny_analyze, tokenlens
from tokenlens.analysis.analysis import Analysis

QUICK = ("--no-report", "--metrics", "token_norm")


def nothing_in(folder: Path) -> None:
    assert not folder.exists() or not list(folder.iterdir())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "reports" / "run"


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old") / "run"
    assert tiny_analyze(folder, "--no-report").exit_code == 0
    return folder


@pytest.fixture
def run(old_run, tmp_path):
    """A copy of a run folder, which the test may damage."""
    return Path(shutil.copytree(old_run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# -- models and weights


def test_unknown_model(out):
    """a model's name that does not exist"""
    refused(tokenlens("analyze", "vit_bose_patch16_224", "--out", out), "vit_bose_patch16_224", "vit_base_patch16_224")
    refused(tokenlens("analyze", "vit_small_patch14_dinov2.nonsense", "--out", out), "nonsense", "lvd142m")
    refused(tokenlens("analyze", "owner/name", "--out", out), "hf-hub:owner/name")
    nothing_in(out.parent)


def test_unknown_metric(out, monkeypatch):
    """a metric's name that does not exist"""
    monkeypatch.setattr(import_module("tokenlens.analysis.analyze"), "load_model", None)  # is not reached
    refused(tiny_analyze(out, "--metrics", "cls_patch_cosin"), "'cls_patch_cosin'", "Did you mean cls_patch_cosine")
    assert tiny_analyze(out, "--metrics", ", ,").exit_code == 2
    nothing_in(out.parent)


def test_unreachable_weights(out, monkeypatch, tmp_path):
    """weights that cannot be reached"""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    started = time.monotonic()
    refused(
        tokenlens("analyze", MODEL, "--out", out),
        "127.0.0.1",
        "--checkpoint FILE",
        "--no-pretrained",
        "cache",
    )
    assert time.monotonic() - started < 15
    nothing_in(out.parent)


def test_untrained_is_said(out):
    """`--no-pretrained`"""
    told = json.loads(tiny_analyze(out, *QUICK, "--json").stdout)
    assert told["untrained"] is True
    assert Analysis.load(out).untrained


def test_checkpoint_that_does_not_fit(out, tmp_path, weights):
    """a checkpoint that does not fit"""
    tensors = load_file(weights)
    del tensors["blocks.0.norm1.weight"]
    tensors["nonsense"] = torch.zeros(3)
    tensors["norm.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "other.safetensors")
    result = tiny_analyze(out, "--checkpoint", tmp_path / "other.safetensors")
    refused(result, "missing: blocks.0.norm1.weight", "unexpected: nonsense", "norm.bias (7 in the checkpoint, 64 in")
    nothing_in(out.parent)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harm",)


def test_pickle(out, tmp_path, monkeypatch):
    """a pickle that contains more than tensors"""
    monkeypatch.chdir(tmp_path)
    for name, write in (("a.pth", torch.save), ("b.pkl", lambda value, path: path.write_bytes(pickle.dumps(value)))):
        write({"state_dict": {"x": torch.zeros(1), "harm": Harmful()}}, tmp_path / name)
        refused(tiny_analyze(out, "--checkpoint", tmp_path / name), "refused", "weights_only=True", "safetensors")
    assert not (tmp_path / "harm").exists()
    nothing_in(out.parent)


def test_damaged_checkpoint(out, tmp_path):
    """a checkpoint that does not exist, or is damaged"""
    refused(tiny_analyze(out, "--checkpoint", tmp_path / "none.safetensors"), "does not exist")
    (tmp_path / "damaged.safetensors").write_bytes(b"not a checkpoint")
    refused(tiny_analyze(out, "--checkpoint", tmp_path / "damaged.safetensors"), "damaged.safetensors")
    (tmp_path / "damaged.pth").write_bytes(b"not a checkpoint")
    refused(tiny_analyze(out, "--checkpoint", tmp_path / "damaged.pth"), "damaged.pth")
    nothing_in(out.parent)


@pytest.mark.parametrize(("value", "part"), [("cuda", "must be torch or triton, got 'cuda'"), ("triton", "on cpu: ")])
def test_unknown_or_unusable_kernels(out, monkeypatch, value, part):
    """`TOKENLENS_KERNELS` is neither `torch` nor `triton`, or `triton` where Triton does not run"""
    monkeypatch.setenv("TOKENLENS_KERNELS", value)
    refused(tiny_analyze(out, "--device", "cpu"), part, "unset it")
    nothing_in(out.parent)


def test_model_without_cls(out):
    """a model without CLS"""
    result = tiny_analyze(out, "--no-report", "--json", model="test_vit2")  # one register, no CLS
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert {"patch_patch_cosine", "reg_patch_cosine", "token_norm"} <= set(told["metrics"])
    assert told["not_applicable"]["cls_patch_cosine"] == "the model has no [CLS] token"
    assert {finding["verdict"] for finding in told["findings"]} == {"not applicable"}
    assert "the model has no [CLS] token: " in result.stderr


def test_model_of_no_family(out):
    """a model of no supported family"""
    result = tokenlens("analyze", "resnet10t", "--no-pretrained", "--out", out)
    refused(result, "ResNet", "Family", "docs/add-a-family.md")
    nothing_in(out.parent)


# -- images


def test_no_images(out, tmp_path):
    """a folder without images, a path that does not exist"""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    refused(tiny_analyze(out, "--images", tmp_path / "empty"), "no images in", ".jpg")
    refused(tiny_analyze(out, "--images", tmp_path / "nowhere"), "nowhere")
    nothing_in(out.parent)


def broken_images(folder: Path, photographs: Path) -> None:
    folder.mkdir()
    good = (photographs / "china.png").read_bytes()
    (folder / "good.png").write_bytes(good)
    (folder / "truncated.png").write_bytes(good[: len(good) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")


def test_unreadable_images(out, tmp_path, photographs):
    """unreadable, truncated or empty images"""
    broken_images(tmp_path / "images", photographs)
    result = tiny_analyze(out, *QUICK, "--json", "--images", tmp_path / "images")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["images"] == 1
    assert {item["name"] for item in told["skipped"]} == {"truncated.png", "empty.jpg", "text.jpg"}
    assert all(item["reason"] for item in told["skipped"])
    assert "3 unreadable images were skipped: " in result.stderr
    assert "truncated.png" in result.stderr
    (tmp_path / "images" / "good.png").unlink()
    result = tiny_analyze(out, *QUICK, "--overwrite", "--images", tmp_path / "images")
    refused(result, "no readable image", "truncated.png")


def test_huge_image(out, tmp_path, photographs, monkeypatch):
    """an image beyond the decompression limit"""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "images" / "small.png")
    Image.new("RGB", (640, 640)).save(tmp_path / "images" / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    told = json.loads(tiny_analyze(out, *QUICK, "--json", "--images", tmp_path / "images").stdout)
    assert [item["name"] for item in told["skipped"]] == ["huge.png"]


# -- numbers


def test_nan(out, tmp_path, weights):
    """NaN or infinity in the activations"""
    tensors = load_file(weights)
    tensors["blocks.3.attn.proj.bias"][5] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    result = tokenlens("analyze", MODEL, "--checkpoint", tmp_path / "nan.safetensors", *TINY[1:], "--out", out)
    refused(result, "NaN or infinity", "block 3, attn_out", "china-view000")
    nothing_in(out.parent)


# -- options


def test_image_size(out):
    """an image size that the model does not accept"""
    refused(tiny_analyze(out, "--img-size", 63), "63")
    nothing_in(out.parent)


def test_device(out):
    """a device that is not available"""
    refused(tiny_analyze(out, "--device", "nonsense"), "nonsense", "cpu")
    refused(tiny_analyze(out, "--device", "cuda:99"), "cuda:99", "available here", "cpu")
    nothing_in(out.parent)


@pytest.mark.parametrize(
    "option",
    [("--limit", 0), ("--limit", -3), ("--batch-size", 0), ("--workers", -1), ("--img-size", 0), ("--limit", "x")],
)
def test_wrong_numbers(out, option):
    """`--limit 0`, `--batch-size 0`, a negative number"""
    result = tiny_analyze(out, *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr
    nothing_in(out.parent)


# -- run folders


def test_existing_run(run, tmp_path, monkeypatch):
    """a run folder that exists"""
    before = contents(run)
    with monkeypatch.context() as patched:
        patched.setattr(import_module("tokenlens.analysis.analyze"), "load_model", None)  # is not reached
        refused(tiny_analyze(run), "--overwrite", "exists")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("years of work")
        refused(tiny_analyze(tmp_path / "other", "--overwrite"), "not a run folder")
        (tmp_path / "file").write_text("a file")
        refused(tiny_analyze(tmp_path / "file", "--overwrite"), "is a file")
    assert contents(run) == before
    assert tiny_analyze(run, *QUICK, "--overwrite").exit_code == 0
    assert Analysis.load(run).metrics == ["token_norm"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other", "run"]


def no_space(*_args, **_options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "figure.svg")


def test_full_disk(run, out, tmp_path, monkeypatch):
    """a full disk"""
    before = contents(run)
    monkeypatch.setattr("tokenlens.report.write_report", no_space)
    refused(tiny_analyze(run, "--overwrite"), "No space left on device")
    refused(tiny_analyze(out), "No space left on device")
    assert contents(run) == before
    nothing_in(out.parent)
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "reports"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_really_full_disk(small_disk):
    """a full disk"""
    result = tiny_analyze(small_disk / "run", "--no-report")
    assert "no space left on device" in refused(result).lower()
    nothing_in(small_disk)


def test_figure_that_cannot_be_drawn(out, monkeypatch):
    """a figure that cannot be drawn"""

    def broken(*_args):
        raise TypeError("a bug in a figure")

    monkeypatch.setattr("tokenlens.report.write_report", broken)
    refused(tiny_analyze(out), "a bug in a figure", f"The numbers are saved in {out}", "tokenlens report")
    assert Analysis.load(out).images == 4
    assert [path.name for path in out.parent.iterdir()] == ["run"]


def test_interrupt_while_writing(run, out, monkeypatch):
    """Ctrl-C"""

    def interrupted(*_args):
        raise KeyboardInterrupt

    before = contents(run)
    monkeypatch.setattr("tokenlens.report.write_report", interrupted)
    for folder in (out, run):
        result = tiny_analyze(folder, "--overwrite")
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == "interrupted; nothing was written"
    assert contents(run) == before
    nothing_in(out.parent)
    assert tokenlens("report", run).exit_code == 130
    assert contents(run) == before


def test_interrupt_while_analyzing(tmp_path):
    """Ctrl-C"""
    arguments = ("analyze", MODEL, *TINY[:3], "--limit", 1_000_000, "--out", tmp_path / "reports" / "run")
    running = process("-m", "tokenlens_cli", *arguments, cwd=tmp_path)
    printed = []
    while "analyzing" not in (line := running.stderr.readline()):
        printed.append(line)
        assert line, "".join(printed)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    exit_code, stdout, stderr = finished(running, 30)
    assert exit_code == 130
    assert stdout == ""
    assert stderr.splitlines()[-1] == "interrupted; nothing was written"
    assert "Traceback" not in stderr
    nothing_in(tmp_path / "reports")


def change_settings(run: Path, **changes: object) -> None:
    file = run / "MANIFEST.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_newer_run(run):
    """a run folder of a newer tokenlens"""
    change_settings(run, schema_version=999)
    before = contents(run)
    refused(tokenlens("report", run), "schema version 999", "newer")
    assert contents(run) == before


def test_changed_run(run, tmp_path):
    """a run folder that was changed or is incomplete"""
    table = (run / "table.csv").read_text()
    (run / "table.csv").write_text(table + "one more row\n")
    refused(tokenlens("report", run), "table.csv")
    (run / "table.csv").unlink()
    refused(tokenlens("report", run), "table.csv is missing")
    (run / "MANIFEST.json").write_text("{")
    refused(tokenlens("report", run), "damaged")
    (run / "MANIFEST.json").unlink()
    refused(tokenlens("report", run), "not a finished run")
    refused(tokenlens("report", tmp_path / "nowhere"), "no run folder")


def test_manifest_that_climbs_out(run, tmp_path):
    """a manifest that names files outside its run folder"""
    (tmp_path / "outside.txt").write_text("secret")
    files = json.loads((run / "MANIFEST.json").read_text())["files"]
    change_settings(run, files={**files, "../outside.txt": {"bytes": 6, "sha256": "0" * 64}})
    refused(tokenlens("report", run), "outside the run folder")


def saved_model(folder: Path) -> Path:
    """A folder in timm's format, with weights."""
    folder.mkdir(parents=True)
    model = timm.create_model("test_vit", img_size=64, num_classes=0)
    timm.models.save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def test_names_that_climb_out(tmp_path, monkeypatch):
    """`/`, `:` or `..` in a model's name"""
    saved_model(tmp_path / "models" / "mine")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    result = tokenlens("analyze", "local-dir:../models/mine", "--limit", 2, *QUICK)
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in Path("reports").iterdir()] == ["local-dir_.._models_mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "work"]


def test_html_in_names(tmp_path, photographs):
    """HTML in a model's or file's name"""
    attack = "<script>alert(1)<script>"
    model = saved_model(tmp_path / f"{attack}model")
    broken_images(tmp_path / "images", photographs)
    (tmp_path / "images" / f"{attack}.jpg").write_text("not an image")
    out = tmp_path / "out"
    result = tokenlens("analyze", f"local-dir:{model}", "--images", tmp_path / "images", *QUICK[1:], "--out", out)
    assert result.exit_code == 0, result.stderr
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "<script>alert" not in page
    drawn = [file.read_text(encoding="utf-8") for file in (out / "figures").glob("*.svg")]
    assert drawn
    assert not [text for text in drawn if "<script" in text]


# -- the page


def test_the_page_lists_exactly_these():
    page = (REPOSITORY / "docs" / "error-messages.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!situation |---)(.+?) \|", page, re.MULTILINE)
    tested = {value.__doc__ for name, value in globals().items() if name.startswith("test_") and value.__doc__}
    # Tested with the other tests of several processes, in test_analyze.py.
    assert tested == set(rows) - {"an error in one of several processes"}
    assert len(set(rows)) == len(rows)
