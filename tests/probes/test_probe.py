"""What every probe keeps to: features from every kind of model, kept on disk, one number with its protocol."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import timm
import torch
from PIL import Image

import tokenlens
from tests.support.coloured_images import class_folders, mask_folders
from tests.support.tiny_models import KINDS, MODELS, images
from tokenlens.models.loading import load_model
from tokenlens.probes._cache import cache_folder
from tokenlens.probes._features import FrozenModel, RawPixels
from tokenlens.probes._probe import probe, probes
from tokenlens.probes._result import ProbeResult
from tokenlens.statistics.bootstrap import interval

MODEL = {"pretrained": False, "img_size": 64, "batch_size": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENLENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    return mask_folders(tmp_path_factory.mktemp("masks"))


def frozen(name: str, kind: str, blocks=None) -> FrozenModel:
    loaded = load_model(MODELS[name](), pretrained=False, img_size=KINDS[name].image_size)
    return FrozenModel(loaded, kind, blocks, amp=False)


# Features


@pytest.mark.parametrize("name", MODELS)
def test_features_are_what_is_recorded(name):
    x = images(name)
    model = frozen(name, "image")
    recording = tokenlens.record(MODELS[name](), x, img_size=KINDS[name].image_size, sites=["resid_post", "final_norm"])
    last = recording.blocks[-1]
    tokens_BTD = recording[(None, "final_norm") if KINDS[name].final_norm else (last, "resid_post")].float()
    layout = recording.layout
    found = model.features(x)
    patches_BPD = layout.patches_of(tokens_BTD)
    expected = {"patch_mean": patches_BPD.mean(1)}
    if layout.has("cls"):
        expected["cls"] = tokens_BTD[:, layout.positions("cls")[0]]
    assert set(found) == set(expected) == set(model.sources)
    for part, values_BF in expected.items():
        torch.testing.assert_close(found[part], values_BF)
    torch.testing.assert_close(frozen(name, "patches").features(x)["patches"], patches_BPD)
    assert ("as it is" in model.protocol["frozen features"]) is not KINDS[name].final_norm


@pytest.mark.parametrize("name", ["timm_vit", "timm_deit_distilled", "timm_dinov2_registers", "timm_dinov3"])
def test_chosen_blocks_are_those_of_timm(name):
    model, x = MODELS[name](), images(name)
    with torch.no_grad():
        layers = model.forward_intermediates(
            x, indices=[0, 1], norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
    found = frozen(name, "patches", [0, -1]).features(x)["patches"]
    torch.testing.assert_close(found, torch.cat([patches for patches, _ in layers], -1))
    found = frozen(name, "image", [0, 1]).features(x)["cls"]
    torch.testing.assert_close(found, torch.cat([prefix[:, 0] for _, prefix in layers], -1))
    with pytest.raises(LookupError, match=r"blocks 0 to 1; expected some, each once, got \[1, -1\]"):
        frozen(name, "image", [1, -1])


def test_specialized_models_are_probed_as_they_are(colours):
    result = probe("specialized:paper:test_vit", "knn", colours, **MODEL)
    standard = probe("test_vit", "knn", colours, **MODEL)
    assert result.value == standard.value  # equal at the start
    assert result.protocol["model"].startswith("specialized:paper:test_vit")


def test_raw_pixels():
    x_B3HW = torch.randn(2, 3, 64, 64)
    cells_BPF = RawPixels("patches", 64).features(x_B3HW)["patches"]
    assert cells_BPF.shape == (2, 256, 48)
    expected = x_B3HW[0, :, 4:8, 8:12]  # row 1, column 2
    torch.testing.assert_close(cells_BPF[0, 16 + 2].view(3, 4, 4), expected)
    small_BF = RawPixels("image", 64).features(x_B3HW)["pixels"]
    torch.testing.assert_close(small_BF.view(2, 3, 16, 16)[1, 2, 1, 2], x_B3HW[1, 2, 4:8, 8:12].mean())
    with pytest.raises(ValueError, match="multiple of 16, got 60"):
        RawPixels("image", 60)


# What is kept on disk


def forbidden(*_args):
    raise AssertionError("the model must not run")


def test_features_are_computed_once(colours, cache, monkeypatch):
    first = probe("test_vit", "knn", colours, **MODEL)
    assert len(list(cache.iterdir())) == 2
    assert first.provenance["seconds"]["features"] > 0
    monkeypatch.setattr(FrozenModel, "features", forbidden)
    again = probe("test_vit", "knn", colours, **MODEL)
    assert again.value == first.value
    pd.testing.assert_frame_equal(again.per_image, first.per_image)
    for source in ("patch_mean", "both"):
        assert probe("test_vit", "linear", colours, source=source, **MODEL).protocol["source"] != "CLS token"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"img_size": 32},
        {"limit": 9},
        {"blocks": [2]},
        {"amp": True},
        {"model": "specialized:norms:test_vit"},
    ],
)
def test_they_are_kept_under_all_that_they_depend_on(change, colours, cache):
    arguments = {"model": "test_vit", **MODEL}
    probe(task="knn", data=colours, **arguments)
    before = set(cache.iterdir())
    probe(task="knn", data=colours, **arguments | change)
    assert len(set(cache.iterdir()) - before) == 2


def test_a_module_is_known_by_what_it_computes(colours, cache):
    one = timm.create_model("test_vit", img_size=64)
    other = timm.create_model("test_vit", img_size=64)
    other.load_state_dict(one.state_dict())
    other.norm.eps = 0.5  # in no state dict
    probe(one, "knn", colours, batch_size=8)
    probe(other, "knn", colours, batch_size=8)
    assert len(list(cache.iterdir())) == 4


def test_a_changed_picture_under_the_same_name_is_seen(tmp_path, cache):
    data = class_folders(tmp_path / "data", train=3, test=2)
    probe("raw_pixels", "knn", data)
    kept = {path: (path / "pixels.npy").read_bytes() for path in cache.iterdir()}
    Image.new("RGB", (32, 32), "white").save(data / "train" / "blue" / "0.png")
    probe("raw_pixels", "knn", data)
    assert [path for path, content in kept.items() if (path / "pixels.npy").read_bytes() != content]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "MANIFEST.json").unlink(),
        lambda folder: (folder / "index.json").write_text("{}", encoding="utf-8"),
        lambda folder: (folder / "pixels.npy").write_bytes((folder / "pixels.npy").read_bytes()[:200]),
    ],
)
def test_what_is_damaged_is_computed_again(damage, colours, cache):
    first = probe("raw_pixels", "knn", colours)
    for folder in cache.iterdir():
        damage(folder)
    assert probe("raw_pixels", "knn", colours).value == first.value


def test_nothing_half_written_is_left(colours, cache, monkeypatch):
    run = FrozenModel.features
    calls = []

    def stops(self, pixels_B3HW):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, pixels_B3HW)

    monkeypatch.setattr(FrozenModel, "features", stops)
    with pytest.raises(KeyboardInterrupt):
        probe("test_vit", "knn", colours, **MODEL)
    assert list(cache.iterdir()) == []
    assert probe("test_vit", "knn", colours, **MODEL).n == 12


def test_without_the_cache_nothing_is_written(colours, cache):
    with_cache = probe("test_vit", "linear", colours, **MODEL)
    shutil.rmtree(cache)
    without = probe("test_vit", "linear", colours, cache=False, **MODEL)
    assert not cache.exists()
    assert without.value == with_cache.value


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("TOKENLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tokenlens" / "features"


# The number and what is said of it


@pytest.mark.parametrize("task", ["knn", "linear"])
def test_batches_do_not_matter(task, colours):
    whole = probe("test_vit", task, colours, cache=False, **MODEL | {"batch_size": 64})
    parts = probe("test_vit", task, colours, cache=False, **MODEL | {"batch_size": 5})
    assert parts.value == whole.value


def test_unreadable_images_are_counted_and_named(tmp_path):
    data = class_folders(tmp_path / "data")
    (data / "train" / "red" / "3.png").write_bytes(b"no image")
    (data / "val" / "blue" / "1.png").write_bytes(b"")
    for _ in range(2):  # computed and kept
        result = probe("raw_pixels", "knn", data)
        assert result.n == 11
        assert [(one["split"], one["name"]) for one in result.provenance["skipped"]] == [
            ("train", "red/3.png"),
            ("test", "blue/1.png"),
        ]
        assert result.protocol["training images"].endswith("29 images, 1 unreadable left out")
        assert "blue/1.png" not in set(result.per_image["image"])


def test_nothing_readable_is_an_error(tmp_path):
    data = class_folders(tmp_path / "data", train=1, test=1)
    for path in data.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 3 images could be read \(blue/0.png: empty file"):
        probe("raw_pixels", "knn", data)


def test_features_that_are_not_finite_are_an_error(colours):
    model = timm.create_model("test_vit", img_size=64)
    model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinity in the features of .*, first for image 'blue/0"):
        probe(model, "knn", colours, batch_size=8)


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


def test_the_random_state_is_left_alone(colours, masks):
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


@pytest.mark.parametrize("task", ["knn", "segmentation"])
def test_a_result_is_saved_whole(task, colours, masks, tmp_path):
    result = probe("raw_pixels", task, colours if task == "knn" else masks, img_size=32)
    result.save(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "result.json",
        "per_image.csv",
        "table.csv",
        "MANIFEST.json",
    }
    found = ProbeResult.load(tmp_path / "run")
    pd.testing.assert_frame_equal(found.per_image, result.per_image)
    pd.testing.assert_frame_equal(found.table, result.table)
    same = ("value", "ci_low", "ci_high", "n", "unit", "protocol", "model", "task", "untrained")
    assert all(getattr(found, name) == getattr(result, name) for name in same)
    assert repr(found) == repr(result)
    with pytest.raises(FileExistsError, match="--overwrite"):
        result.save(tmp_path / "run")
    result.save(tmp_path / "run", overwrite=True)
    (tmp_path / "run" / "table.csv").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"table.csv was changed"):
        ProbeResult.load(tmp_path / "run")


def test_a_run_of_another_kind_or_version_is_refused(colours, tmp_path):
    from tests.support.synthetic_analysis import synthetic_analysis

    synthetic_analysis().save(tmp_path / "analysis")
    with pytest.raises(ValueError, match="kind 'analysis', expected 'probe'"):
        ProbeResult.load(tmp_path / "analysis")
    run = probe("raw_pixels", "knn", colours).save(tmp_path / "run")
    with pytest.raises(ValueError, match="kind 'probe', expected 'analysis'"):
        tokenlens.Analysis.load(run)
    manifest = json.loads((run / "MANIFEST.json").read_text(encoding="utf-8"))
    (run / "MANIFEST.json").write_text(json.dumps(manifest | {"schema_version": 99}), encoding="utf-8")
    with pytest.raises(ValueError, match="by a newer tokenlens"):
        ProbeResult.load(run)


# Intervals


def test_the_interval_is_scipys():
    values = np.random.RandomState(0).normal(size=(60, 1)) + 1
    low, high = interval(values, lambda sums: sums / 60)
    expected = scipy.stats.bootstrap((values[:, 0],), np.mean, method="percentile", n_resamples=20000)
    assert abs(low[0] - expected.confidence_interval.low) < 0.02
    assert abs(high[0] - expected.confidence_interval.high) < 0.02
    again, _ = interval(values, lambda sums: sums / 60)
    assert again == low


def test_one_image_has_no_interval():
    low, high = interval(np.ones((1, 2)), lambda sums: sums)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"task": "knm"}, LookupError, r"no probe is called 'knm'. Did you mean knn"),
        ({"source": "patches"}, ValueError, "source is cls, patch_mean, both, got 'patches'"),
        ({"model": "vit_base_patch16_siglip_224", "source": "both"}, LookupError, "has no CLS token, so source='both'"),
        ({"model": "raw_pixels", "source": "cls", "blocks": [1]}, ValueError, "so it has no source or blocks"),
        ({"data": "nowhere"}, ValueError, "there is no nowhere"),
        ({"blocks": []}, LookupError, r"blocks 0 to \d+; expected some"),
        ({"limit": 1}, ValueError, "expected limit ≥ 2"),
        ({"task": "segmentation", "source": "cls"}, ValueError, "always takes the patch tokens"),
    ],
)
def test_errors_say_what_is_wrong(arguments, error, text, colours):
    small = {"model": "test_vit", "task": "knn", "data": colours, "pretrained": False}
    if arguments.get("model", "").startswith("vit_base"):
        small["model"] = arguments.pop("model")
        small["img_size"] = 32
    with pytest.raises(error, match=text):
        probe(**small | arguments)


def test_images_without_labels_are_refused(photographs):
    with pytest.raises(ValueError, match="labels"):
        probe("raw_pixels", "knn", photographs)


def test_every_probe_says_what_it_is():
    assert {"knn", "linear", "segmentation"} <= set(probes.names())
    for name in probes.names():
        assert probes.describe(name)
        assert probes.get(name).unit
