"""``tokenlens check``."""

import json

import torch
from safetensors.torch import load_file

from tests.support.command_line import MODEL, tokenlens


def test_a_model_with_a_checkpoint(weights):
    result = tokenlens("check", MODEL, "--checkpoint", weights, "--img-size", 64)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"{MODEL}: tokenlens can read it\n")
    assert "family timm_vit" in result.stdout
    assert result.stderr == ""
    told = json.loads(tokenlens("check", MODEL, "--checkpoint", weights, "--json").stdout)
    assert told["readable"] is True
    assert told["weights"]["matched"] == told["weights"]["wanted"] == len(load_file(weights))


def test_what_cannot_be_read_ends_with_exit_code_1(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    for subject in (tmp_path / "a.pth", "resnet10t"):
        result = tokenlens("check", subject)
        assert result.exit_code == 1
        assert "tokenlens cannot read it" in result.stdout
        assert result.stderr.startswith("error: ")
        result = tokenlens("check", subject, "--json")
        assert (result.exit_code, json.loads(result.stdout)["readable"]) == (1, False)
    result = tokenlens("check", "vit_bose_patch16_224")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "vit_base_patch16_224" in result.stderr
