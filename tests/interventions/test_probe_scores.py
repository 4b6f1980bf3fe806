"""Scores of fitted probes under replacements."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional

from tests.support.coloured_images import class_folders, mask_folders
from tokenlens.images.labelled.masks import open_masks
from tokenlens.interventions import intervene
from tokenlens.probes import Heads, ProbeResult, probe
from tokenlens.storage.run_folder import write_manifest

SIZE = 32
MEANS = {"knn": "correct", "linear": "correct"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"img_size": SIZE, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 0}
    return timm.create_model("vit_tiny_patch16_224", **options).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return {"image": class_folders(root / "classes"), "patches": mask_folders(root / "masks", train=6, test=4)}


@pytest.fixture(scope="module")
def runs(model, data, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    kinds = {"knn": "image", "linear": "image", "segmentation": "patches"}
    for task, kind in kinds.items():
        options = {"source": "both", "limit": 9} if task == "linear" else {}
        blocks = [0, -1] if task == "knn" else None
        result = probe(model, task, data[kind], cache=False, batch_size=3, blocks=blocks, **options)
        result.save(root / task, report=False)
    return root


@pytest.mark.parametrize("task", ["knn", "linear", "segmentation"])
def test_the_untouched_pass_gives_the_probes_score_and_itself_changes_nothing(task, model, runs):
    result = ProbeResult.load(runs / task)
    found = intervene(model, probe=runs / task, by=["itself", "shuffle"], blocks=[0], batch_size=2)
    told = found.provenance["probe"]
    assert (told["value"], told["n"]) == (result.value, result.n)
    assert (told["ci_low"], told["ci_high"]) == pytest.approx((result.ci_low, result.ci_high), abs=1e-12)
    assert list(found.per_image.index) == list(result.per_image["image"]), "the images that the run was tested on"
    scores = found.select("probe_score").set_index(["by", "part"])
    assert scores.loc[("itself", "after"), "value"] == result.value
    assert (scores.loc[("itself", "change"), ["value", "ci_low", "ci_high"]] == 0).all()
    assert f"The {task} probe has {100 * result.value:.1f} %" in found.sentences[-1]
    change = scores.loc[("shuffle", "after"), "value"] - result.value
    assert scores.loc[("shuffle", "change"), "value"] == pytest.approx(change, abs=1e-12)
    assert scores.loc[("shuffle", "change"), "ci_low"] <= change <= scores.loc[("shuffle", "change"), "ci_high"]
    per_image = found.per_image.to_numpy()[:, found.table["metric"] == "probe_score"]
    if task in MEANS:
        assert np.allclose(per_image.mean(0), found.select("probe_score")["value"], atol=1e-6)
        assert (per_image[:, 0] == result.per_image[MEANS[task]]).all()
    else:
        assert np.isnan(per_image).all(), "a mean IoU is no mean over images"


def test_the_change_is_that_of_a_head_applied_by_hand(model, data, runs):
    """Zero CLS after block 0 with a plain hook, and apply the saved segmentation head to the final patches."""
    result = ProbeResult.load(runs / "segmentation")
    found = intervene(model, probe=result, by="zero", blocks=[0])
    heads, images = Heads.of(result.head, torch.device("cpu")), open_masks(data["patches"], split="test")
    transform = timm.data.create_transform(
        (3, SIZE, SIZE), crop_pct=1.0, crop_mode="squash", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )

    def zero(_module, _args, output):
        return torch.cat([torch.zeros_like(output[:, :1]), output[:, 1:]], dim=1)

    sums = np.zeros((3, 3))
    with model.blocks[0].register_forward_hook(zero), torch.no_grad():
        for number in range(len(images)):
            image, mask_HW = images.read(number)
            patch_PD = model.forward_features(transform(image)[None])[0, 1:].half().float()
            logits_1Chw = heads(patch_PD).T.reshape(1, 3, 4, 4)
            large = functional.interpolate(logits_1Chw, mask_HW.shape, mode="bilinear", align_corners=False)
            predicted = large[0].argmax(0).numpy()[mask_HW != 255]
            truth = mask_HW[mask_HW != 255]
            for c in range(3):
                both = ((truth == c) & (predicted == c)).sum()
                sums[c] += both, (truth == c).sum(), (predicted == c).sum()
    iou = sums[:, 0] / (sums[:, 1] + sums[:, 2] - sums[:, 0])
    [value] = found.select("probe_score", part="after")["value"]
    assert value == pytest.approx(iou[sums[:, 1] > 0].mean(), abs=1e-6)


def test_a_limit_takes_some_of_the_test_images(model, runs):
    names = intervene(model, probe=runs / "knn", by="zero", blocks=[0], limit=5).per_image.index
    assert len(names) == 5
    assert set(names) < set(ProbeResult.load(runs / "knn").per_image["image"])


def test_wrong_probes_are_refused(model, data, runs, tmp_path):
    """`intervene --probe` with a run without a fitted head, of another model, or whose test images are not there"""

    def refused(words, run=runs / "knn", of=model, **options):
        with pytest.raises(ValueError, match=words):
            intervene(of, probe=run, by="zero", blocks=[0], **options)

    refused("different weights", of=timm.create_model("test_vit", img_size=SIZE))
    refused("different amp", amp=True)
    refused("leave images out", images=torch.zeros(2, 3, SIZE, SIZE))
    other = class_folders(tmp_path / "other", test=3)
    refused("are not those of the probe run", data=other)
    pixels = probe("raw_pixels", "knn", data["image"], cache=False)
    refused("which is no model", run=pixels)
    result = ProbeResult.load(runs / "knn")
    result.head = {}
    refused(r"has no fitted head: its 0 MiB", run=result)
    del result.provenance["head_bytes"]
    result.save(tmp_path / "old", report=False)
    refused("an earlier tokenlens wrote it; probe again", run=tmp_path / "old")
    damaged = runs / "linear"
    settings = json.loads((damaged / "result.json").read_text(encoding="utf-8"))
    settings["provenance"]["data_path"] = ""
    (damaged / "result.json").write_text(json.dumps(settings), encoding="utf-8")
    write_manifest(damaged)
    refused("name the data set", run=damaged)
