"""A model is found inside a checkpoint: under prefixes, in wrappers, among candidates, and beside other modules."""

import re

import pytest
import timm
import torch

from tests.support.timm_weights import NAME, timm_state
from tokenlens.models import Checkpoint, fit_weights, load_model
from tokenlens.models.weight_files import read_file

State = dict[str, torch.Tensor]


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def shifted(state: State) -> State:
    """Return other weights for the same model."""
    return {key: value + 1 for key, value in state.items()}


@pytest.fixture(scope="module")
def state() -> State:
    return timm_state(num_classes=0)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return timm.create_model(NAME, num_classes=0)


def fit_file(tmp_path, content, model, **options):
    torch.save(content, tmp_path / "file.pt")
    found = read_file(tmp_path / "file.pt")
    return fit_weights(Checkpoint(found.tensors, "file.pt", "", wrappers=frozenset(found.wrappers)), model, **options)


def is_state(fitted, state) -> bool:
    return fitted.tensors.keys() == state.keys() and all(torch.equal(fitted.tensors[key], state[key]) for key in state)


PREFIXES = (
    *("pretrained.", "encoder.", "vit.", "trunk.", "teacher_backbone.", "base_model.model.", "module.", "_orig_mod."),
    *("backbone.", "model.net.0.", "image_encoder.visual.", "module.module.student.", "a.very.unusual.place."),
)
WRAPPERS = ("state_dict", "model", "ema", "weights", "model_state", "teacher", "checkpoint.network")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix(tmp_path, state, model, prefix):
    fitted = fit_file(tmp_path, prefixed(state, prefix), model)
    assert fitted.problem is None
    assert is_state(fitted, state)
    assert fitted.prefix == prefix[:-1]
    assert fitted.steps == (f"without the prefix {prefix!r}",)
    assert fitted.matched == len(state)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_any_wrapper_with_a_prefix_inside(tmp_path, state, model, wrapper):
    content = prefixed(state, "module.")
    for key in reversed(wrapper.split(".")):
        content = {key: content, "epoch": 3}
    fitted = fit_file(tmp_path, content, model)
    assert is_state(fitted, state)
    assert fitted.steps == (f"under {wrapper!r}", "without the prefix 'module.'")


@pytest.mark.parametrize(
    ("averaged", "other"),
    [
        ("state_dict_ema", "state_dict"),
        ("model_ema", "model"),
        ("ema", "model"),
        ("teacher", "student"),
        ("target_encoder", "encoder"),
        ("averaged_model.module", "model.module"),
    ],
)
@pytest.mark.parametrize("averaged_first", [True, False])
def test_averaged_weights_are_taken_and_the_others_named(tmp_path, state, model, averaged, other, averaged_first):
    parts = [prefixed(state, f"{averaged}."), prefixed(shifted(state), f"{other}.")]
    first, second = parts if averaged_first else parts[::-1]
    fitted = fit_file(tmp_path, first | second, model)
    assert is_state(fitted, state)
    assert fitted.prefix == averaged
    assert fitted.others == (other,)
    assert f"averaged weights preferred, not the weights under {other!r}" in fitted.steps


def test_incomplete_averaged_weights_are_not_preferred(tmp_path, state, model):
    part = dict(list(shifted(state).items())[:20])
    fitted = fit_file(tmp_path, {"ema": part, "model": state}, model)
    assert is_state(fitted, state)
    assert fitted.prefix == "model"


def test_what_an_optimizer_keeps_by_name_is_no_model(tmp_path, state, model):
    content = {"optimizer": {"exp_avg": shifted(state)}, "exp_avg": shifted(state), "net": state}
    fitted = fit_file(tmp_path, content, model)
    assert (fitted.prefix, fitted.others) == ("net", ())
    assert is_state(fitted, state)


def chunked(state: State, size: int = 2) -> State:
    """Return DINOv2's training names, with its blocks in chunks."""
    return {
        re.sub(r"^blocks\.(\d+)\.", lambda match: f"blocks.{int(match[1]) // size}.{match[1]}.", key): value
        for key, value in state.items()
    }


@pytest.mark.parametrize("size", [2, 100])
def test_dinov2s_training_output(tmp_path, state, model, size):
    teacher, student = (chunked(each, size) | {"mask_token": torch.zeros(1, 64)} for each in (state, shifted(state)))
    content = {
        "model": {
            **prefixed(student, "student.backbone."),
            "student.dino_head.mlp.0.weight": torch.zeros(2, 2),
            **prefixed(teacher, "teacher.backbone."),
            "teacher.dino_head.mlp.0.weight": torch.zeros(2, 2),
            "dino_loss.center": torch.zeros(1, 2),
        },
        "optimizer": {"state": {number: {"exp_avg": torch.zeros(2)} for number in range(9)}},
        "iteration": 7,
    }
    fitted = fit_file(tmp_path, content, model)
    assert is_state(fitted, state)
    assert fitted.prefix == "model.teacher.backbone"
    assert fitted.steps[:3] == (
        "under 'model'",
        "without the prefix 'teacher.backbone.'",
        "averaged weights preferred, not the weights under 'model.student.backbone'",
    )
    assert f"{-(-6 // size)} chunks of blocks joined" in fitted.steps


