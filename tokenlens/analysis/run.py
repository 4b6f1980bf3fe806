"""One pass of a model over images, with the metrics that observe it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tokenlens.analysis.analysis import COLUMNS, KEY_COLUMNS, Analysis
from tokenlens.analysis.block_group import BlockGroup, group_blocks
from tokenlens.analysis.finite import FiniteCheck
from tokenlens.analysis.photographs import PhotographObserver
from tokenlens.analysis.transfer import load_ahead
from tokenlens.images.preprocessing import Batch
from tokenlens.images.sources import ImageSource, open_images
from tokenlens.metrics import Metric, NamedArray, PerImageMetric, Row
from tokenlens.models.loading import LoadedModel
from tokenlens.recording.recorder import Recorder
from tokenlens.reduction.memory import keep_freed_memory
from tokenlens.statistics.moments import cut_interval
from tokenlens.tokens import TokenLayout

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
        self.notes: list[str] = []
        self.photographs: PhotographObserver | None = None
        self._groups: list[BlockGroup] = []
        self._on_cpu = next(loaded.module.parameters()).device.type == "cpu"
        self._unchecked: list[FiniteCheck] = []
        self._pending_names: list[str] = []

    def _prepare(self, image_size: tuple[int, int]) -> None:
        family, module = self.loaded.family, self.loaded.module
        self.image_size = image_size
        self.layout = family.layout(module, image_size)
        self._groups = group_blocks(module, family, self.layout, self.chosen, self.keep_images, self.expensive)
        self.applicable = [metric for group in self._groups for metric in group.metrics]
        known = {metric.name for metric in self.applicable}
        notes = (self.loaded.note, self.layout.border_note(image_size), *family.notes(module))
        self.notes = [note for note in notes if note]
        partly: dict[str, list[str]] = {}
        for name in (metric.name for metric in self.chosen):
            reasons = {
                group.where: group.not_applicable[name] for group in self._groups if name in group.not_applicable
            }
            if name in known:
                for where, reason in reasons.items():
                    partly.setdefault(f"{where}: {reason}", []).append(name)
            elif len(set(reasons.values())) == 1:
                self.not_applicable[name] = next(iter(reasons.values()))
            else:
                self.not_applicable[name] = "; ".join(f"{where}: {reason}" for where, reason in reasons.items())
        self.notes += [f"Left out in {reason}: {', '.join(names)}." for reason, names in partly.items()]
        if not self.applicable:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.not_applicable.items())
            raise ValueError(f"none of the chosen metrics applies to {self.loaded.name} ({why})")

    def process(self, batches: Iterable[Batch], amp: bool, done: Callable[[Batch], None] = lambda _: None) -> None:
        """Run the model over the batches, reduce its activations and update the metrics; ``done`` follows each batch.

        The model has hooks only while it runs, not in ``done``.
        """
        weights = next(self.loaded.module.parameters())
        with contextlib.closing(load_ahead(batches, weights)) as loaded:
            recorder = None
            for batch, pixels in loaded:
                check_channels(pixels, self.loaded)
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
        reducers = {block: group.reducer for group in self._groups for block in group.blocks}
        layouts = {block: group.layout for group in self._groups for block in group.blocks}
        self.photographs = PhotographObserver(reducers, layouts)
        family, pooled = self.loaded.family, self._groups[-1].reducer.pooled
        return Recorder(self.loaded.module, family, self.layout, self.photographs, sites=sites, pooled=pooled)

    def _check_size(self, pixels: Tensor) -> None:
        height, width = pixels.shape[-2:]
        if (height, width) != self.image_size:
            raise ValueError(
                f"all images of an analysis must have the same size; the first batch had {self.image_size}, a later "
                f"one {(height, width)}"
            )

    def _run(self, recorder: Recorder, batch: Batch, pixels: Tensor, amp: bool) -> None:
        """Run one forward pass and reduce its activations."""
        reducers = [group.reducer for group in self._groups]
        for reducer in reducers:
            reducer.start(batch.indices)
        assert self.photographs is not None
        self.photographs.start(batch.images, batch.names, batch.hashes)
        autocast = torch.autocast(pixels.device.type, dtype=torch.bfloat16) if amp else contextlib.nullcontext()
        with recorder, autocast:
            recorder.run(pixels)
        for reducer in reducers:
            reducer.end()
        self._pending_names += batch.names
        if len(self._pending_names) >= (POOL_IMAGES if self._on_cpu else DEVICE_POOL_IMAGES):
            self.flush()

    def flush(self) -> None:
        """Update the metrics with everything reduced since the last flush."""
        if not self._pending_names:
            return
        with torch.no_grad():
            names, self._pending_names = self._pending_names, []
            batches = [group.reducer.collect() for group in self._groups]
            self._check_finite()
            self._unchecked = [FiniteCheck(batch, names) for batch in batches]
            if self._on_cpu:  # elsewhere this would wait for the device
                self._check_finite()
            for group, batch in zip(self._groups, batches, strict=True):
                for metric in group.metrics:
                    metric.update(batch)

    def _check_finite(self) -> None:
        """Raise NonFiniteActivation if the last pool had NaN or infinity."""
        unchecked, self._unchecked = self._unchecked, []
        for check in unchecked:
            check.raise_first()

    def to_analysis(self, model: str, provenance: dict[str, Any], names: list[str]) -> Analysis:
        """Collect table, arrays and per-image values from the metrics."""
        frames, columns = [], []
        arrays: dict[str, NamedArray] = {}
        for metric in self.applicable:
            rows = metric.rows()
            if rows:
                frames.append(_frame(metric, rows))
            for part, array in metric.arrays().items():
                name = f"{metric.name}/{part}"
                arrays[name] = _of_all_blocks(array, rows, self.blocks, arrays.get(name))
            if isinstance(metric, PerImageMetric) and metric.keys:
                columns += [
                    (metric.name, part, -1 if block is None else block, site, group, -1 if head is None else head)
                    for part, block, site, group, head in metric.keys
                ]
        table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(COLUMNS))
        table["model"] = model
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
            model, self.layout, self.blocks, table, arrays, per_image, provenance, dict(self.not_applicable), without
        )


def _frame(metric: Metric, rows: Sequence[Row]) -> pd.DataFrame:
    """Return a metric's rows of the table, with intervals that end where the quantity does."""
    frame = pd.DataFrame({"metric": metric.name, **pd.DataFrame(rows)})
    value, low, high = (frame[name].to_numpy(dtype=np.float64) for name in ("value", "ci_low", "ci_high"))
    bounds = np.array([metric.bounds_of(part) for part in frame["part"]])
    frame["ci_low"], frame["ci_high"] = cut_interval(value, low, high, bounds)
    return frame


