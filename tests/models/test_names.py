"""Names of models, and what wrong ones get."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.support.specialized_models import perturb
from tests.support.timm_weights import NAME, TEST_DATA, pretrained
from tokenlens.models.loading import load_model
from tokenlens.specialization.base import SpecializedModule


def test_specialized_names(weights, tmp_path):
    plain = load_model("test_vit", checkpoint=weights, img_size=64, device="cpu")
    twin = load_model("specialized:paper:test_vit", checkpoint=weights, img_size=64, device="cpu")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(twin.module(x), plain.module(x), rtol=1e-5, atol=1e-5)
    assert twin.name == "specialized:paper:test_vit"
    assert twin.weights["pretrained"]
    assert "state_dict" not in twin.module.pretrained_cfg
    # Its trained weights load by the same name.
    save_file(perturb(twin.module).state_dict(), tmp_path / "trained.safetensors")
    file = tmp_path / "trained.safetensors"
    again = load_model("specialized:paper:test_vit", checkpoint=file, img_size=64, device="cpu")
    with torch.no_grad():
        assert torch.equal(again.module(x), twin.module(x))
    assert load_model("specialized:norms:test_vit", pretrained=False, device="cpu").untrained
    assert isinstance(
        load_model("vit_tiny_patch16_224_specialized", pretrained=False, device="cpu").module.norm, SpecializedModule
    )


@pytest.mark.parametrize("preset", [pytest.param(preset, marks=pretrained) for preset in ("paper", "everything")])
def test_real_weights_give_the_same_features(preset):
    file = Path(str(TEST_DATA)) / "weights" / "dinov2_vits14.safetensors"
    standard = load_model("vit_small_patch14_dinov2", checkpoint=file, img_size=224, device="cpu")
    twin = load_model(f"specialized:{preset}:vit_small_patch14_dinov2", checkpoint=file, img_size=224, device="cpu")
    photographs = sorted((Path(str(TEST_DATA)) / "photos").glob("*.jp*g"))[:2]
    x = torch.stack([standard.transform()(Image.open(path).convert("RGB")) for path in photographs])
    with torch.no_grad():
        before, after = standard.module.forward_features(x), twin.module.forward_features(x)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("test_vitt", LookupError, r"no model is called 'test_vitt'\. Did you mean test_vit"),
        ("vit_bse_patch16_224", LookupError, "vit_base_patch16_224"),
        (f"{NAME}.foo", LookupError, r"no weights tagged 'foo'\. Available: r160_in1k"),
        ("vit_base_patch16_224_in21k", LookupError, r"renamed .* to 'vit_base_patch16_224\.augreg_in21k'"),
        ("specialized:paper", LookupError, "a specialized model is specialized:PRESET:NAME"),
        ("specialized:papr:test_vit", LookupError, "no specialization is called 'papr'. Did you mean paper"),
        ("specialized:paper:test_vitt", LookupError, "no model is called 'test_vitt'"),
        ("specialized:paper:specialized:norms:test_vit", ValueError, "is specialized already"),
        ("specialized:paper:vit_base_patch16_siglip_224", ValueError, "has only patches"),
        ("vit_tiny_patch16_224_specialised", LookupError, "Did you mean vit_tiny_patch16_224_specialized"),
        ("owner/model", LookupError, "write hf-hub:owner/model"),
        ("foo:bar", LookupError, "no model is called 'foo:bar'; expected"),
        ("/nowhere/weights.pt", LookupError, "there is no file or folder /nowhere/weights.pt; expected one, or"),
        ("weights.pt", LookupError, "there is no file or folder weights.pt; expected one, or"),
        ("hf-hub:no such/repo", ValueError, "not available"),
        ("local-dir:/nowhere", ValueError, r"holds no config\.json"),
        (3, ValueError, "a model is a name or an nn.Module, got int"),
    ],
)
def test_wrong_names(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(name, pretrained=False)


def test_a_folder_is_no_model_but_may_have_the_name_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"nor a config.json.*--checkpoint {tmp_path}"):
        load_model(str(tmp_path))
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model(NAME, pretrained=False).name == NAME


def test_a_file_of_weights_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.touch()
    with pytest.raises(ValueError, match=f"is a file; name its model and pass --checkpoint {file}"):
        load_model(str(file))
