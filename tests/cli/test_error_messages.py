"""Bad input, as docs/error-messages.md describes it: a test's docstring is the first column of that page's table."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import subprocess
import time
from importlib import import_module
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.command_line import MODEL, REPOSITORY, TINY, finished, process, refused, tiny_analyze, tokenlens
from tests.support.image_files import write_pets
from tests.support.tiny_models import MODELS
from tokenlens.analysis import analyze
from tokenlens.analysis.analysis import Analysis
from tokenlens.models import ModelWarning
from tokenlens.models.loading import load_model
from tokenlens.probes import FrozenModel
from tokenlens.report.provenance import provenance_rows

QUICK = ("--no-report", "--metrics", "token_norm")


def nothing_in(folder: Path) -> None:
    assert not folder.exists() or not list(folder.iterdir())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "reports" / "run"


# -- models and weights


def test_arguments_of_a_model(out):
    """`--model-arg` with an argument that the model's constructor does not have, or a value that it refuses"""
    refused(tiny_analyze(out, "--model-arg", "reg_token=2"), "no argument 'reg_token'", "reg_tokens", "It takes")
    refused(tokenlens("specialize", MODEL, "--dry-run", "--model-arg", "depth=many"), "depth='many'")
    refused(tokenlens("check", MODEL, "--model-arg", "class_token=none"), "does not pass None")
    for wrong in ("reg_tokens", "=2", "reg_tokens="):
        assert tiny_analyze(out, "--model-arg", wrong).exit_code == 2
    assert tiny_analyze(out, "--model-arg", "depth=1", "--model-arg", "depth=2").exit_code == 2
    for wrong in ("0", "-32", "32x", "32x32x32", "large"):
        assert tiny_analyze(out, "--img-size", wrong).exit_code == 2
    nothing_in(out.parent)


def test_unknown_model(out):
    """a model's name that does not exist"""
    refused(tokenlens("analyze", "vit_bose_patch16_224", "--out", out), "vit_bose_patch16_224", "vit_base_patch16_224")
    refused(tokenlens("analyze", "vit_small_patch14_dinov2.nonsense", "--out", out), "nonsense", "lvd142m")
    refused(tokenlens("analyze", "owner/name", "--out", out), "hf-hub:owner/name")
    refused(tokenlens("check", "/nowhere/weights.pt"), "there is no file or folder /nowhere/weights.pt")
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


def with_checkpoint(out, path, *arguments, model=MODEL):
    return tokenlens("analyze", model, "--checkpoint", path, *TINY[1:], "--out", out, *arguments)


def test_checkpoint_that_does_not_fit(out, tmp_path, weights):
    """a checkpoint that does not fit"""
    tensors = load_file(weights)
    del tensors["blocks.0.norm1.weight"]
    tensors["nonsense"] = torch.zeros(3)
    tensors["norm.bias"] = torch.zeros(7)
    save_file(tensors, tmp_path / "other.safetensors")
    result = with_checkpoint(out, tmp_path / "other.safetensors")
    refused(result, "missing: blocks.0.norm1.weight", "unexpected: nonsense", "norm.bias (7 in the checkpoint, 64 in")
    nothing_in(out.parent)


