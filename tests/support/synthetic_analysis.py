"""An analysis of any size with plausible numbers, without a model, for tests of comparison, figures and report."""

from typing import Any

import numpy as np
import pandas as pd

from tokenlens.analysis.analysis import COLUMNS, Analysis
from tokenlens.metrics import NamedArray
from tokenlens.tokens import TokenLayout

NEED_CLS = {"cls_patch_cosine", "cls_cls_cosine", "centroid_separation", "dimension_selectivity", "cka"}
NEED_CLS |= {"energy_profile", "cosine_channels", "cls_update"}
NEED_CLS |= {"attention_entropy", "cls_attention_map", "attention_mass"}
SITES = ("resid_pre", "norm1", "attn_out", "resid_mid", "norm2", "mlp_out", "resid_post")


def _weights(arrays: dict[str, NamedArray], rng: Any, blocks: int, channels: int, stages: Any) -> None:
    """Add γ and β of ordinary norms."""
    for stage in stages:
        for norm in ("norm1", "norm2", "final_norm"):
            shape = (channels,) if norm == "final_norm" else (blocks, channels)
            values = rng.normal(loc=stage == "gamma", scale=0.3, size=shape)
            arrays[f"norm_differentiation/{stage}_{norm}"] = NamedArray(values, ("block", "channel")[-len(shape) :], "")


