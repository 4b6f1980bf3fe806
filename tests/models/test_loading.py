"""Loading models: names, checkpoints, sizes, devices; and what wrong input gets."""

from __future__ import annotations

import argparse
import os
import re
import socket
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.tiny_models import MODELS
from tokenlens.families.base import Family
from tokenlens.models.checkpoints import read_checkpoint, weights_sha256
from tokenlens.models.loading import load_model
from tokenlens.storage import downloads as hub
from tokenlens.storage.hashing import file_sha256
from tokenlens.tokens import TokenLayout

NAME = "test_vit"  # timm's own model for tests: 365,096 parameters, images of 160×160, patches of 16
TEST_DATA = os.environ.get("TOKENLENS_TEST_DATA")

pretrained = [
    pytest.mark.pretrained,
    pytest.mark.skipif(not TEST_DATA, reason="TOKENLENS_TEST_DATA does not point to the real weights"),
]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache of the test's own, and a hub that nobody answers for."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port.getsockname()[1]}")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return cache


def timm_state(name: str = NAME, **options: object) -> dict[str, torch.Tensor]:
    """Random weights of a timm model, clones, so that a file can hold them."""
    torch.manual_seed(7)
    return {key: value.clone() for key, value in timm.create_model(name, **options).state_dict().items()}