def test_checkpoint_of_another_size(out, tmp_path):
    """a checkpoint for images of another size"""
    model = timm.create_model(MODEL, img_size=96, num_classes=0)
    torch.save({"ema": {"module": model.state_dict()}}, tmp_path / "larger.pth")
    result = with_checkpoint(out, tmp_path / "larger.pth", "--metrics", "token_norm")
    assert result.exit_code == 0, result.stderr
    step = "pos_embed resampled from 1×37×64 to 1×17×64"
    assert f"weights of {MODEL}: under 'ema.module'; {step}" in result.stderr
    assert step in (out / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")
    assert Analysis.load(out).provenance["weights"]["steps"] == ["under 'ema.module'", step]


def test_checkpoint_and_random_weights(out, weights):
    """`--checkpoint` with `--no-pretrained`"""
    refused(tiny_analyze(out, "--checkpoint", weights), "--checkpoint", "--no-pretrained", "exclude each other")
    nothing_in(out.parent)


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harm",)


def test_pickle(out, tmp_path, monkeypatch):
    """a pickle that names functions which run commands"""
    monkeypatch.chdir(tmp_path)
    for name, write in (("a.pth", torch.save), ("b.pkl", lambda value, path: path.write_bytes(pickle.dumps(value)))):
        write({"state_dict": {"x": torch.zeros(1), "harm": Harmful()}}, tmp_path / name)
        refused(with_checkpoint(out, tmp_path / name), "system", "refused, and nothing of it was run", "safetensors")
    assert not (tmp_path / "harm").exists()
    nothing_in(out.parent)


def test_pickle_with_other_objects(out, tmp_path):
    """a pickle with other objects beside the weights"""
    state = timm.create_model(MODEL, num_classes=0).state_dict()
    torch.save({"model": state, "out": Path("runs"), "run": subprocess.__name__}, tmp_path / "a.pth")
    assert with_checkpoint(out, tmp_path / "a.pth", *QUICK).exit_code == 0


def test_damaged_checkpoint(out, tmp_path):
    """a checkpoint that does not exist, or is damaged"""
    refused(with_checkpoint(out, tmp_path / "none.safetensors"), "does not exist")
    (tmp_path / "damaged.safetensors").write_bytes(b"not a checkpoint")
    refused(with_checkpoint(out, tmp_path / "damaged.safetensors"), "damaged.safetensors")
    (tmp_path / "damaged.pth").write_bytes(b"not a checkpoint")
    refused(with_checkpoint(out, tmp_path / "damaged.pth"), "damaged.pth")
    nothing_in(out.parent)


def test_what_a_checkpoint_really_is(out, tmp_path):
    """a Git LFS pointer, a web page, an archive or a file of another library as checkpoint"""
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    refused(with_checkpoint(out, file), "Git LFS pointer", "git lfs pull")
    file.write_text("<!DOCTYPE html><html>Sign in</html>")
    refused(with_checkpoint(out, file), "a web page")
    nothing_in(out.parent)


def test_single_shard(out, tmp_path):
    """one shard of a checkpoint"""
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    refused(with_checkpoint(out, tmp_path / "model-00001-of-00002.safetensors"), "number 1 of 2", str(tmp_path))
    refused(with_checkpoint(out, tmp_path), "lacks 1 of 2 shards", "model-00002-of-00002.safetensors")
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


def test_model_of_no_family():
    """a model of no supported family"""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 1, enable_nested_tensor=False)
    with pytest.raises(LookupError, match=r"no family for .*TransformerEncoder.* Write a Family .*add-a-family\.md"):
        analyze(encoder)


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


def test_overflow(out, tmp_path, weights):
    """activations whose squares are infinite"""
    tensors = load_file(weights)
    tensors["blocks.3.mlp.fc2.bias"] += 1e25
    save_file(tensors, tmp_path / "large.safetensors")
    result = tokenlens("analyze", MODEL, "--checkpoint", tmp_path / "large.safetensors", *TINY[1:], "--out", out)
    assert "NaN" not in refused(result, "block 3, mlp_out", "so large (above about 1e19)", "china-view000")


def test_weights_of_zero(out, tmp_path, weights, recwarn):
    """weights that are all zero"""
    save_file({name: torch.zeros_like(value) for name, value in load_file(weights).items()}, tmp_path / "0.safetensors")
    arguments = ("--checkpoint", tmp_path / "0.safetensors", *TINY[1:], "--metrics", "all", "--no-report", "--out", out)
    assert tokenlens("analyze", MODEL, *arguments).exit_code == 0
    assert not recwarn.list


def test_no_metric_applies(out):
    """metrics none of which applies to the model"""
    refused(tiny_analyze(out, "--metrics", "reg_cls_cosine"), "none of the chosen metrics", "no register token")
    nothing_in(out.parent)


# -- options


def test_image_size(out):
    """an image size that the model does not accept"""
    refused(tiny_analyze(out, "--img-size", 63), "63")
    nothing_in(out.parent)


