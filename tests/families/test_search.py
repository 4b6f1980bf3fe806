"""A Vision Transformer inside a wrapper is found and analyzed, and several are listed."""

import pytest
import timm
import torch
from torch import nn

import tokenlens
from tests.support.tiny_models import MODELS, images, tiny_timm
from tokenlens.families import find_family, find_vit

IMAGES = images("timm_vit")
TRANSPARENT = ("data_parallel", "compiled", "compiled_data_parallel")


class Lightning(nn.Module):
    """A training module whose forward takes a batch."""

    def __init__(self, **parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, batch):
        return {name: part(batch["image"]) for name, part in self.parts.items()}


def features_only():
    sizes = {"img_size": 32, "patch_size": 8, "out_indices": (0, 1)}
    return tiny_timm("vit_tiny_patch16_224", features_only=True, **sizes)


def timm_wrapper():
    from transformers import TimmWrapperConfig, TimmWrapperModel

    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
    return TimmWrapperModel(TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=sizes))


class Tower(nn.Module):
    """The TimmModel of open_clip, with the preprocessing that open_clip stores there."""

    def __init__(self):
        super().__init__()
        self.trunk, self.preprocess_cfg = MODELS["timm_vit"](), {"mean": (0.4,) * 3, "std": (0.3,) * 3}


WRAPPERS = {
    "lightning": (lambda: Lightning(backbone=MODELS["timm_vit"](), head=nn.Linear(5, 2)), "parts.backbone"),
    "sequential": (lambda: nn.Sequential(MODELS["timm_vit"](), nn.Linear(5, 2)), "0"),
    "shared": (lambda: Lightning(**dict.fromkeys(("model", "ema"), MODELS["timm_vit"]())), "parts.model"),
    "features_only": (features_only, "model"),
    "timm_wrapper": (timm_wrapper, "timm_model"),
    "open_clip": (lambda: nn.ModuleDict({"visual": Tower(), "text": nn.Linear(2, 2)}), "visual.trunk"),
    "data_parallel": (lambda: nn.DataParallel(MODELS["timm_vit"]()), "module"),
    "compiled": (lambda: torch.compile(MODELS["dino_hub"]()), "_orig_mod"),
    "compiled_data_parallel": (lambda: nn.DataParallel(torch.compile(MODELS["timm_vit"]())), "module._orig_mod"),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_one_inside_is_found(name):
    make, path = WRAPPERS[name]
    wrapper = make()
    found = find_vit(wrapper)
    assert found.module is wrapper.get_submodule(path)
    assert found.note.startswith(f"The analyzed model is {path} ({type(found.module).__name__}, {found.family.name})")
    assert ("Images go directly to it" in found.note) == (name not in TRANSPARENT)


def test_a_model_itself_has_no_note():
    model = MODELS["timm_vit"]()
    found = find_vit(model)
    assert found.module is model
    assert found.note == ""


def test_numbers_are_those_of_the_model_inside_and_the_place_is_recorded():
    vit = MODELS["timm_vit"]()
    plain = tokenlens.analyze(vit, IMAGES, metrics=["token_norm"])
    with pytest.warns(
        UserWarning, match=r"The analyzed model is 1 \(VisionTransformer, timm_vit\), the one .* this Sequential"
    ):
        inside = tokenlens.analyze(nn.Sequential(nn.BatchNorm2d(3), vit), IMAGES, metrics=["token_norm"])
    assert inside.table.equals(plain.table)
    assert "does not happen" in inside.provenance["notes"][0]
    assert "notes" not in plain.provenance


def test_preprocessing_of_open_clip_around_a_model_of_timm():
    from tokenlens.models import load_model

    with pytest.warns(UserWarning, match=r"visual\.trunk"):
        config = load_model(nn.ModuleDict({"visual": Tower()})).data_config
    assert (config["mean"], config["std"]) == ((0.4,) * 3, (0.3,) * 3)


def test_several_are_listed():
    model = Lightning(student=MODELS["timm_vit"](), teacher=MODELS["timm_dinov2"]())
    with pytest.raises(LookupError, match=r"2 Vision Transformers: parts\.student \(.*parts\.teacher \(.*one of them"):
        tokenlens.analyze(model, IMAGES)


def test_a_compiled_block_inside_a_wrapper_is_refused():
    vit = MODELS["timm_vit"]()
    vit.blocks[1].compile()
    with pytest.raises(LookupError, match=r"blocks\.1 is compiled"):
        find_vit(nn.Sequential(vit))


def test_nothing_inside_is_explained():
    with pytest.raises(LookupError, match="its part 0 is a ResNet: it is a convolutional network"):
        find_vit(nn.Sequential(timm.create_model("resnet10t")))
    with pytest.raises(LookupError, match="has no attention"):
        find_family(nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`", "ignore:.*FSDP1? .*deprecated")
def test_distributed_wrappers(tmp_path):
    """weights that FSDP distributes over processes"""
    # DDP is searched; FSDP has only a part of the weights, and the error says what to do, which works.
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        vit = MODELS["timm_vit"]()
        assert find_vit(nn.parallel.DistributedDataParallel(vit)).module is vit
        sharded = FullyShardedDataParallel(MODELS["timm_vit"](), device_id=torch.device("cpu"))
        with pytest.raises(LookupError, match=r"sharded by FullyShardedDataParallel.*summon_full_params"):
            tokenlens.analyze(sharded, IMAGES)
        plain = tokenlens.analyze(vit, IMAGES, metrics=["token_norm"])
        with FullyShardedDataParallel.summon_full_params(sharded):
            whole = tokenlens.analyze(sharded.module, IMAGES, metrics=["token_norm"])
        assert whole.table.equals(plain.table)
    finally:
        torch.distributed.destroy_process_group()