def in_cache(cache: Path, repo: str, **files: bytes) -> Path:
    """Lay files out as huggingface_hub keeps a downloaded repository."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc")
    for name, content in files.items():
        (snapshot / name.replace("_dot_", ".")).write_bytes(content)
    return snapshot


def save_timm_folder(folder: Path, **options: object) -> nn.Module:
    torch.manual_seed(7)
    model = timm.create_model(NAME, **options)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return model


# Names and random weights


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
    ("name", "error", "message"),
    [
        ("test_vitt", LookupError, r"no model is called 'test_vitt'\. Did you mean test_vit"),
        ("vit_bse_patch16_224", LookupError, "vit_base_patch16_224"),
        (f"{NAME}.foo", LookupError, r"no weights tagged 'foo'\. Available: r160_in1k"),
        ("vit_base_patch16_224_in21k", LookupError, r"renamed .* to 'vit_base_patch16_224\.augreg_in21k'"),
        ("specialized:paper", LookupError, "a specialized model is specialized:PRESET:NAME"),
        ("owner/model", LookupError, "write hf-hub:owner/model"),
        ("foo:bar", LookupError, "no model is called 'foo:bar'; names are"),
        ("hf-hub:no such/repo", ValueError, "cannot be had"),
        ("local-dir:/nowhere", ValueError, r"holds no config\.json"),
        (3, ValueError, "a model is a name or an nn.Module, got int"),
    ],
)
def test_wrong_names_get_a_clear_sentence(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(name, pretrained=False)


def test_a_folder_is_no_model_but_a_folder_named_like_one_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"local-dir:{tmp_path}"):
        load_model(str(tmp_path))
    (tmp_path / NAME).mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model(NAME, pretrained=False).name == NAME


def test_a_model_that_is_no_vit_is_refused_before_its_weights_are_looked_for() -> None:
    with pytest.raises(LookupError, match=r"no family of tokenlens owns a timm\.models\.resnet\.ResNet"):
        load_model("resnet10t")


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


def test_img_size_that_a_model_does_not_take() -> None:
    with pytest.raises(ValueError, match="resnet10t does not take img_size"):
        load_model("resnet10t", pretrained=False, img_size=64)


def test_device() -> None:
    assert load_model(NAME, pretrained=False, device="cpu").device.type == "cpu"
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert load_model(NAME, pretrained=False).device.type == best


# Weights out of reach


def test_unreachable_weights_fail_fast_and_never_become_random() -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"pretrained weights of test_vit cannot be had.*cannot be reached") as error:
        load_model(NAME)
    assert time.monotonic() - started < 10
    for way_out in ("--checkpoint", "--no-pretrained", "timm/test_vit.r160_in1k"):
        assert way_out in str(error.value)


def test_a_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    with socket.socket() as server:  # accepts, and says nothing
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ValueError, match="cannot be had"):
            load_model("hf-hub:timm/some_vit")
        assert time.monotonic() - started < 5


def test_offline_by_request_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        load_model(NAME)


def test_downloads_try_the_names_in_turn_and_say_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def download(repo: str, name: str, revision: str | None) -> str:
        if repo == "cut/off":
            raise LocalEntryNotFoundError("connection lost\nand more")
        if name == "b.bin":
            return str(tmp_path / name)
        raise EntryNotFoundError("404")

    monkeypatch.setattr(hub, "unreachable", lambda url: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert hub.hub_file("there/is", ["a.safetensors", "b.bin"]) == tmp_path / "b.bin"
    with pytest.raises(hub.UnreachableError, match=r"there/is has none of a\.safetensors, c\.bin"):
        hub.hub_file("there/is", ["a.safetensors", "c.bin"])
    with pytest.raises(hub.UnreachableError, match=r"could not be downloaded \(LocalEntry\w+: connection lost\)"):
        hub.hub_file("cut/off", ["a.safetensors", "b.bin"])


def test_weights_at_an_address_are_kept_by_torch_hub(tmp_path: Path) -> None:
    with pytest.raises(hub.UnreachableError, match="cannot be reached"):
        hub.url_file("http://127.0.0.1:9/weights/vit.pth")
    kept = tmp_path / "torch" / "checkpoints" / "vit.pth"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    assert hub.url_file("http://127.0.0.1:9/weights/vit.pth") == kept


def test_a_model_without_published_weights() -> None:
    with pytest.raises(ValueError, match="no pretrained weights are published for vit_base_patch16_gap_224"):
        load_model("vit_base_patch16_gap_224")


def test_published_weights_come_from_the_cache_without_network(empty_cache: Path, tmp_path: Path) -> None:
    state = timm_state()
    save_file(state, tmp_path / "weights")
    content = (tmp_path / "weights").read_bytes()
    snapshot = in_cache(empty_cache, "timm/test_vit.r160_in1k", model_dot_safetensors=content)
    loaded = load_model(NAME, img_size=64)
    assert not loaded.untrained
    assert loaded.weights == {
        "source": "hf-hub:timm/test_vit.r160_in1k/model.safetensors",
        "sha256": file_sha256(snapshot / "model.safetensors"),
        "pretrained": True,
    }
    assert torch.equal(loaded.module.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert loaded.module.pos_embed.shape[1] == 17  # 10×10 patches resampled to 4×4, and CLS


def test_hub_and_folder_models_in_timms_format(empty_cache: Path, tmp_path: Path) -> None:
    model = save_timm_folder(tmp_path / "mine", img_size=48, num_classes=5)
    files = {
        name: (tmp_path / "mine" / name.replace("_dot_", ".")).read_bytes()
        for name in ("config_dot_json", "model_dot_safetensors")
    }
    in_cache(empty_cache, "me/mine", **files)
    for name in ("hf-hub:me/mine", f"local-dir:{tmp_path / 'mine'}"):
        loaded = load_model(name)
        assert loaded.name == name
        assert loaded.image_size == (48, 48)
        assert weights_sha256(loaded.module) == weights_sha256(model)
        assert load_model(name, pretrained=False).untrained
    assert load_model("hf-hub:me/mine", img_size=80).module.pos_embed.shape[1] == 26


def test_hub_model_of_another_library(empty_cache: Path) -> None:
    in_cache(empty_cache, "facebook/dinov2-small", config_dot_json=b'{"model_type": "dinov2"}')
    with pytest.raises(ValueError, match="hand the module over"):
        load_model("hf-hub:facebook/dinov2-small")


def test_folder_without_weights_or_with_a_choice_of_them(tmp_path: Path) -> None:
    save_timm_folder(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "one.safetensors")
    assert not load_model(f"local-dir:{tmp_path}").untrained
    (tmp_path / "two.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds 2 files of weights \(one\.safetensors, two\.pth\)"):
        load_model(f"local-dir:{tmp_path}")


# Checkpoints


def test_checkpoint_needs_no_network_and_its_file_is_hashed(tmp_path: Path) -> None:
    state = timm_state()
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.safetensors", pretrained=False)
    assert not loaded.untrained
    assert loaded.weights["sha256"] == file_sha256(tmp_path / "weights.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())
    assert "state_dict" not in loaded.module.pretrained_cfg


def test_position_embedding_is_resampled_as_timm_does_it(tmp_path: Path) -> None:
    state = timm_state(img_size=160)
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.safetensors", img_size=(64, 96))
    expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], new_size=[4, 6], num_prefix_tokens=1)
    torch.testing.assert_close(loaded.module.pos_embed, nn.Parameter(expected))
    assert "pos_embed resampled from 1×101×64 to 1×25×64" in loaded.weights["source"]


@pytest.mark.parametrize("classes", [0, 7, 1000])
def test_the_classifier_follows_the_checkpoint(tmp_path: Path, classes: int) -> None:
    save_file(timm_state(num_classes=classes), tmp_path / "weights.safetensors")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.safetensors")
    assert loaded.module.num_classes == classes
    assert loaded.module(torch.zeros(1, 3, 160, 160)).shape == (1, classes or 64)


def test_half_precision_checkpoint_loads_into_a_single_precision_model(tmp_path: Path) -> None:
    save_file({key: value.half() for key, value in timm_state().items()}, tmp_path / "weights.safetensors")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.safetensors")
    assert {value.dtype for value in loaded.module.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, "under 'state_dict'"),
        (
            lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
            "under 'model', without the prefix 'module.'",
        ),
        (
            lambda state: {
                "student": {},
                "teacher": {
                    **{f"module.backbone.{key}": value for key, value in state.items()},
                    "module.head.mlp.0.weight": torch.zeros(2, 2),
                },
            },
            "under 'teacher', without the prefix 'module.', without the prefix 'backbone.' and 1 tensors outside",
        ),
        (lambda state: {"state_dict": {"x": torch.zeros(1)}, "state_dict_ema": state}, "under 'state_dict_ema'"),
        (
            lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
            "without the prefix '_orig_mod.', without the prefix 'module.'",
        ),
    ],
)
def test_wrapped_checkpoints_are_unwrapped_and_it_is_said(tmp_path: Path, wrap: object, said: str) -> None:
    state = timm_state(num_classes=0)
    torch.save(wrap(state), tmp_path / "checkpoint.pth")  # type: ignore[operator]
    loaded = load_model(NAME, checkpoint=tmp_path / "checkpoint.pth")
    assert said in loaded.weights["source"]
    assert torch.equal(loaded.module.cls_token, state["cls_token"])


def test_original_deit3_names_are_adapted(tmp_path: Path) -> None:
    name = "deit3_small_patch16_224"
    state = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in timm_state(name, depth=1).items()}
    assert "blocks.0.gamma_1" in state
    torch.save({"model": state}, tmp_path / "deit3.pth")
    with pytest.raises(ValueError, match=r"keys missing: blocks\.1"):  # the gamma_ are not among the misfits
        load_model(name, checkpoint=tmp_path / "deit3.pth")


def test_checkpoint_that_does_not_fit_names_the_keys(tmp_path: Path) -> None:
    state = timm_state()
    for key in [key for key in state if key.startswith("blocks.0.")]:
        del state[key]
    state["extra"] = torch.zeros(2)
    state["norm.weight"] = torch.zeros(9)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="does not fit test_vit") as error:
        load_model(NAME, checkpoint=tmp_path / "weights.safetensors")
    text = str(error.value)
    assert "12 keys missing: blocks.0.attn.proj.bias, " in text
    assert "and 4 more" in text
    assert "blocks.0.norm2.weight" not in text  # the twelfth
    assert "1 key unexpected: extra" in text
    assert "1 key of another shape: norm.weight (9 in the checkpoint, 64 in the model)" in text


@pytest.mark.parametrize("shape", [(), (7,), (1, 7), (1, 0, 64), (1, 7, 64), (1, 2, 3, 64)])
def test_a_malformed_position_embedding_is_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Also where timm stumbles over it while it adapts its size."""
    save_file(timm_state() | {"pos_embed": torch.zeros(shape)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"does not fit test_vit.*pos_embed"):
        load_model(NAME, checkpoint=tmp_path / "weights.safetensors")


class Weapon:
    """A pickle that would run a command."""

    def __init__(self, touched: Path) -> None:
        self.touched = touched

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.touched}",)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Weapon(tmp_path / "touched")}, tmp_path / "weapon.pth")
    torch.save(timm.create_model(NAME), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"not plain tensors \(it asks for (posix|nt)\.system\).* refused"):
        load_model(NAME, checkpoint=tmp_path / "weapon.pth")
    assert not (tmp_path / "touched").exists()
    with pytest.raises(ValueError, match="not plain tensors"):
        load_model(NAME, checkpoint=tmp_path / "module.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"junk" * 30, "no readable safetensors file"),
        ("a.safetensors", b"", "no readable safetensors file"),
        ("a.pth", b"", "cannot be read"),
        ("a.pth", b"hello world", "cannot be read|not plain tensors"),
        ("a.pth", b"PK\x03\x04" + b"\0" * 64, "cannot be read"),
    ],
)
def test_damaged_checkpoints(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(tmp_path / name)


def test_checkpoint_paths_and_contents_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="is a folder, not a checkpoint file"):
        read_checkpoint(tmp_path)
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"holds no state dict.*Its keys: epoch, optimizer"):
        read_checkpoint(tmp_path / "empty.pth")


