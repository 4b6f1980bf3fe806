"""Checkpoint files: wrappers, prefixes, pickles, damaged files, and names or shapes that differ from the model's."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.timm_weights import NAME, TEST_DATA, timm_state
from tokenlens.models.checkpoints import read_checkpoint
from tokenlens.models.loading import load_model


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda state: {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, "under 'state_dict'"),
        (lambda state: {"model": prefixed(state, "module.")}, "under 'model', without the prefix 'module.'"),
        (
            lambda state: {
                "student": {},
                "teacher": prefixed(state, "module.backbone.") | {"module.head.mlp.0.weight": torch.zeros(2, 2)},
            },
            "under 'teacher', without the prefix 'module.backbone.', 1 key elsewhere in the file not used",
        ),
        (lambda state: {"state_dict": {"x": torch.zeros(1)}, "state_dict_ema": state}, "under 'state_dict_ema'"),
        (lambda state: prefixed(state, "_orig_mod.module."), "without the prefix '_orig_mod.module.'"),
    ],
)
def test_wrapped_checkpoints_are_unwrapped_and_it_is_said(tmp_path: Path, wrap: object, said: str) -> None:
    state = timm_state(num_classes=0)
    torch.save(wrap(state), tmp_path / "checkpoint.pth")  # type: ignore[operator]
    loaded = load_model(NAME, checkpoint=tmp_path / "checkpoint.pth")
    assert said in loaded.weights["source"]
    assert ", ".join(loaded.weights["steps"]) in loaded.weights["source"]
    assert torch.equal(loaded.module.cls_token, state["cls_token"])


def test_a_checkpoint_and_random_weights_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"exclude each other: leave out --checkpoint .* or --no-pretrained"):
        load_model(NAME, checkpoint=tmp_path / "weights.safetensors", pretrained=False)


def test_checkpoint_paths_and_contents_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="is a folder, not a checkpoint file"):
        read_checkpoint(tmp_path)
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, "args": argparse.Namespace()}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"holds no state dict: there is no tensor in it, only .*argparse\.Namespace"):
        read_checkpoint(tmp_path / "empty.pth")


def test_original_deit3_names_are_adapted(tmp_path: Path) -> None:
    name = "deit3_small_patch16_224"
    state = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in timm_state(name, depth=1).items()}
    assert "blocks.0.gamma_1" in state
    torch.save({"model": state}, tmp_path / "deit3.pth")
    with pytest.raises(ValueError, match=r"keys missing: blocks\.1"):  # gamma_1 and gamma_2 fit
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


@pytest.mark.pretrained
@pytest.mark.skipif(not TEST_DATA, reason="TOKENLENS_TEST_DATA does not point to the real weights")
def test_real_weights_of_another_architecture_do_not_fit() -> None:
    path = Path(str(TEST_DATA)) / "weights" / "dinov2_vits14.safetensors"
    with pytest.raises(ValueError, match=r"24 keys unexpected: blocks\.0\.ls1\.gamma, .* and 16 more"):
        load_model("vit_small_patch16_224", checkpoint=path)
