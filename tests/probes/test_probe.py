"""Laws of every probe: a score with its protocol, and an untouched model and random state."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import timm
import torch

from tests.support.coloured_images import class_folders
from tokenlens.probes import probe, probes

MODEL = {"pretrained": False, "img_size": 64, "batch_size": 8}
NO_CLS = timm.create_model("vit_tiny_patch16_224", depth=1, class_token=False, global_pool="avg")


def test_specialized_models_are_probed_as_they_are(colours):
    result = probe("specialized:paper:test_vit", "knn", colours, **MODEL)
    standard = probe("test_vit", "knn", colours, **MODEL)
    assert result.value == standard.value  # equal at the start
    assert result.protocol["model"].startswith("specialized:paper:test_vit")


def test_the_protocol_says_what_decides_the_number(colours):
    result = probe("test_vit", "knn", colours, limit=20, **MODEL)
    told = result.protocol
    assert told["model"] == "test_vit (untrained: random weights)"
    assert result.untrained
    assert "untrained: random weights" in repr(result)
    assert told["frozen features"] == "output of the final norm"
    assert told["source"] == "CLS token"
    assert told["images"].startswith("64×64 pixels, centre crop of ")
    assert "20 images (a random 20 of 30, seed 0)" in told["training images"]
    assert told["test images"].endswith("val: 12 images")
    assert told["classes"] == 3
    assert told["seed"] == 0
    html = result._repr_html_()
    assert "untrained" in html
    assert "CLS token" in html


def test_the_random_state_is_left_alone(colours):
    torch.manual_seed(3)
    np.random.seed(3)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    for task in ("knn", "linear"):
        probe("test_vit", task, colours, **MODEL)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_the_model_is_left_as_it_was(colours):
    model = timm.create_model("test_vit", img_size=64, num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe(model, "linear", colours, batch_size=8)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"task": "knm"}, LookupError, r"no probe is called 'knm'. Did you mean knn"),
        ({"source": "patches"}, ValueError, "expected source to be one of cls, patch_mean, both, got 'patches'"),
        ({"model": NO_CLS, "source": "both"}, LookupError, "has no CLS token for source='both'"),
        ({"model": "raw_pixels", "source": "cls", "blocks": [1]}, ValueError, "so it has no source or blocks"),
        ({"data": "nowhere"}, ValueError, "there is no nowhere"),
        ({"blocks": []}, LookupError, r"expected different blocks of 0 to \d+"),
        ({"limit": 1}, ValueError, "expected limit ≥ 2"),
        ({"task": "segmentation", "source": "cls"}, ValueError, "always uses the patch tokens"),
    ],
)
def test_errors_say_what_is_wrong(arguments, error, text, colours):
    small = {"model": "test_vit", "task": "knn", "data": colours, "pretrained": False}
    with pytest.raises(error, match=text):
        probe(**small | arguments)


def test_every_probe_says_what_it_is():
    assert {"knn", "linear", "segmentation"} <= set(probes.names())
    for name in probes.names():
        assert probes.describe(name)
        assert probes.get(name).unit


def test_of_copies_one_is_tested(tmp_path):
    data = class_folders(tmp_path / "colours")
    before = probe("test_vit", "knn", data, cache=False, **MODEL)
    assert "copies" not in before.protocol
    first, second, *_ = sorted((data / "val").rglob("*.png"))
    shutil.copy(first, first.with_name("z_copy.png"))
    shutil.copy(first, first.with_name("z_again.png"))
    shutil.copy(second, next((data / "train").iterdir()) / "z_known.png")
    for cache in (True, True, False):  # computed, read from the cache, without one
        after = probe("test_vit", "knn", data, cache=cache, **MODEL)
        assert after.n == before.n
        assert after.protocol["copies"] == (
            "2 test images left out as copies of others; 1 test image also among the training images"
        )
        assert len(after.per_image) == before.n
