"""Models created with checkpoints, with published weights from the cache, and without a network."""

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

from tests.support.timm_weights import NAME, TEST_DATA, pretrained, timm_state
from tokenlens.models.checkpoints import weights_sha256
from tokenlens.models.loading import load_model
from tokenlens.storage import downloads as hub
from tokenlens.storage.hashing import file_sha256


def in_cache(cache: Path, repo: str, files: dict[str, bytes]) -> Path:
    """Write files in the layout of a repository that huggingface_hub has downloaded."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc")
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return snapshot


def save_timm_folder(folder: Path, **options: object) -> nn.Module:
    """Create a small model, save it in timm's format and return it."""
    torch.manual_seed(7)
    model = timm.create_model(NAME, **options)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return model


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet10t", {}, LookupError, r"timm\.models\.resnet\.ResNet cannot be analyzed"),  # no download
        ("resnet10t", {"pretrained": False, "img_size": 64}, ValueError, "resnet10t does not take img_size"),
        ("vit_base_patch16_gap_224", {}, ValueError, "no pretrained weights are published for vit_base_patch16_gap_"),
    ],
)
def test_models_that_cannot_be_created(name: str, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_model(name, **options)


def test_unreachable_weights_fail_fast_and_never_become_random(monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"weights of test_vit are not available.*cannot be reached") as error:
        load_model(NAME)
    assert time.monotonic() - started < 10
    for way_out in ("--checkpoint", "--no-pretrained", "timm/test_vit.r160_in1k"):
        assert way_out in str(error.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        load_model(NAME)


def test_a_hub_that_never_answers_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.3)
    with socket.socket() as server:  # accepts, and says nothing
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ValueError, match="not available"):
            load_model("hf-hub:timm/some_vit")
        assert time.monotonic() - started < 5


def test_published_weights_come_from_the_cache_without_network(empty_cache: Path, tmp_path: Path) -> None:
    state = timm_state()
    save_file(state, tmp_path / "weights")
    content = (tmp_path / "weights").read_bytes()
    snapshot = in_cache(empty_cache, "timm/test_vit.r160_in1k", {"model.safetensors": content})
    loaded = load_model(NAME, img_size=64)
    assert not loaded.untrained
    assert loaded.weights == {
        "source": "hf-hub:timm/test_vit.r160_in1k/model.safetensors, pos_embed resampled from 1×101×64 to 1×17×64",
        "sha256": file_sha256(snapshot / "model.safetensors"),
        "pretrained": True,
        "steps": ["pos_embed resampled from 1×101×64 to 1×17×64"],
    }
    assert load_model(NAME).weights["steps"] == []
    assert torch.equal(loaded.module.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    assert loaded.module.pos_embed.shape[1] == 17  # 10×10 patches resampled to 4×4, and CLS


def test_hub_and_folder_models_in_timms_format(empty_cache: Path, tmp_path: Path) -> None:
    model = save_timm_folder(tmp_path / "mine", img_size=48, num_classes=5)
    in_cache(empty_cache, "me/mine", {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()})
    for name in ("hf-hub:me/mine", f"local-dir:{tmp_path / 'mine'}"):
        loaded = load_model(name)
        assert loaded.name == name
        assert loaded.image_size == (48, 48)
        assert weights_sha256(loaded.module) == weights_sha256(model)
        assert load_model(name, pretrained=False).untrained
    assert load_model("hf-hub:me/mine", img_size=80).module.pos_embed.shape[1] == 26


def test_hub_model_of_another_library(empty_cache: Path) -> None:
    in_cache(empty_cache, "me/other", {"config.json": b'{"backbone": "mine"}'})
    with pytest.raises(ValueError, match=r"me/other.*pass the module"):
        load_model("hf-hub:me/other")


def test_folder_without_weights_or_with_a_choice_of_them(tmp_path: Path) -> None:
    save_timm_folder(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "one.safetensors")
    assert not load_model(f"local-dir:{tmp_path}").untrained
    (tmp_path / "two.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds 2 files of weights \(one\.safetensors, two\.pth\)"):
        load_model(f"local-dir:{tmp_path}")


def test_checkpoint_needs_no_network_and_its_file_is_hashed(tmp_path: Path) -> None:
    state = timm_state()
    save_file(state, tmp_path / "weights.safetensors")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.safetensors")
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
def test_the_classifier_follows_a_checkpoint_in_half_precision(tmp_path: Path, classes: int) -> None:
    state = timm_state(num_classes=classes)
    save_file({key: value.half() for key, value in state.items()}, tmp_path / "weights.safetensors")
    loaded = load_model(NAME, checkpoint=tmp_path / "weights.safetensors")
    assert {value.dtype for value in loaded.module.state_dict().values()} == {torch.float32}
    assert loaded.module.num_classes == classes
    assert loaded.module(torch.zeros(1, 3, 160, 160)).shape == (1, classes or 64)


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
