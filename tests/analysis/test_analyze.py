"""The loop over images and what it returns: which images and metrics, what stops it, and what is written down."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tokenlens
from tests.metrics import _cases
from tests.metrics._cases import images, photographs
from tests.support.command_line import REPOSITORY
from tokenlens.analysis.analysis import KEY_COLUMNS, Analysis
from tokenlens.analysis.finite import NonFiniteActivation
from tokenlens.metrics import metrics as catalog
from tokenlens.statistics.jackknife import JACKKNIFE_GROUPS

APPLICABLE = [
    name for name in catalog.names() if name not in ("weight_distance", "latent_attention", "latent_patch_cosine")
]
REDUCED_WITH_THE_NORM = (
    *("cls_patch_cosine", "patch_patch_cosine", "reg_patch_cosine", "patch_diversity"),
    *("token_norm", "update_ratio", "energy_profile", "norm_differentiation"),
)
ATTENTION = ["attention_entropy", "attention_mass", "cls_attention_map"]
NO_INTERVAL = ["max_over_median", "outlier_share", "peak", "effective_patches", "effective_channels", "top1_share"]
SET_LEVEL = [
    "energy_profile",
    "cls_cls_cosine",
    "patch_mean_cosine",
    "centroid_separation",
    "dimension_selectivity",
    "cka",
]


def fresh(name: str = "registers") -> Any:
    return copy.deepcopy(_cases.model(name))


def analyzed(given: Any = None, metrics: Any = "all", **options: Any) -> Analysis:
    given = images("registers") if given is None else given
    return tokenlens.analyze(_cases.model("registers"), given, metrics=metrics, **options)


everything = cache(analyzed)


def numbers(analysis: Analysis) -> pd.DataFrame:
    rows = analysis.table.set_index(list(KEY_COLUMNS)).sort_index()
    return rows[["value", "sd", "n", "ci_low", "ci_high"]].astype(float)


def spoil(module: nn.Module, change: Callable[[Tensor], None]) -> None:
    """Change what a module gives, in a copy."""

    def changed(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        output = output.clone()
        change(output)
        return output

    module.register_forward_hook(changed)


# -- metrics


@pytest.mark.parametrize("metric", APPLICABLE)
def test_each_metric_alone_gives_what_it_gives_among_all(metric):
    """No metric lives on sums that only another one asked for."""
    alone = analyzed(metrics=[metric])
    assert alone.metrics == [metric]
    together = everything().table[everything().table["metric"] == metric].reset_index(drop=True)
    # A residual is reduced in its norm's product or by itself, which rounds differently in float32.
    relative, absolute = (5e-6, 2e-6) if metric in REDUCED_WITH_THE_NORM else (1e-7, 1e-7)
    pd.testing.assert_frame_equal(alone.table, together, rtol=relative, atol=absolute)
    assert {key for key in everything().arrays if key.startswith(metric + "/")} == set(alone.arrays)


def test_the_default_metrics_are_those_that_cost_little():
    default = analyzed(metrics=None)
    opt_in = {name for name in catalog.names() if catalog.get(name).is_opt_in()}
    assert set(default.metrics) | set(default.not_applicable) == set(catalog.names()) - opt_in
    assert set(everything().metrics) | set(everything().not_applicable) == set(catalog.names())


def test_which_metrics_can_be_named():
    for metrics in ("token_norm", ["token_norm", "token_norm"]):
        assert analyzed(metrics=metrics).metrics == ["token_norm"]
    with pytest.raises(LookupError, match="cls_patch_cosine"):
        analyzed(metrics=["cls_patch_cosin"])
    with pytest.raises(ValueError, match="empty"):
        analyzed(metrics=[])


def test_select():
    rows = everything().select("cls_patch_cosine", site=["norm1", "final_norm"], block=1)
    assert list(rows["site"]) == ["norm1"]
    per_head = everything().select("cls_patch_cosine", site="q", block=0)
    assert list(per_head["head"]) == [0, 1, 2]
    with pytest.raises(LookupError, match="specialized"):
        everything().select("weight_distance")
    with pytest.raises(LookupError, match="no 'nonsense'; it has attention_entropy"):
        everything().select("nonsense")


# -- images


def test_how_images_are_dealt_out_does_not_matter():
    pixels = images("registers")
    loader = DataLoader(TensorDataset(pixels), batch_size=5)
    for given, size in ((pixels, 3), (TensorDataset(pixels), 8), (loader, 1)):
        analysis = analyzed(given, batch_size=size)
        np.testing.assert_allclose(numbers(analysis), numbers(everything()), rtol=1e-5, atol=1e-5)
        assert analysis.provenance["images"]["hashes"] == everything().provenance["images"]["hashes"]


def test_a_limit_takes_some_of_them():
    analysis = analyzed(metrics=None, limit=3)
    assert analysis.images == len(analysis.per_image) == 3
    assert set(analysis.per_image.index) < set(everything().per_image.index)
    kept = everything().per_image.loc[analysis.per_image.index, "token_norm"]
    np.testing.assert_allclose(analysis.per_image["token_norm"], kept, rtol=1e-5)


def test_one_image_has_values_but_no_spread_and_two_have_one():
    table = analyzed(images("registers")[:1]).table
    assert table[["sd", "ci_low", "ci_high"]].isna().all(axis=None)
    between = table["metric"].isin(
        ["cls_cls_cosine", "patch_mean_cosine", "cka", "centroid_separation", "energy_profile", "position_leak"]
    )
    assert table[~between]["value"].notna().all()
    assert table[between]["value"].isna().all()
    assert (table[~between]["n"] == 1).all()
    assert table[between]["value"].isna().all()
    table = analyzed(images("registers")[:2], metrics=None).table
    of_set = table["metric"].isin(SET_LEVEL)
    assert table[~of_set]["sd"].notna().all()
    without = table["part"].isin(NO_INTERVAL)
    assert table[~of_set & ~without][["ci_low", "ci_high"]].notna().all(axis=None)
    assert table[without][["ci_low", "ci_high"]].isna().all(axis=None)
    assert table[of_set][["ci_low", "ci_high"]].isna().all(axis=None)


def test_images_of_two_sizes_are_refused():
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, num_classes=0, dynamic_img_size=True
    ).eval()
    sizes = [images("layer")[:2], photographs(2, 32, 48)]
    loader = DataLoader([0, 1], batch_size=None, collate_fn=lambda index: sizes[index])
    with pytest.raises(ValueError, match=r"\(32, 32\).*\(32, 48\)"):
        tokenlens.analyze(model, loader)


def test_an_unreadable_image_is_left_out_everywhere(tmp_path):
    """Names, hashes and per-image values stay side by side."""
    generator = np.random.default_rng(0)
    for index in range(5):
        pixels = generator.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"no image")
    analysis = analyzed(tmp_path, batch_size=2)
    assert list(analysis.per_image.index) == ["0.png", "1.png", "3.png", "4.png"]
    assert analysis.images == 4
    assert [item["name"] for item in analysis.provenance["images"]["skipped"]] == ["2.png"]
    alone = analyzed(tmp_path / "3.png")
    np.testing.assert_allclose(alone.per_image.iloc[0], analysis.per_image.loc["3.png"], rtol=1e-4, atol=1e-6)


def test_progress_counts_to_the_end():
    seen = []
    tokenlens.analyze(fresh(), images("registers"), batch_size=3, progress=lambda *counts: seen.append(counts))
    assert seen == [(0, 8), (3, 8), (6, 8), (8, 8)]


@pytest.mark.parametrize("keep", [0, 1, 3, 8, 100])
def test_moments_go_on_beyond_the_kept_images(keep):
    analysis = analyzed(keep_images=keep, batch_size=2)
    kept = min(keep, 8)
    assert len(analysis.per_image) == kept
    assert analysis.provenance["images"]["kept_per_image"] == kept
    assert analysis.provenance["images"]["count"] == analysis.images == 8
    assert list(analysis.per_image.index) == list(everything().per_image.index)[:kept]
    np.testing.assert_allclose(analysis.per_image, everything().per_image.iloc[:kept], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(numbers(analysis), numbers(everything()), rtol=1e-5, atol=1e-5)


def test_beyond_20_images_the_jackknife_leaves_out_groups():
    """23 images: the metrics' intervals, from analyses of the images that are left."""
    pixels, chosen = photographs(23, 32, 32), ["cls_cls_cosine", "centroid_separation", "cka"]

    def values(keep: np.ndarray) -> np.ndarray:
        return numbers(analyzed(pixels[keep], metrics=chosen, batch_size=32))["value"].to_numpy()

    everyone = np.arange(23)
    groups, whole = everyone % JACKKNIFE_GROUPS, values(everyone)
    left_out = np.stack([values(everyone[groups != group]) for group in range(JACKKNIFE_GROUPS)])
    h = 23 / np.bincount(groups)[:, None]
    centre = (whole - (1 - 1 / h) * left_out).sum(0)
    variance = ((h * whole - (h - 1) * left_out - centre) ** 2 / (h - 1)).mean(0)
    half = stats.t.ppf(0.975, JACKKNIFE_GROUPS - 1) * np.sqrt(variance)
    table = numbers(analyzed(pixels, metrics=chosen, batch_size=32))
    bounded = table.index.get_level_values("metric") == "cls_cls_cosine"
    half += np.where(bounded, 0.08 * 2 / 23, 0)  # the allowance for bounded numbers
    high = np.where(bounded, np.minimum(whole + half, 1), whole + half)
    np.testing.assert_allclose(table["ci_high"] - table["value"], high - whole, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(table["value"] - table["ci_low"], half, rtol=1e-3, atol=1e-6)


# -- what stops it


@pytest.mark.parametrize("metrics", [None, *[[name] for name in APPLICABLE]])
def test_weights_that_are_not_numbers_are_never_measured(metrics):
    model = fresh()
    with torch.no_grad():
        model.blocks[1].norm1.weight[5] = torch.nan
    with pytest.raises(NonFiniteActivation, match="block 1") as caught:
        tokenlens.analyze(model, images("registers"), metrics=metrics)
    assert "'image 0'" in str(caught.value)


@pytest.mark.parametrize(
    ("place", "site"),
    [
        ("blocks.1.norm1", "block 1, norm1"),
        ("blocks.1.attn.q_norm", "block 1, q"),
        ("blocks.1.ls1", "block 1, attn_out"),
        ("blocks.0.norm2", "block 0, norm2"),
        ("blocks.1.mlp", "block 1, mlp_out"),
        ("norm", "at final_norm"),
        ("norm_pre", "block 0, resid_pre"),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_place_and_the_image_are_named(place, site, value):
    model = fresh()
    spoil(model.get_submodule(place), lambda output: output[-1].fill_(value))
    with pytest.raises(NonFiniteActivation) as caught:
        tokenlens.analyze(model, images("registers"), batch_size=8, metrics="all")
    assert site in str(caught.value)
    assert "'image 7'" in str(caught.value)


def test_the_image_is_named_in_a_later_batch_too():
    model, batches = fresh(), []

    def third(output: Tensor) -> None:
        if len(output) == 1:
            return  # the rehearsal with one image
        batches.append(1)
        if len(batches) == 3:
            output[1] = torch.nan

    spoil(model.blocks[1].mlp, third)
    with pytest.raises(NonFiniteActivation, match=r"block 1, mlp_out, first for image 'image 5'"):
        tokenlens.analyze(model, images("registers"), batch_size=2)


# -- what cannot be said


def test_a_cosine_with_nothing_is_undefined_and_not_counted():
    """LayerScale at 0: attention and MLP add nothing."""
    model = fresh()
    for block in model.blocks:
        nn.init.zeros_(block.ls1.gamma)
    table = tokenlens.analyze(model, images("registers"), metrics="all").table
    per_image = table[~table["metric"].isin(SET_LEVEL)]
    nothing = (per_image["site"] == "attn_out") & ~per_image["part"].isin(["ratio", "norm", "bias_norm"])
    assert nothing.sum() > 8
    assert per_image.loc[nothing, ["value", "sd", "ci_low", "ci_high"]].isna().all(axis=None)
    assert (per_image.loc[nothing, "n"] == 0).all()
    assert per_image.loc[~nothing, "value"].notna().all()
    assert (per_image.loc[~nothing, "n"] == 8).all()
    of_set = table[table["metric"].isin(SET_LEVEL)]
    assert of_set.loc[of_set["site"] == "attn_out", "value"].isna().all()
    # Without attention CLS is the same for all images, so that its CKA is undefined, too.
    assert of_set.loc[~of_set["site"].isin(["attn_out", "resid_post"]), "value"].notna().all()
    assert of_set.loc[of_set["metric"] == "cka", "value"].isna().all()


def test_one_image_without_an_update_is_not_counted_with_the_others():
    model = fresh()
    spoil(model.blocks[0].ls2, lambda output: output[3:4].zero_())
    analysis = tokenlens.analyze(model, images("registers"), metrics=["cls_patch_cosine"])
    row = analysis.select("cls_patch_cosine", block=0, site="mlp_out").iloc[0]
    column = ("cls_patch_cosine", "", 0, "mlp_out", "cls-patch", -1)
    values = analysis.per_image[column]
    assert list(np.flatnonzero(values.isna())) == [3]
    assert row["n"] == 7
    assert row["value"] == pytest.approx(values.mean(), rel=1e-6)
    assert row["sd"] == pytest.approx(values.std(), rel=1e-5)


# -- what is written down


def test_the_provenance():
    analysis = everything()
    provenance = analysis.provenance
    assert json.loads(json.dumps(provenance)) == provenance
    assert set(provenance) >= {
        *("model", "family", "untrained", "weights", "images", "transform", "image_size", "seed", "device", "dtype"),
        *("versions", "command", "commit", "started", "seconds", "world_size", "batch_size"),
    }
    assert set(provenance["weights"]) >= {"source", "sha256", "pretrained"}
    assert len(provenance["weights"]["sha256"]) == 64
    assert set(provenance["versions"]) >= {"python", "torch", "timm", "numpy", "tokenlens"}
    assert provenance["image_size"] == [32, 32]
    assert provenance["seconds"] > 0
    assert len(set(provenance["images"]["names"])) == len(provenance["images"]["hashes"]) == 8
    assert (analysis.images, analysis.blocks, analysis.heads) == (8, 2, 3)
    assert "8 images" in repr(analysis)


def test_the_weights_and_the_images_are_told_apart_by_their_hashes():
    one = analyzed(metrics=["token_norm"]).provenance
    other = fresh()
    with torch.no_grad():
        other.norm.weight[0] += 1e-3
    two = tokenlens.analyze(other, images("registers").flip(0), metrics=["token_norm"]).provenance
    assert one["weights"]["sha256"] != two["weights"]["sha256"]
    assert one["images"]["hashes"] == two["images"]["hashes"][::-1]
    assert len(set(one["images"]["hashes"])) == 8


def test_random_weights_are_called_untrained():
    random = analyzed(metrics=["token_norm"], pretrained=False)
    assert (everything().untrained, random.untrained) == (False, True)
    assert "untrained" in repr(random)


def test_the_same_twice_and_the_random_state_untouched():
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    again = analyzed()
    assert torch.equal(torch.random.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    pd.testing.assert_frame_equal(again.table, everything().table, check_exact=True)
    pd.testing.assert_frame_equal(again.per_image, everything().per_image, check_exact=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_model_in_another_precision(dtype):
    amp = dtype == torch.float32
    analysis = tokenlens.analyze(fresh().to(dtype), images("registers"), metrics="all", amp=amp)
    assert analysis.provenance["dtype"] == ("bfloat16 autocast" if amp else str(dtype).removeprefix("torch."))
    expected = everything().select("cls_patch_cosine")["value"]
    difference = np.abs(analysis.select("cls_patch_cosine")["value"] - expected)
    assert 0 < difference.max() < 0.02
    recording = tokenlens.record(fresh().to(dtype), images("registers"), sites=["resid_post"])
    assert recording[0, "resid_post"].dtype == dtype


def test_the_files_to_read_are_those_that_run():
    page = REPOSITORY / "docs" / "decisions" / "0013-layout-of-the-package.md"
    listed = re.findall(r"^\d+\. `(.+?)`", page.read_text(encoding="utf-8"), re.MULTILINE)
    ran = set()
    sys.setprofile(lambda frame, *_: ran.add(frame.f_code.co_filename) if frame.f_code.co_name != "<module>" else None)
    try:
        analyzed(metrics=["cls_patch_cosine"])
    finally:
        sys.setprofile(None)
    assert 0 < len(listed) <= 15
    assert {str(REPOSITORY / file) for file in listed} <= ran


def test_a_progress_callback_may_run_the_model():
    """Hooks exist only while a batch passes, so the callback's own passes are not observed."""
    model, pixels = fresh(), images("registers")[:4]
    expected = tokenlens.analyze(model, pixels, batch_size=2).table
    table = tokenlens.analyze(model, pixels, batch_size=2, progress=lambda *_: model(pixels)).table
    pd.testing.assert_frame_equal(table, expected)
