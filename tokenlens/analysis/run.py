"""One pass of a model over images, with the metrics that observe it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tokenlens.analysis.analysis import COLUMNS, KEY_COLUMNS, Analysis
from tokenlens.analysis.finite import FiniteCheck
from tokenlens.analysis.transfer import load_ahead
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
from tokenlens.reduction.choice import kernels_for
from tokenlens.reduction.reducer import Reducer
from tokenlens.reduction.summaries import Reduction
from tokenlens.tokens import HEAD_SITES, Site, TokenLayout

POOL_IMAGES = 16
"""Metrics are updated once for at least this many images, so that small batches do not pay for them each time."""

DEVICE_POOL_IMAGES = 128
"""The same on a device other than the CPU, where batches are larger and metrics are launches that take no time."""


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
        self._on_cpu = next(loaded.module.parameters()).device.type == "cpu"
        self._pending_names: list[str] = []
        self._unchecked: FiniteCheck | None = None

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
            kernels=kernels_for(self.layout, next(self.loaded.module.parameters()).device),
            pool=POOL_IMAGES if self._on_cpu else DEVICE_POOL_IMAGES,
        )

    def process(self, batches: Iterable[Batch], amp: bool, done: Callable[[Batch], None] = lambda _: None) -> None:
        """Run the model over the batches, reduce its activations and update the metrics; ``done`` follows each batch.

        The model has hooks only while it runs, not in ``done``.
        """
        weights = next(self.loaded.module.parameters())
        with contextlib.closing(load_ahead(batches, weights)) as loaded:
            recorder = None
            for batch, pixels in loaded:
                if self.layout is None:
                    self._prepare((pixels.shape[-2], pixels.shape[-1]))
                    recorder = self._recorder()
                self._check_size(pixels)
                if recorder is not None:
                    self._run(recorder, batch, pixels, amp)
                done(batch)
        self.flush()
        self._check_finite()
        for metric in self.applicable:
            metric.receive()

    def _recorder(self) -> Recorder | None:
        """Return the recorder of the model; None if no metric observes it."""
        assert self.layout is not None
        sites = {site for metric in self.applicable for site in metric.observes}
        if not sites:
            return None
        keep_freed_memory()
        return Recorder(self.loaded.module, self.loaded.family, self.layout, self._reducer, sites=sites)

    def _check_size(self, pixels: Tensor) -> None:
        height, width = pixels.shape[-2:]
        if (height, width) != self.image_size:
            raise ValueError(
                f"all images of an analysis must have the same size; the first batch had {self.image_size}, a later "
                f"one {(height, width)}"
            )

    def _run(self, recorder: Recorder, batch: Batch, pixels: Tensor, amp: bool) -> None:
        """Run one forward pass and reduce its activations."""
        reducer = self._reducer
        if not reducer.has_room(len(pixels)):
            self.flush()
        reducer.start(batch.indices)
        autocast = torch.autocast(pixels.device.type, dtype=torch.bfloat16) if amp else contextlib.nullcontext()
        with recorder, autocast:
            recorder.run(pixels)
        reducer.end()
        self._pending_names += batch.names
        if reducer.images >= reducer.pool:
            self.flush()

    def flush(self) -> None:
        """Update the metrics with everything reduced since the last flush."""
        if not self._pending_names:
            return
        with torch.no_grad():
            batch, names = self._reducer.collect(), self._pending_names
            self._pending_names = []
            self._check_finite()
            self._unchecked = FiniteCheck(batch, names)
            if self._on_cpu:  # elsewhere this would wait for the device
                self._check_finite()
            for metric in self.applicable:
                metric.update(batch)

    def _check_finite(self) -> None:
        """Raise NonFiniteActivation if the last pool had NaN or infinity."""
        unchecked, self._unchecked = self._unchecked, None
        if unchecked is not None:
            unchecked.raise_first()

    def to_analysis(self, name: str, provenance: dict[str, Any], names: list[str]) -> Analysis:
        """Collect table, arrays and per-image values from the metrics."""
        rows, columns = [], []
        arrays: dict[str, NamedArray] = {}
        for metric in self.applicable:
            rows += [{"metric": metric.name, **row} for row in metric.rows()]
            arrays |= {f"{metric.name}/{part}": array for part, array in metric.arrays().items()}
            if isinstance(metric, PerImageMetric) and metric.keys:
                columns += [
                    (metric.name, part, -1 if block is None else block, site, group, -1 if head is None else head)
                    for part, block, site, group, head in metric.keys
                ]
        table = pd.DataFrame(rows, columns=[column for column in COLUMNS if column != "model"])
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
        return Analysis(name, self.layout, self.blocks, table, arrays, per_image, provenance, dict(self.not_applicable))


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
