"""One pass of a model over images, with the metrics that observe it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tokenlens.analysis.analysis import COLUMNS, KEY_COLUMNS, SITE_ORDER, Analysis
from tokenlens.images.preprocessing import Batch
from tokenlens.images.sources import ImageSource, open_images
from tokenlens.metrics import (
    PATTERN_REDUCTIONS,
    TOKEN_REDUCTIONS,
    Metric,
    NamedArray,
    PerImageMetric,
    RawTokenMetric,
    Subject,
)
from tokenlens.models.loading import LoadedModel
from tokenlens.recording.recorder import Recorder
from tokenlens.reduction.buffers import keep_freed_memory
from tokenlens.reduction.compilation import kernels_for
from tokenlens.reduction.reducer import Reducer
from tokenlens.reduction.summaries import (
    AttentionSummary,
    BatchSummary,
    NormSummary,
    PatternSummary,
    Reduction,
    TokenSummary,
)
from tokenlens.tokens import HEAD_SITES, Site, TokenLayout

POOL_IMAGES = 16
"""Metrics are updated once for at least this many images, so that small batches do not pay for them each time."""


class NonFiniteActivation(ValueError):
    """NaN or infinity in a forward pass; the message says where it was first seen."""


class AnalysisRun:
    """One model and the metrics that observe it; the token layout is known from the first batch on."""

    def __init__(self, loaded: LoadedModel, chosen: list[Metric], keep_images: int, expensive: bool) -> None:
        self.loaded = loaded
        self.chosen = chosen
        self.keep_images = keep_images
        self.expensive = expensive
        self.applicable: list[Metric] = []
        self.not_applicable: dict[str, str] = {}
        self.image_size: tuple[int, int] = (0, 0)
        self.layout: TokenLayout | None = None
        self.blocks = len(list(loaded.family.blocks(loaded.module)))
        self._pending_names: list[str] = []

    def _prepare(self, image_size: tuple[int, int]) -> None:
        family, module = self.loaded.family, self.loaded.module
        self.image_size = image_size
        self.layout = family.layout(module, image_size)
        sites = {str(site) for block in family.blocks(module) for site in family.taps(block).sites}
        sites |= {str(site) for site in HEAD_SITES}
        if family.final_norm(module) is not None:
            sites.add(str(Site.FINAL_NORM))
        subject = Subject(module, self.layout, self.blocks, frozenset(sites), self.keep_images, self.expensive)
        for metric in self.chosen:
            reason = metric.prepare(subject)
            if reason is None:
                self.applicable.append(metric)
            else:
                self.not_applicable[metric.name] = reason

    @cached_property
    def _reducer(self) -> Reducer:
        assert self.layout is not None
        wanted: dict[str, set[Reduction]] = {}
        for metric in self.applicable:
            reductions = TOKEN_REDUCTIONS & metric.needs
            # Attention metrics observe q only to see the kernel call; they need no sums over tokens there.
            if reductions or "pattern" not in metric.needs:
                for site in metric.observes:
                    wanted.setdefault(str(site), set()).update(reductions)
        needs = {need for metric in self.applicable for need in metric.needs}
        return Reducer(
            self.layout,
            wanted,
            norm_stages="norm_stages" in needs,
            updates="updates" in needs,
            pattern="pattern" in needs,
            raw=[(m.name, m.chosen_sites, m.look) for m in self.applicable if isinstance(m, RawTokenMetric)],
            whole_pattern=PATTERN_REDUCTIONS & needs,
            patch_sample="patch_sample" in needs,
            kernels=kernels_for(self.layout, next(self.loaded.module.parameters()).device),
        )

    def process_batch(self, batch: Batch, amp: bool) -> None:
        """Run one forward pass and reduce its activations."""
        height, width = batch.images.shape[-2:]
        if self.layout is None:
            self._prepare((height, width))
        elif (height, width) != self.image_size:
            raise ValueError(
                f"all images of an analysis must have the same size; the first batch had {self.image_size}, a later "
                f"one {(height, width)}"
            )
        assert self.layout is not None
        sites = {site for metric in self.applicable for site in metric.observes}
        if not sites:
            return
        reducer = self._reducer
        module = self.loaded.module
        pixels = to_model(batch.images, module)
        autocast = torch.autocast(pixels.device.type, dtype=torch.bfloat16) if amp else contextlib.nullcontext()
        with Recorder(module, self.loaded.family, self.layout, reducer, sites=sites) as recorder, autocast:
            if not reducer.has_shapes:
                keep_freed_memory()
                # One image shows what has to be kept, so that buffers for it exist before the first whole batch.
                reducer.start(batch.indices[:1])
                recorder.run(pixels[:1])
                reducer.end()
            if not reducer.has_room(len(pixels)):
                self.flush()
                reducer.allocate(-(-POOL_IMAGES // len(pixels)) * len(pixels))
            reducer.start(batch.indices)
            recorder.run(pixels)
            reducer.end()
        self._pending_names += batch.names
        if reducer.images >= POOL_IMAGES:
            self.flush()

    def flush(self) -> None:
        """Update the metrics with everything reduced since the last flush."""
        if not self._pending_names:
            return
        with torch.no_grad():
            batch, names = self._reducer.collect(), self._pending_names
            self._pending_names = []
            check_finite(batch, names)
            for metric in self.applicable:
                metric.update(batch)

    def to_analysis(self, name: str, provenance: dict[str, Any], names: list[str]) -> Analysis:
        """Collect table, arrays and per-image values from the metrics."""
        frames, columns = [], []
        arrays: dict[str, NamedArray] = {}
        for metric in self.applicable:
            rows = metric.rows()
            if rows:
                frames.append(pd.DataFrame({"metric": metric.name, **pd.DataFrame(rows)}))
            arrays |= {f"{metric.name}/{part}": array for part, array in metric.arrays().items()}
            if isinstance(metric, PerImageMetric) and metric.keys:
                columns += [
                    (metric.name, part, -1 if block is None else block, site, group, -1 if head is None else head)
                    for part, block, site, group, head in metric.keys
                ]
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
        table["model"] = name
        kinds: dict[str, Any] = dict.fromkeys(("model", "metric", "part", "site", "group", "unit"), str)
        kinds |= dict.fromkeys(("value", "sd", "ci_low", "ci_high"), "float64")
        table = table[list(COLUMNS)].astype(kinds | {"block": "Int64", "head": "Int64", "n": "int64"})
        order = ["metric", "part", "site", "group", "block", "head"]
        table = table.sort_values(order, kind="stable", ignore_index=True)
        images = min(len(names), self.keep_images) if columns else 0
        # Filled metric by metric and not copied: with thousands of images this is most of the memory.
        values = np.empty((images, len(columns)), dtype=np.float32)
        first = 0
        for metric in self.applicable:
            if isinstance(metric, PerImageMetric) and metric.keys:
                values[:, first : first + len(metric.keys)] = metric.per_image_values()
                first += len(metric.keys)
        per_image = pd.DataFrame(
            values,
            columns=pd.MultiIndex.from_tuples(columns, names=list(KEY_COLUMNS)) if columns else None,
            index=pd.Index(names[:images], name="image"),
            copy=False,
        )
        assert self.layout is not None
        without = {
            "/".join(filter(None, (m.name, part))): why for m in self.applicable for part, why in m.no_interval.items()
        }
        return Analysis(
            name, self.layout, self.blocks, table, arrays, per_image, provenance, dict(self.not_applicable), without
        )


def to_model(pixels_B3HW: Tensor, module: nn.Module) -> Tensor:
    """Return images on the device and in the precision of the model's weights."""
    weights = next(module.parameters())
    return pixels_B3HW.to(weights.device, weights.dtype, non_blocking=True)