def test_a_lightning_file(tmp_path, state, model):
    """Its state dict has the members of the module: the model, losses, a projection; the optimizer is beside it."""
    content = {
        "pytorch-lightning_version": "2.4",
        "state_dict": {
            **prefixed(state, "model."),
            "criterion.weight": torch.zeros(5),
            "projector.0.weight": torch.zeros(4, 64),
            "train_accuracy.correct": torch.tensor(3),
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(1, 1, 64)}}, "param_groups": [{"lr": 1e-3}]}],
        "hyper_parameters": {"lr": 1e-3},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
    }
    fitted = fit_file(tmp_path, content, model)
    assert is_state(fitted, state)
    assert fitted.steps == (
        "under 'state_dict'",
        "without the prefix 'model.'",
        "5 keys elsewhere in the file not used",
    )


def test_what_stands_beside_the_model_under_the_same_prefix_is_left_out_and_named(tmp_path, state, model):
    """As in MAE's and iBOT's files."""
    extra = {
        "mask_token": torch.zeros(1, 1, 64),
        "decoder_pos_embed": torch.zeros(1, 9, 8),
        "decoder_norm.bias": torch.ones(8),
    }
    extra |= {"criterion.weight": torch.zeros(2)}
    fitted = fit_file(tmp_path, {"model": state | extra}, model)
    assert is_state(fitted, state)
    said = " ".join(fitted.steps)
    assert "criterion" in said
    assert "decoder_norm" in said


@pytest.mark.parametrize(
    "extra",
    [
        "reg_token",
        "dist_token",
        "storage_tokens",
        "blocks.0.ls1.gamma",
        "blocks.6.norm1.weight",
        "norm_pre.weight",
        "cls_norm.weight",
        "blocks_token_only.0.norm1.weight",
        "patch_embed.norm.weight",
        "adapter.0.weight",
        "extra",
    ],
)
def test_what_would_change_the_model_is_never_left_out(tmp_path, state, model, extra):
    fitted = fit_file(tmp_path, {"model": state | {extra: torch.zeros(64)}}, model)
    assert fitted.problem == f"1 key unexpected: {extra}"


def test_a_part_of_the_weights_is_refused(tmp_path, state, model):
    """Under whatever prefix."""
    part = {key: value for key, value in state.items() if not key.startswith("blocks.3.")}
    fitted = fit_file(tmp_path, {"state_dict": prefixed(part, "backbone.")}, model)
    assert fitted.prefix == "state_dict.backbone"
    assert fitted.problem.startswith("12 keys missing: blocks.3.attn.proj.bias, ")
    torch.save({"state_dict": prefixed(part, "backbone.")}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"does not fit test_vit: 12 keys missing"):
        load_model(NAME, checkpoint=tmp_path / "part.pt")


def test_parts_are_not_put_together_from_two_places(tmp_path, state, model):
    half = list(state)[: len(state) // 2]
    content = {"a": {key: state[key] for key in half}, "b": {key: state[key] for key in state if key not in half}}
    assert fit_file(tmp_path, content, model).missing


def test_a_head_of_another_kind_is_left_out_and_named(tmp_path, state):
    torch.save(state | {"head.mlp.0.weight": torch.zeros(8, 64)}, tmp_path / "dino.pt")
    loaded = load_model(NAME, checkpoint=tmp_path / "dino.pt")
    assert loaded.module.num_classes == 0
    assert loaded.weights["steps"] == ["head left out: head.mlp.0.weight"]


def test_a_position_of_cls_that_moves_into_the_token_is_no_resize(tmp_path):
    """DINOv2 with registers: timm adds the position of CLS to the CLS token."""
    options = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
    given = timm_state("vit_small_patch14_reg4_dinov2", **options)
    original = dict(given) | {
        "register_tokens": given["reg_token"],
        "mask_token": torch.zeros(1, 32),
        "pos_embed": torch.cat([torch.ones(1, 1, 32), given["pos_embed"]], 1),
    }
    del original["reg_token"]
    model = timm.create_model("vit_small_patch14_reg4_dinov2", **options)
    fitted = fit_file(tmp_path, {"teacher": prefixed(original, "backbone.")}, model)
    assert (fitted.problem, fitted.resized) == (None, ())
    assert torch.equal(fitted.tensors["cls_token"], given["cls_token"] + 1)


def test_every_step_is_said(tmp_path):
    """Wrapper, prefix, names, precision and size at once."""
    given = timm_state("vit_base_patch16_clip_224", img_size=32, depth=1, embed_dim=32, num_heads=2, num_classes=0)
    clip = {}
    for key, value in given.items():
        for ours, theirs in (
            ("patch_embed.proj", "conv1"),
            ("pos_embed", "positional_embedding"),
            ("blocks.", "transformer.resblocks."),
            ("norm_pre", "ln_pre"),
            ("norm1", "ln_1"),
            ("norm2", "ln_2"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("attn.proj", "attn.out_proj"),
            ("attn.qkv.", "attn.in_proj_"),
            ("cls_token", "class_embedding"),
        ):
            key = key.replace(ours, theirs)
        key = re.sub(r"^norm\.", "ln_post.", key)
        clip[f"visual.{key}"] = (
            value[0] if key == "positional_embedding" else value.flatten() if "class" in key else value
        ).half()
    model = timm.create_model(
        "vit_base_patch16_clip_224", img_size=64, depth=1, embed_dim=32, num_heads=2, num_classes=0
    )
    fitted = fit_file(tmp_path, {"model": prefixed(clip, "module.")}, model)
    assert fitted.problem is None
    said = "; ".join(fitted.steps)
    for step in (
        "under 'model'",
        "float16 to float32",
        "19 keys renamed, merged or removed as timm does: module.visual.class_embedding",
        "pos_embed resampled from 5×32 to 1×17×32",
    ):
        assert step in said
    assert torch.equal(fitted.tensors["blocks.0.attn.qkv.weight"], given["blocks.0.attn.qkv.weight"].half().float())
