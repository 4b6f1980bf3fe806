"""Loading models: random weights, image sizes, devices, and modules that are passed in."""

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tokenlens
from tests.support.timm_weights import NAME
from tests.support.tiny_models import KINDS, MODELS, tiny_timm
from tokenlens.families.base import Family, image_size_of
from tokenlens.models.checkpoints import weights_sha256
from tokenlens.models.loading import load_model
from tokenlens.tokens import TokenLayout


def test_random_weights_only_on_request_seeded_and_marked() -> None:
    torch.manual_seed(3)
    expected_next = torch.rand(4)
    torch.manual_seed(3)
    first = load_model(NAME, pretrained=False, seed=5)
    assert torch.equal(torch.rand(4), expected_next), "the global random state moved"
    again = load_model(NAME, pretrained=False, seed=5)
    other = load_model(NAME, pretrained=False, seed=6)
    assert first.untrained
    assert first.weights["pretrained"] is False
    assert "random initialisation, seed 5" in first.weights["source"]
    assert first.weights["sha256"] == again.weights["sha256"] == weights_sha256(first.module)
    assert first.weights["sha256"] != other.weights["sha256"]
    assert not first.module.training
    assert (first.name, first.family.name, first.image_size) == (NAME, "timm_vit", (160, 160))


@pytest.mark.parametrize(("size", "expected"), [(64, (64, 64)), ((32, 96), (32, 96))])
def test_img_size_makes_model_and_transform_of_that_size(size: object, expected: tuple[int, int]) -> None:
    loaded = load_model(NAME, pretrained=False, img_size=size)  # type: ignore[arg-type]
    assert loaded.image_size == expected
    assert loaded.data_config["input_size"] == (3, *expected)
    image = loaded.transform()(Image.new("RGB", (300, 200), (255, 0, 0)))
    assert image.shape == (3, *expected)
    assert image[0].unique().tolist() == [1.0]  # mean and std 0.5, as timm publishes for this model
    assert loaded.module(image[None]).shape == (1, 1000)


def test_dinov2_transform_has_the_size_the_model_was_made_with() -> None:
    model = timm.create_model("vit_small_patch14_dinov2", img_size=28, depth=1, num_heads=2, embed_dim=8)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 518, 518)  # the trap
    loaded = load_model(model)
    assert loaded.image_size == (28, 28)
    assert loaded.transform()(Image.new("RGB", (50, 60))).shape == (3, 28, 28)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": 0}, "img_size is a number of pixels or"),
        ({"img_size": "large"}, "img_size is a number of pixels or"),
        ({"img_size": 33}, "do not divide into patches"),
        ({"device": "gpu"}, "no device is called 'gpu'; available here: auto, "),
        ({"device": "cuda:99"}, "no 'cuda:99' on this machine"),
        ({"device": "meta"}, "no 'meta' on this machine"),
    ],
)
def test_wrong_sizes_and_devices(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(NAME, pretrained=False, **options)  # type: ignore[arg-type]


def test_device() -> None:
    assert load_model(NAME, pretrained=False, device="cpu").device.type == "cpu"
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert load_model(NAME, pretrained=False).device.type == best


@pytest.mark.parametrize("name", {kind.family: name for name, kind in KINDS.items()}.values())
def test_modules_of_every_family_are_used_as_they_are(name: str) -> None:
    module = MODELS[name]()
    module.train()
    before = weights_sha256(module)
    stated = image_size_of(module)
    loaded = load_model(module, img_size=None if stated else KINDS[name].image_size)  # CAPI states no size
    assert loaded.module is module
    assert module.training, "a module that is passed keeps its mode"
    assert loaded.name == type(module).__name__
    assert (loaded.weights["sha256"], loaded.untrained) == (before, False)
    assert loaded.family.layout(module, loaded.image_size).patches > 0
    assert loaded.transform()(Image.new("RGB", (90, 70))).shape == (3, *loaded.image_size)
    if not loaded.family.preprocessing(module):
        assert loaded.data_config["assumed"] == "ImageNet defaults"
        assert loaded.data_config["mean"] == (0.485, 0.456, 0.406)


def test_a_module_can_be_declared_untrained_and_given_a_size() -> None:
    model = timm.create_model(NAME, dynamic_img_size=True)
    loaded = load_model(model, pretrained=False, img_size=(32, 64))
    assert loaded.untrained
    assert loaded.image_size == (32, 64)
    with pytest.raises(ValueError, match="takes images of 160×160 pixels"):
        load_model(timm.create_model(NAME, dynamic_img_size=False), img_size=32)
    with pytest.raises(ValueError, match="load the weights into it yourself"):
        load_model(model, checkpoint="weights.safetensors")


class OneFamily(Family):
    """For a model that tokenlens does not know."""

    name = "mine"

    def layout(self, model: nn.Module, image_size: tuple[int, int]) -> TokenLayout:
        return TokenLayout(grid=(image_size[0] // 8, image_size[1] // 8))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return []

    def taps(self, block: nn.Module) -> object:  # type: ignore[override]
        raise NotImplementedError


def test_a_family_that_is_passed_in() -> None:
    with pytest.raises(LookupError, match="tokenlens has no family for"):
        load_model(nn.TransformerEncoderLayer(2, 2, batch_first=True))
    with pytest.raises(ValueError, match="does not define its image size"):
        load_model(nn.Linear(2, 2), family=OneFamily())
    loaded = load_model(nn.Linear(2, 2), family=OneFamily(), img_size=16)
    assert (loaded.family.name, loaded.image_size) == ("mine", (16, 16))


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8}, 32),
        ("naflexvit_base_patch16_gap", {"patch_size": 8}, 32),
    ],
)
def test_the_models_own_number_of_channels(name, options, size) -> None:
    model = tiny_timm(name, in_chans=5, **options).eval()
    loaded = load_model(model, img_size=size)
    assert loaded.channels == 5
    assert loaded.data_config["input_size"] == (5, size, size)
    images = torch.randn(3, 5, size, size)
    whole = tokenlens.analyze(model, images, img_size=size, metrics=["token_norm"])
    batches = DataLoader(TensorDataset(images), batch_size=2)
    assert tokenlens.analyze(model, batches, img_size=size, metrics=["token_norm"]).table.equals(whole.table)
    assert tokenlens.record(model, images, img_size=size)[0, "resid_pre"].shape[0] == 3
    wrong = "takes images of 5 channels, N×5×height×width, got "
    for other in (images[:, :3], DataLoader(TensorDataset(images[:, :3]))):
        with pytest.raises(ValueError, match=wrong):
            tokenlens.analyze(model, other, img_size=size)
    with pytest.raises(ValueError, match=wrong):
        tokenlens.record(model, DataLoader(TensorDataset(images[:, :3])), img_size=size)
    with pytest.raises(ValueError, match=r"5 channels, but photographs have 3; .*tensor \(N, 5, height, width\)"):
        tokenlens.analyze(model, "sample", img_size=size)


def test_channels_of_other_libraries() -> None:
    assert {load_model(MODELS[name]()).channels for name in ("hf_vit", "hf_siglip2_vision", "dino_hub")} == {3}
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    assert load_model(transformers.ViTModel(transformers.ViTConfig(**sizes, num_channels=1))).channels == 1


def test_weights_on_the_meta_device_are_refused() -> None:
    with pytest.raises(ValueError, match=r"this VisionTransformer are on the meta device.*load_state_dict"):
        load_model(MODELS["timm_vit"]().to("meta"))


def test_siglip2_states_its_size_in_patches() -> None:
    assert load_model(MODELS["hf_siglip2_vision"]()).image_size == (32, 32)