# Modules


@pytest.mark.parametrize(
    "name",
    [
        "timm_vit",
        "timm_dinov2",
        "timm_hybrid",
        "timm_eva02",
        "timm_beit",
        "timm_relpos",
        "timm_naflexvit",
        "hf_vit",
        "hf_clip_vision",
        "hf_dinov3",
        "torchvision_vit",
        "dino_hub",
        "dinov2_hub",
    ],
)
def test_modules_of_every_family_are_taken_as_they_are(name: str) -> None:
    module = MODELS[name]()
    module.train()
    before = weights_sha256(module)
    loaded = load_model(module)
    assert loaded.module is module
    assert module.training, "a module that was handed over keeps its mode"
    assert loaded.name == type(module).__name__
    assert (loaded.weights["sha256"], loaded.untrained) == (before, False)
    assert loaded.family.layout(module, loaded.image_size).patches > 0
    assert loaded.transform()(Image.new("RGB", (90, 70))).shape == (3, *loaded.image_size)
    if not hasattr(module, "pretrained_cfg"):
        assert loaded.data_config["stated"] == "assumed ImageNet defaults"
        assert loaded.data_config["mean"] == (0.485, 0.456, 0.406)


def test_a_module_can_be_declared_untrained_and_given_a_size() -> None:
    model = timm.create_model(NAME, dynamic_img_size=True)
    loaded = load_model(model, pretrained=False, img_size=(32, 64))
    assert loaded.untrained
    assert loaded.image_size == (32, 64)
    with pytest.raises(ValueError, match="takes images of 160×160 pixels"):
        load_model(timm.create_model(NAME, dynamic_img_size=False), img_size=32)


