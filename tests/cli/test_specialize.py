"""``tokenlens specialize`` as a user runs it."""

from __future__ import annotations

import json

import timm
import torch

from tests.support.command_line import tokenlens


def test_what_it_would_cost():
    result = tokenlens("specialize", "vit_base_patch16_224", "--dry-run")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["component", "blocks", "modules", "parameters", "added", "GFLOPs", "added"]
    assert [line.split()[0] for line in lines[1:4]] == ["norm", "qkv", "model"]
    assert "0–11, final" in lines[1]
    assert "+7.09 M (+100.00 %)" in lines[2]
    assert "+7.13 M (+8.23 %)" in lines[3]
    assert lines[4] == "layer_scale is left out: the model has none."


def test_what_it_would_cost_as_json():
    result = tokenlens(
        "specialize",
        "vit_small_patch14_reg4_dinov2",
        "--dry-run",
        "--json",
        "--registers",
        "patch",
        "--no-final-norm",
        "--preset",
        "norms",
        "--img-size",
        "56",
    )
    found = json.loads(result.stdout)
    assert found["specialization"] == {"norm": "all", "registers": "patch", "final_norm": False}
    assert found["prefix"] == ["cls"]
    assert len(found["replaced"]) == 24
    assert found["costs"][-1]["component"] == "model"
    assert found["file"] is None


def test_a_file_that_loads_by_name(weights, tmp_path):
    arguments = ("specialize", "test_vit", "--checkpoint", weights, "--img-size", "64")
    result = tokenlens(*arguments, "--out", tmp_path / "twin")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"model: {tmp_path / 'twin' / 'model.safetensors'}"
    assert sorted(path.name for path in (tmp_path / "twin").iterdir()) == ["config.json", "model.safetensors"]
    plain = timm.create_model("test_vit", img_size=64, num_classes=0, checkpoint_path=str(weights)).eval()
    twin = timm.create_model(f"local-dir:{tmp_path / 'twin'}", pretrained=True).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), plain(x), rtol=1e-5, atol=1e-5)
    found = tokenlens(
        "analyze",
        f"local-dir:{tmp_path / 'twin'}",
        "--limit",
        "2",
        "--metrics",
        "weight_distance",
        "--no-report",
        "--out",
        tmp_path / "run",
        "--json",
    )
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["metrics"] == ["weight_distance"]
    again = tokenlens(*arguments, "--out", tmp_path / "twin")
    assert again.exit_code == 1
    assert "already exist; use --overwrite to replace" in again.stderr
    assert tokenlens(*arguments, "--out", tmp_path / "twin", "--overwrite").exit_code == 0
    named = tokenlens(*arguments, "--out", tmp_path / "other" / "mine.safetensors", "--preset", "norms")
    assert named.exit_code == 0
    timm.create_model(f"local-dir:{tmp_path / 'other'}", pretrained=True)


def test_a_saved_specialized_model_is_not_specialized_again(weights, tmp_path):
    assert (
        tokenlens(
            "specialize", "test_vit", "--checkpoint", weights, "--img-size", "64", "--out", tmp_path / "twin"
        ).exit_code
        == 0
    )
    again = tokenlens("specialize", f"local-dir:{tmp_path / 'twin'}", "--dry-run")
    assert again.exit_code == 1
    assert "is specialized already" in again.stderr


def test_wrong_input(tmp_path):
    for arguments, message in (
        (("test_vit", "--preset", "papr", "--dry-run"), "no specialization is called 'papr'. Did you mean paper"),
        (("test_vitt", "--dry-run"), "Did you mean test_vit"),
        (("vit_base_patch16_siglip_224", "--dry-run"), "has only patches"),
        (("resnet18", "--dry-run"), "it is a convolutional network"),
        (("vit_tiny_patch16_224", "--out", tmp_path / "twin"), "not available"),
    ):
        result = tokenlens("specialize", *arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert tokenlens("specialize", "test_vit").exit_code == 2
    assert not list(tmp_path.iterdir())


def test_components_are_listed():
    result = tokenlens("list", "components")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["norm", "layer_scale", "qkv", "proj", "mlp"]
    found = json.loads(tokenlens("list", "components", "qkv", "--json").stdout)
    assert found["items"][0]["presets"] == {
        "norms": None,
        "paper": "first_third",
        "qkv_all": "all",
        "everything": "all",
    }