def open_for_model(images: Any, loaded: LoadedModel, limit: int | None, seed: int) -> ImageSource:
    """Open images with the model's transform; tensors and DataLoaders keep their own size."""
    size = None if isinstance(images, Tensor | DataLoader) else loaded.image_size
    return open_images(images, transform=loaded.transform(), limit=limit, seed=seed, image_size=size)


def no_usable_image(description: str, skipped: list[dict[str, str]]) -> ValueError:
    """Return the error for a source without any image that could be used."""
    if not skipped:
        return ValueError(f"no image of {description} could be used: there are none")
    first = "; ".join(f"{item['name']}: {item['reason']}" for item in skipped[:3])
    more = ", …" if len(skipped) > 3 else ""
    return ValueError(f"no image of {description} could be used: all {len(skipped)} were skipped ({first}{more})")


def check_finite(batch: BatchSummary, names: Sequence[str]) -> None:
    """Raise NonFiniteActivation if a summary holds NaN or infinity, naming the first site and image in order.

    A token with NaN or infinity has a norm that is NaN or infinite, so norms are all that has to be looked at.
    """
    checked = [(stack, stack.summary.norms, "") for stack in batch.stacks(TokenSummary)]
    checked += [(stack, stack.summary.input.norms, "input of ") for stack in batch.stacks(NormSummary)]
    # Without token metrics, attention is all there is.
    for stack in batch.stacks(AttentionSummary):
        both = (stack.summary.cls_row, stack.summary.patch_to_prefix)
        checked += [(stack, weights, "") for weights in both if weights is not None]
    for stack in batch.stacks(PatternSummary):
        if not stack.summary.layout.prefix:  # patches attend to patches only, at a distance
            checked.append((stack, stack.summary.patch_distance, ""))
    # No value is negative, so the sum is finite if and only if all values are; it needs no memory.
    if all(bool(torch.isfinite(values.sum())) for _, values, _ in checked):
        return
    found = []
    for stack, values, prefix in checked:
        for row, image in (~torch.isfinite(values.flatten(2)).all(-1)).nonzero().tolist():
            block, site = stack.keys[stack.rows.index(row)]
            order = SITE_ORDER.index(str(site)) - (0.5 if prefix else 0)
            found.append((block is None, -1 if block is None else block, order, image, f"{prefix}{site}"))
    _, first, _, image, site = min(found)
    where = site if first < 0 else f"block {first}, {site}"
    raise NonFiniteActivation(
        f"NaN or infinity in the activations at {where}, first for image {names[image]!r}. Check the weights "
        "and the images, and try without reduced precision (amp)."
    )