def _of_all_blocks(array: NamedArray, rows: Sequence[Row], blocks: int, others: NamedArray | None) -> NamedArray:
    """Return an array over some blocks as one over all, with NaN, or the values of ``others``, elsewhere."""
    own = sorted({row["block"] for row in rows if row["block"] is not None})
    if array.dims[0] != "block" or len(array.values) != len(own) or own == list(range(blocks)):
        return array
    whole = np.full((blocks, *array.values.shape[1:]), np.nan) if others is None else others.values.copy()
    whole[own] = array.values
    return NamedArray(whole, array.dims, array.unit)


def to_model(pixels_BCHW: Tensor, module: nn.Module) -> Tensor:
    """Return images on the device and in the precision of the model's weights."""
    weights = next(module.parameters())
    return pixels_BCHW.to(weights.device, weights.dtype, non_blocking=True)


def check_channels(images_NCHW: Tensor, loaded: LoadedModel) -> None:
    """Raise ValueError unless images have the number of channels that the model takes."""
    if images_NCHW.ndim == 4 and images_NCHW.shape[1] != loaded.channels:
        raise ValueError(
            f"this {loaded.name} takes images of {loaded.channels} channels, N×{loaded.channels}×height×width, got "
            f"{'×'.join(map(str, images_NCHW.shape))}"
        )


def open_for_model(images: Any, loaded: LoadedModel, limit: int | None, seed: int) -> ImageSource:
    """Open images with the model's transform; tensors and DataLoaders keep their own size.

    Raises:
        ValueError: for images of another number of channels than the model takes; and as ``open_images``.
    """
    if isinstance(images, Tensor):
        check_channels(images, loaded)
    size = None if isinstance(images, Tensor | DataLoader) else loaded.image_size
    # Only a model of 3 channels has a transform of photographs; data sets may have tensors for any other.
    named = isinstance(images, str | os.PathLike)
    transform = loaded.transform() if named or loaded.channels == 3 else None
    return open_images(images, transform=transform, limit=limit, seed=seed, image_size=size)


def no_usable_image(description: str, skipped: list[dict[str, str]]) -> ValueError:
    """Return the error for a source without any image that could be used."""
    if not skipped:
        return ValueError(f"no image of {description} could be used: there are none")
    first = "; ".join(f"{item['name']}: {item['reason']}" for item in skipped[:3])
    if len(skipped) == 1:
        return ValueError(f"the only image of {description} cannot be used: {first}")
    more = ", …" if len(skipped) > 3 else ""
    return ValueError(f"no image of {description} could be used: all {len(skipped)} were skipped ({first}{more})")