def test_image_size_beyond_the_patches(out):
    """an image size that is no multiple of the patch size"""
    result = tiny_analyze(out, *QUICK, "--json", "--img-size", 70, model="vit_tiny_patch16_224")
    note = "4×4 patches of 16×16 pixels cover 64×64 of 70×70 pixels: 6 rows at the bottom are dropped and 6 columns on"
    assert result.exit_code == 0
    assert note in result.stderr
    assert any(each.startswith(note) for each in json.loads(result.stdout)["notes"])
    assert Analysis.load(out).provenance["notes"][0].startswith(note)
    assert tokenlens("report", out).exit_code == 0
    assert note in (out / "report.html").read_text(encoding="utf-8")


def test_segmentation_beyond_the_patches(tmp_path):
    """a segmentation probe of images whose sides are no multiples"""
    with pytest.raises(
        ValueError, match=r"4×4 patches of 16×16 .* needs an image size \(--img-size\) that is a multiple"
    ):
        FrozenModel(load_model("vit_tiny_patch16_224", pretrained=False, img_size=70), "patches", None, amp=False)


def test_blocks_that_lack_tokens(out):
    """a model whose blocks lack some of its tokens"""
    result = tiny_analyze(out, "--no-report", "--metrics", "cls_patch_cosine,effective_rank", model="cait_xxs24_224")
    assert result.exit_code == 0
    assert "Left out in blocks 0 to 23: the model has no [CLS] token: cls_patch_cosine." in result.stderr
    assert "Left out in blocks 24 to 25 and the final norm: the model has none of the sites resid_post" in result.stderr
    assert set(Analysis.load(out).select("cls_patch_cosine", site="norm1")["block"]) == {24, 25}


def test_device(out):
    """a device that is not available"""
    refused(tiny_analyze(out, "--device", "nonsense"), "nonsense", "cpu")
    refused(tiny_analyze(out, "--device", "cuda:99"), "cuda:99", "available here", "cpu")
    nothing_in(out.parent)