def _specialize(put: Any, arrays: dict[str, NamedArray], rng: Any, blocks: int, channels: int, stages: Any) -> None:
    """Add weights of a specialized model that differ between CLS and patches."""
    for stage in stages:
        for norm in ("norm1", "norm2", "final_norm"):
            shape = (channels,) if norm == "final_norm" else (blocks, channels)
            patch = rng.normal(loc=stage == "gamma", scale=0.3, size=shape)
            for side, values in (("patch", patch), ("cls", patch + rng.normal(scale=0.05, size=shape))):
                dims = ("block", "channel")[-len(shape) :]
                arrays[f"norm_differentiation/{side}_{stage}_{norm}"] = NamedArray(values, dims, "weight")
    modules = [(block, f"norm/{norm}.{{}}", channels) for block in range(blocks) for norm in ("norm1", "norm2")]
    modules += [(None, "norm/norm.{}", channels)]
    modules += [(block, "qkv/attn.qkv.{}", 3 * channels**2) for block in range(max(blocks // 3, 1))]
    for block, site, elements in modules:
        for name in ("weight", "bias")[: 2 if "qkv" in site else len(stages)]:
            distance = rng.uniform(0.01, 0.2)
            for part, value, unit in (
                ("relative_distance", distance, "relative distance"),
                ("cosine", 1 - distance**2 / 2, "cosine"),
            ):
                put("weight_distance", part, block, site.format(name), "cls-patch", value, unit, n=elements)


def synthetic_analysis(
    *,
    blocks: int = 12,
    heads: int = 6,
    channels: int = 384,
    n: int = 64,
    grid: tuple[int, int] = (16, 16),
    groups: tuple[str, ...] = ("cls", "patch"),
    model: str = "vit_small_patch14_dinov2",
    untrained: bool = False,
    rms: bool = False,
    differentiates: bool = True,
    specialized: bool = False,
    skipped: tuple[dict[str, str], ...] = (),
    source: str = "/data/photos",
    seed: int = 0,
) -> Analysis:
    """Return numbers like those of DINOv2-S/14.

    With ``differentiates=False`` the norms change neither cosines nor channels. With ``specialized``, norms and the q,
    k, v projection in the first third of the blocks have separate weights for CLS and patches.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    cls = "cls" in groups
    depth = np.arange(blocks) / max(blocks - 1, 1)

    images = n

    def put(metric, part, block, site, group, value, unit, sd=0.05, head=None, jackknife=False, n=None):
        exact, n = n is not None, n or images
        half = 2 * sd / np.sqrt(n) if n > 1 and not exact else np.nan
        sd = np.nan if jackknife or exact or n < 2 else sd
        found = (model, metric, part, block, site, group, head, value, sd, n, value - half, value + half, unit)
        rows.append(dict(zip(COLUMNS, found, strict=True)))

    norms = [(block, norm, depth[block]) for block in range(blocks) for norm in ("norm1", "norm2")]
    for block, norm, d in [*norms, (None, "final_norm", 1.0)]:
        cp = 0.3 * np.sin(3 * d + 0.4) if norm == "norm1" else 0.15 * d - 0.05
        pp = 0.5 - 0.25 * d
        fall = {"norm1": 0.36, "norm2": 0.03, "final_norm": 0.2}[norm] * (1 if differentiates else 0)
        for group, before, total in (("cls-patch", cp, fall), ("patch-patch", pp, 0.5 * fall)):
            if group == "cls-patch" and not cls:
                continue
            total = total * rng.uniform(0.9, 1.1)
            parts = {"before": before, "after": before - total, "gamma": 0.7 * total, "total": total}
            if not rms:
                parts |= {"centring": 0.1 * total, "gamma": 0.6 * total, "beta": 0.3 * total}
            if specialized and group == "cls-patch":
                for stage in ("gamma",) if rms else ("gamma", "beta"):
                    own = 0.2 * total if stage == "gamma" else -0.05 * total
                    parts |= {f"{stage}_own": own, f"{stage}_shared": parts[stage] - own}
                parts["total_own"] = parts["gamma_own"] + parts.get("beta_own", 0.0)
            for part, value in parts.items():
                put("norm_differentiation", part, block, norm, group, value, "cosine", sd=0.06)
        for group in groups:
            scale = {"cls": 1.6, "dist": 1.4, "reg": 4.0, "patch": 1.0}[group]
            spread = "mean_square" if rms else "variance"
            put("norm_statistics", spread, block, norm, group, scale * 10 ** (2.2 * d - 1), "activation²", 0.02)
            if not rms:
                put("norm_statistics", "mean", block, norm, group, 0.02 * scale * (d - 0.4), "activation", 0.01)
        if cls:
            put("norm_statistics", "log_std_ratio", block, norm, "cls-patch", 0.2 + 0.2 * d, "natural log")
    for block, site, d in [(b, s, depth[b]) for b in range(blocks) for s in SITES] + [(None, "final_norm", 1.0)]:
        norm = "norm" in site
        pairs = {"patch_patch_cosine": ("patch-patch", 0.5 - 0.25 * d - 0.1 * norm)}
        if cls:
            pairs["cls_patch_cosine"] = ("cls-patch", 0.3 * np.sin(3 * d + 0.4) - 0.36 * (site == "norm1"))
        if "reg" in groups:
            pairs |= {"reg_cls_cosine": ("reg-cls", 0.1 * d), "reg_patch_cosine": ("reg-patch", -0.05 * d)}
        for metric, (group, value) in pairs.items():
            put(metric, "", block, site, group, value, "cosine")
        put("patch_diversity", "", block, site, "patch", 0.8 - 0.3 * d, "share")
        put("patch_mean_cosine", "", block, site, "patch-patch", 0.8 - 0.4 * d - 0.1 * norm, "cosine", jackknife=True)
        if cls:
            put("cosine_channels", "effective_channels", block, site, "cls-patch", 20 + 40 * d * norm, "channels", 3)
            put("cosine_channels", "top1_share", block, site, "cls-patch", 0.5 - 0.3 * norm, "share")
            put("cls_cls_cosine", "", block, site, "cls-cls", 1 - 0.9 * d - 0.05 * norm, "cosine", jackknife=True)
            put("centroid_separation", "", block, site, "cls-patch", 3 - 2 * d + norm, "ratio", jackknife=True)
    for block in range(blocks) if cls else ():
        above, share = (0.28, 0.8) if differentiates else (0.01, 0.02)
        for part, value, unit in (
            ("distance", 0.42 + above, "total variation"),
            ("above_rotated", above, "total variation"),
            ("fall_share", share, "share"),
        ):
            put("energy_profile", part, block, "norm1", "cls-patch", value, unit, sd=0.1, jackknife=True)
        for part, value, unit in (
            ("rotated_mean", 0.42, "total variation"),
            ("rotated_95", 0.45, "total variation"),
            ("random_95", 0.05, "share"),
        ):
            value = value if n >= 8 else np.nan
            put("energy_profile", part, block, "norm1", "cls-patch", value, unit, sd=np.nan, jackknife=True)
    for block in range(blocks):
        d = depth[block]
        for site in ("resid_pre", "resid_mid", "resid_post"):
            for group in groups:
                put("token_norm", "mean", block, site, group, 4 * 10 ** (d + 0.1 * len(group)), "norm", 1)
            put("token_norm", "max_over_median", block, site, "patch", 1.3 + 8 * d**4, "ratio", 0.2)
            put("token_norm", "high_norm_share", block, site, "patch", 0.02 * d**4, "share", 0.005)
            put("token_norm", "outlier_share", block, site, "patch", 0.01 + 0.02 * d**4, "share", 0.005)
            for group in groups:
                share = 0.1 + 0.5 * d
                put(
                    "massive_channels",
                    "max_over_median",
                    block,
                    site,
                    group,
                    3 + 60 * d,
                    "ratio",
                    np.nan,
                    jackknife=True,
                )
                put("massive_channels", "top3_energy", block, site, group, share, "share", np.nan, jackknife=True)
        for site in ("attn_out", "mlp_out"):
            for group in groups:
                put("update_ratio", "ratio", block, site, group, 0.6 - 0.4 * d + 0.05 * len(group), "ratio")
                put("update_ratio", "cosine", block, site, group, 0.2 * d - 0.1, "cosine")
        put("position_leak", "", block, "resid_post", "patch", 0.9 - 0.6 * d, "R²", np.nan, jackknife=True)
        for group in groups if cls else ():
            put("cls_update", "share", block, "attn_out", f"cls-{group}", 0.9 / len(groups), "share of ‖u‖²")
            put("cls_update", "norm", block, "attn_out", f"cls-{group}", 1 + d, "norm")
        if cls:
            put("cls_update", "bias_share", block, "attn_out", "cls", 0.1, "share of ‖u‖²")
            put("cls_update", "bias_norm", block, "attn_out", "cls", 0.3, "norm")
            put("cka", "", block, "resid_post", "cls-patch", 0.2 + 0.6 * d, "CKA", 0.1, jackknife=True)
        for head in range(heads):
            kinds = rng.dirichlet((4, 2, 1, 1))
            for part, value in zip(("none", "nop", "broadcast", "other"), kinds, strict=True):
                put("attention_sink", part, block, "pattern", "all", value, "share of images", head=head)
            for part, value, unit in (("mass", 0.5, "share"), ("queries", 0.6, "share"), ("strength", 0.4, "ratio")):
                put("attention_sink", part, block, "pattern", "all", value * d, unit, head=head)
            for group in groups:
                at = (1 - kinds[0]) / len(groups)
                put("attention_sink", "sink", block, "pattern", group, at, "share of images", head=head)
            for prefix in (g for g in groups if g != "patch"):
                for query in ("cls", "patch") if cls else ("patch",):
                    mass = rng.uniform(0, 0.4)
                    put("attention_mass", "", block, "pattern", f"{query}-{prefix}", mass, "share", head=head)
            if cls:
                for metric, part, low, high, unit in (
                    ("attention_mass", "", 0.5, 1, "share"),
                    ("attention_entropy", "normalized", 0.6, 1, "entropy / log P"),
                    ("attention_entropy", "effective_patches", 30, 256, "patches"),
                    ("cls_attention_map", "peak", 2, 20, "× uniform"),
                ):
                    put(metric, part, block, "pattern", "cls-patch", rng.uniform(low, high), unit, head=head)
    arrays: dict[str, NamedArray] = {}
    stages = ("gamma",) if rms else ("gamma", "beta")
    if specialized:
        _specialize(put, arrays, rng, blocks, channels, stages)
    else:
        _weights(arrays, np.random.default_rng(seed), blocks, channels, stages)
    if cls:
        for norm in ("norm1", "norm2", "final_norm"):
            shape = (channels,) if norm == "final_norm" else (blocks, channels)
            patch_in = np.abs(rng.normal(size=shape)) + 0.3
            cls_in = patch_in * np.exp(rng.normal(scale=0.7, size=shape))
            sharpen = 2.0 if differentiates else 1.0
            for side, a, b in (("input", cls_in, patch_in), ("output", cls_in**sharpen, patch_in**sharpen)):
                dims = ("block", "channel")[-len(shape) :]
                selectivity = (a - b) / (a + b)
                arrays[f"dimension_selectivity/{side}_{norm}"] = NamedArray(selectivity, dims, "selectivity")
                arrays[f"dimension_selectivity/cls_{side}_{norm}"] = NamedArray(a, dims, "mean |activation|")
                arrays[f"dimension_selectivity/patch_{side}_{norm}"] = NamedArray(b, dims, "mean |activation|")
                for index, size in enumerate(np.abs(np.atleast_2d(selectivity))):
                    block, d = (None, 1.0) if norm == "final_norm" else (index, depth[index])
                    for part, value, unit in (
                        ("mean", size.mean(), "mean |s|"),
                        ("share", (size > 0.5).mean(), "share of channels"),
                        ("top_overlap", 0.5 - 0.2 * d, "share"),
                        ("gamma_correlation", 0.4 - 0.3 * d, "Spearman's ρ"),
                    ):
                        name = "dimension_selectivity", f"{side}_{part}"
                        put(*name, block, norm, "cls-patch", value, unit, 0.2, jackknife=True)
        y, x = np.mgrid[: grid[0], : grid[1]]
        centre = np.exp(-((y - grid[0] / 2) ** 2 + (x - grid[1] / 2) ** 2) / (0.15 * grid[0] * grid[1]))
        maps = (0.3 + centre)[None, None] * rng.uniform(0.7, 1.3, size=(blocks, heads, *grid))
        maps /= maps.sum((2, 3), keepdims=True) * 1.2
        arrays["cls_attention_map/mean"] = NamedArray(maps, ("block", "head", "row", "column"), "attention")
        arrays["cls_attention_map/sd"] = NamedArray(0.4 * maps, ("block", "head", "row", "column"), "attention")
        apart = np.exp(-np.abs(np.subtract.outer(depth, depth)) * 2)
        for pair, matrix in (
            ("cls-cls", apart),
            ("patch-patch", apart**0.5),
            ("cls-patch", np.add.outer(depth, depth) / 2 * apart),
        ):
            for suffix, offset in (("", 0.0), ("_low", -0.05), ("_high", 0.05)):
                arrays[f"cka/{pair}{suffix}"] = NamedArray(matrix + offset, ("block_1", "block_2"), "CKA")
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"block": "Int64", "head": "Int64"})
    names = [f"photo_{i:03d}.jpg" for i in range(n)]
    weights = "none (random)" if untrained else "/data/dinov2.safetensors"
    provenance = {
        "model": model,
        "family": "timm_vit",
        "untrained": untrained,
        "weights": {"source": weights, "sha256": "ab" * 32, "pretrained": not untrained},
        "images": {"source": source, "count": n, "hashes": ["00" * 8] * n, "names": names, "skipped": list(skipped)},
        "transform": {"mean": [0.485, 0.456, 0.406], "interpolation": "bicubic"},
        "image_size": [224, 224],
        "seed": 0,
        "device": "cpu",
        "dtype": "float32",
        "batch_size": 8,
        "world_size": 1,
        "versions": {"python": "3.11.9", "torch": "2.15.0", "timm": "1.0.31", "numpy": "2.4", "tokenlens": "0.1.0"},
        "command": f"tokenlens analyze {model} --images {source} --limit {n}",
        "commit": "0" * 40,
        "started": "2026-01-01T00:00:00+00:00",
        "seconds": 12.3,
    }
    not_applicable = {} if specialized else {"weight_distance": "no module of the model is specialized"}
    if specialized:
        prefix = list(dict.fromkeys(group for group in groups if group != "patch"))
        provenance["specialization"] = {"norm": "all", "qkv": "first_third", "registers": "cls", "prefix": prefix}
    if "reg" not in groups:
        reason = "the model has no register token"
        not_applicable |= {"reg_cls_cosine": reason, "reg_patch_cosine": reason}
    if not cls:
        absent = NEED_CLS - set(table["metric"])
        not_applicable |= dict.fromkeys(sorted(absent), "the model has no [CLS] token")
    return Analysis(
        model=model,
        layout=TokenLayout(grid, prefix=tuple(group for group in groups if group != "patch")),
        blocks=blocks,
        table=table,
        arrays=arrays,
        per_image=pd.DataFrame(index=pd.Index(names, name="image")),
        provenance=provenance,
        not_applicable=not_applicable,
    )