def test_a_checkpoint_does_not_go_into_somebodys_module(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="load the weights into it yourself"):
        load_model(timm.create_model(NAME), checkpoint=tmp_path / "weights.safetensors")


class OneFamily(Family):
    """For a model that tokenlens does not know."""

    name = "mine"

    def layout(self, model: nn.Module, image_size: tuple[int, int]) -> TokenLayout:
        return TokenLayout(grid=(image_size[0] // 8, image_size[1] // 8))

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        return []

    def taps(self, block: nn.Module) -> object:  # type: ignore[override]
        raise NotImplementedError


def test_a_family_of_ones_own() -> None:
    with pytest.raises(LookupError, match="no family of tokenlens owns"):
        load_model(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="does not say what size of images it takes"):
        load_model(nn.Linear(2, 2), family=OneFamily())
    loaded = load_model(nn.Linear(2, 2), family=OneFamily(), img_size=16)
    assert (loaded.family.name, loaded.image_size) == ("mine", (16, 16))


# Real weights


@pytest.mark.parametrize("size", [pytest.param(224, marks=pretrained), pytest.param(None, marks=pretrained)])
def test_real_dinov2_at_its_own_size_and_resampled(size: int | None) -> None:
    path = Path(str(TEST_DATA)) / "weights" / "dinov2_vits14.safetensors"
    loaded = load_model("vit_small_patch14_dinov2.lvd142m", checkpoint=path, img_size=size)
    expected = (size or 518,) * 2
    assert loaded.image_size == expected
    image = loaded.transform()(Image.new("RGB", (640, 480), (90, 120, 30)))
    assert image.shape == (3, *expected)
    raw = load_file(path)["pos_embed"].float()
    assert raw.shape[1] == 1 + 37 * 37
    if size:
        raw = timm.layers.resample_abs_pos_embed(raw, new_size=[16, 16], num_prefix_tokens=1)
    torch.testing.assert_close(loaded.module.pos_embed.detach(), raw)
    assert loaded.module.num_classes == 0
    assert loaded.weights["sha256"] == file_sha256(path)


@pytest.mark.pretrained
@pytest.mark.skipif(not TEST_DATA, reason="TOKENLENS_TEST_DATA does not point to the real weights")
def test_real_weights_of_another_architecture_do_not_fit() -> None:
    path = Path(str(TEST_DATA)) / "weights" / "dinov2_vits14.safetensors"
    with pytest.raises(ValueError, match=r"24 keys unexpected: blocks\.0\.ls1\.gamma, .* and 16 more"):
        load_model("vit_small_patch16_224", checkpoint=path)