@pytest.mark.parametrize(
    "option",
    [
        *(("--limit", 0), ("--limit", -3), ("--batch-size", 0), ("--workers", -1), ("--img-size", 0), ("--limit", "x")),
        *(("--seed", 2**32), ("--seed", 10**30)),
    ],
)
def test_wrong_numbers(out, option):
    """`--limit 0`, `--batch-size 0`, a negative number, a seed above 2³² − 1"""
    result = tiny_analyze(out, *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr
    nothing_in(out.parent)


@pytest.mark.parametrize("option", ["--out", "--images", "--device", "--out="])
def test_empty_text(tmp_path, monkeypatch, option):
    """an option or an argument that is an empty text"""
    monkeypatch.chdir(tmp_path)
    result = tokenlens("analyze", MODEL, *TINY, *((option,) if option.endswith("=") else (option, "")))
    assert result.exit_code == 2
    assert f"Invalid value for {option.rstrip('=')}: it is empty" in result.stderr
    assert tokenlens("analyze", "").exit_code == 2
    nothing_in(tmp_path)


def test_wrong_kind_of_value(out, tmp_path):
    """a value of `--set` that is a word where a number is expected, or the like"""
    write_pets(tmp_path / "pets")
    train = ("train", "tiny_supervised", "--data", tmp_path / "pets", "--out", out, "--set")
    refused(tokenlens(*train, "lr=abc"), "lr must be a number, got 'abc'")
    refused(tokenlens(*train, "seed=none"), "seed must be a whole number, got None")
    nothing_in(out.parent)


def test_reader_that_stops(tmp_path):
    """a reader of stdout that stops, as `head -1` does"""
    reading, writing = os.pipe()
    os.close(reading)
    # A command that prints, without the seconds that importing torch takes.
    code = "import typer; from tokenlens_cli._errors import guarded; typer.run(guarded(lambda: typer.echo('a line')))"
    exit_code, _, stderr = finished(process("-c", code, cwd=tmp_path, stdout=writing))
    os.close(writing)
    assert (exit_code, stderr) == (0, "")


def test_models_without_patch_tokens(out):
    """a model without patch tokens that attend to each other (ResNet, Mixer, Swin, Hiera, XCiT, …)"""
    for model, reason in (("resnet10t", "is a convolutional network"), ("mixer_s32_224", "without attention")):
        message = refused(tokenlens("analyze", model, "--no-pretrained", "--out", out), "cannot be analyzed", reason)
        assert "Write a Family" not in message
    nothing_in(out.parent)


def test_one_model_inside():
    """a Vision Transformer inside another module"""
    wrapper = nn.Sequential(timm.create_model(MODEL, img_size=64))
    with pytest.warns(
        ModelWarning, match=r"The analyzed model is 0 \(VisionTransformer, timm_vit\).*Images go directly to it"
    ):
        analysis = analyze(wrapper, torch.randn(2, 3, 64, 64), metrics=["token_norm"])
    assert "The analyzed model is 0" in dict(provenance_rows(analysis.provenance))["notes"]


def test_several_models_inside():
    """several Vision Transformers inside a module"""
    two = nn.ModuleDict({name: timm.create_model(MODEL, img_size=64) for name in ("student", "teacher")})
    with pytest.raises(LookupError, match=r"2 Vision Transformers: student \(.*, teacher \("):
        analyze(two, torch.randn(2, 3, 64, 64))


def test_masked_autoencoder():
    """the encoder of ViTMAE"""
    analysis = analyze(MODELS["hf_mae"](), torch.randn(2, 3, 32, 32), metrics=["token_norm"])
    assert "without masking: all patches, in their order" in analysis.provenance["notes"][0]


def test_photographs_for_other_channels(out, tmp_path):
    """photographs for a model that does not take 3 channels"""
    (tmp_path / "model").mkdir()
    model = timm.create_model("test_vit", img_size=64, num_classes=0, in_chans=5)
    timm.models.save_for_hf(
        model, str(tmp_path / "model"), model_args={"in_chans": 5, "img_size": 64}, safe_serialization=True
    )
    result = tokenlens("analyze", f"local-dir:{tmp_path / 'model'}", "--out", out)
    refused(result, "takes images of 5 channels, but photographs have 3", "tensor (N, 5, height, width)")
    nothing_in(out.parent)


def test_tensors_of_other_channels():
    """tensors with another number of channels than the model takes"""
    with pytest.raises(ValueError, match="takes images of 3 channels, N×3×height×width, got 2×64×64×3"):
        analyze(timm.create_model(MODEL, img_size=64), torch.randn(2, 64, 64, 3))


def test_meta_weights():
    """weights on the meta device"""
    with torch.device("meta"):
        model = timm.create_model(MODEL, img_size=64)
    with pytest.raises(ValueError, match=r"on the meta device, which holds no values; load them"):
        analyze(model, torch.randn(2, 3, 64, 64))


def test_flex_attention():
    """attention by `flex_attention`"""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.ViTConfig(**sizes, attn_implementation="flex_attention")
    with pytest.raises(
        ValueError, match=r"with flex_attention, whose kernel cannot be observed; switch to scaled_dot_"
    ):
        analyze(transformers.ViTModel(config), torch.randn(2, 3, 32, 32), metrics=["attention_mass"])


# -- the page


ELSEWHERE = (
    *("cli/test_analyze.py", "families/test_search.py", "training/test_preload.py", "training/test_backbone.py"),
    *("interventions/test_probe_scores.py", "interventions/test_register.py"),
    *("training/objectives/test_distill.py", "verification/test_premises.py", "verification/test_start.py"),
    "verification/test_tasks.py",
)
"""Files with tests of single rows, which need what only these files have."""


def docstrings(file: Path) -> set[str]:
    """Return those of a file's tests."""
    functions = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return {text for node in functions if node.name.startswith("test_") and (text := ast.get_docstring(node))}


def test_the_page_lists_exactly_these():
    page = (REPOSITORY / "docs" / "error-messages.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!situation |---)(.+?) \|", page, re.MULTILINE)
    here = ("test_error_messages.py", "test_image_errors.py", "test_run_folder_errors.py", "test_show.py")
    tested = set().union(*(docstrings(Path(__file__).with_name(name)) for name in here))
    elsewhere = {name: docstrings(Path(__file__).parents[1] / name) & set(rows) for name in ELSEWHERE}
    assert tested <= set(rows)
    assert set(rows) - tested == set().union(*elsewhere.values())
    assert all(elsewhere.values()), elsewhere
    assert len(set(rows)) == len(rows)
