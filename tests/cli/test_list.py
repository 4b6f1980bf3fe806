"""``tokenlens list`` as a user runs it."""

from __future__ import annotations

import json
import re

import pytest
import timm

from tests.support.command_line import tokenlens
from tokenlens.models import shipped


def test_list_metrics_says_what_costs():
    result = tokenlens("list", "metrics")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    from tokenlens.metrics import metrics

    assert sorted(rows) == metrics.names()
    assert "opt-in: a singular value decomposition" in rows["effective_rank"]
    assert "opt-in" not in rows["cls_patch_cosine"]
    told = json.loads(tokenlens("list", "metrics", "rank", "--json").stdout)
    assert told["count"] == 1
    assert told["items"][0]["opt_in"] is True
    assert told["items"][0]["expensive_sites"] == ["resid_post"]


@pytest.mark.parametrize("kind", ["figures", "families", "objectives", "recipes", "probes"])
def test_list_describes_everything(kind):
    result = tokenlens("list", kind)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) >= 3
    for line in result.stdout.splitlines():
        assert len(line.split()) > 2, line


def test_list_models_is_never_cut_silently():
    few = tokenlens("list", "models", "--limit", 3, "--brief")
    assert len(few.stdout.splitlines()) == 3
    count = int(re.match(r"3 of (\d+) models; ", few.stderr)[1])
    told = json.loads(tokenlens("list", "models", "--limit", 0, "--brief", "--json").stdout)
    assert told["count"] == told["shown"] == len(told["items"]) == count
    names = [item["name"] for item in told["items"]]
    assert {
        "vit_base_patch16_224.dino",
        "deit_base_distilled_patch16_224.fb_in1k",
        "vit_small_patch14_dinov2.lvd142m",
        "eva02_base_patch14_224.mim_in22k",
        "beit_base_patch16_224.in22k_ft_in22k",
    } <= set(names)
    assert not [name for name in names if name.startswith(("resnet", "swin", "convnext"))]
    assert names[: len(shipped.list_names())] == list(shipped.list_names()), "what needs no download comes first"
    without = [item for item in told["items"][len(shipped.list_names()) :] if item["description"]]
    assert without
    assert all(item["description"] == "no published weights" and "." not in item["name"] for item in without)


def test_list_models_by_pattern():
    found = tokenlens("list", "models", "dinov2", "--brief").stdout.splitlines()
    assert len(found) > 6
    assert all("dinov2" in name for name in found)
    one = tokenlens("list", "models", "vit_small_patch14_dinov2*", "--brief").stdout
    assert one.split() == ["vit_small_patch14_dinov2.lvd142m"]


def test_list_models_says_what_they_are():
    shown = tokenlens("list", "models", "vit_small_patch14_*dinov2*").stdout.splitlines()
    assert [line.split(maxsplit=1)[0] for line in shown] == [
        "vit_small_patch14_dinov2.lvd142m",
        "vit_small_patch14_reg4_dinov2.lvd142m",
    ]
    assert re.search(r"518 px  patch 14 +22\.1 M  download(ed)?$", shown[0])
    assert re.search(r"518 px  patch 14  4 registers +22\.1 M  download(ed)?$", shown[1])
    assert "112 px  patch 14" in tokenlens("list", "models", "tokenlens_tiny").stdout
    assert "no download" in tokenlens("list", "models", "tokenlens_tiny").stdout
    (item,) = json.loads(tokenlens("list", "models", "deit_base_distilled_patch16_224*", "--json").stdout)["items"]
    assert (item["image_size"], item["patch"]) == ([224, 224], [16, 16])
    assert item["tokens"] == {"cls": 1, "dist": 1, "patch": 196}
    assert item["parameters"] == sum(
        p.numel() for p in timm.create_model("deit_base_distilled_patch16_224").parameters()
    )
    without = tokenlens("list", "models", "test_vit4", "--limit", 1).stdout
    assert without.rstrip().endswith(("download", "downloaded", "no published weights"))


def test_a_pattern_without_a_match_names_the_nearest():
    result = tokenlens("list", "metrics", "cls_patch_cosin3")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "Did you mean cls_patch_cosine" in result.stderr
