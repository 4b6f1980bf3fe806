"""TODO."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import os
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tokenlens.analysis.analysis import _ORDER, COLUMNS, SERIES, Analysis
from tokenlens.analysis.metric_choice import Choice, chosen_metrics
from tokenlens.families.base import Family
from tokenlens.images.sources import Batch, ImageSource, batches, open_images
from tokenlens.metrics.base import Metric, NamedArray, PerImageMetric, RawTokenMetric, Subject
from tokenlens.models.loading import LoadedModel, load_model
from tokenlens.recording.recorder import Recorder, evaluating
from tokenlens.reduction.batch import BatchSummary
from tokenlens.reduction.buffers import keep_freed_memory
from tokenlens.reduction.compiled import how_summed, sums_for
from tokenlens.reduction.reducer import Summarizer
from tokenlens.reduction.summaries import AttentionSummary, NormSummary, PatternSummary, Reduction, TokenSummary
from tokenlens.specialization import plan_of
from tokenlens.storage.provenance import made_by
from tokenlens.tokens import HEAD_SITES, Site, TokenLayout

POOL_IMAGES = 16
"""The metrics are fed once for at least this many images, so that small batches do not pay for them each time."""


class NonFiniteActivation(ValueError):
    """NaN or infinity in the forward pass; says where it was first seen."""


def analyze(
    model: str | nn.Module,
    images: Any = "sample",
    *,
    metrics: Choice | Sequence[Choice] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "auto",
    amp: bool = False,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = True,
    img_size: int | tuple[int, int] | None = None,
    family: Family | None = None,
    keep_images: int = 4096,
    progress: Callable[[int, int | None], None] | None = None,
) -> Analysis:
    """Run a model over images once and measure how its CLS, register and patch tokens differ at every site.

    Args:
        model: a name (timm, ``hf-hub:``, ``local-dir:``) or any module that a family owns; it is used as it is.
        images: a folder, a file, ``"sample"``, ``hfds/…``, ``wds/…``, a preprocessed tensor (N, 3, H, W), a Dataset
            or a DataLoader.
        metrics: names from ``tokenlens list metrics`` and metrics of your own (``Metric`` classes or instances),
            ``"all"``, or None for all that are not opt-in. The cosines are taken at q, k and v, too, where they are
            named or ``"all"`` are asked for.
        limit: use at most this many images.
        batch_size: images per forward pass; the numbers do not depend on it.
        workers: processes that decode images.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``, …
        amp: run the model under autocast in bfloat16; the metrics stay in float32 and float64.
        seed: of the image subset, of ``sample``'s views, and of random weights.
        checkpoint: weights from a file instead of the hub.
        pretrained: False for random weights; the result is then marked as untrained.
        img_size: image side, or (height, width), where the model allows one.
        family: where the tokens and sites of a model of your own are.
        keep_images: keep per-image values of up to this many images; moments go on beyond.
        progress: called with images done and total (None if unknown).

    Returns:
        The Analysis. Under ``torch.distributed`` every rank takes whole batches in turn and all return the merged one.

    Raises:
        LookupError: for an unknown model, metric or family.
        ValueError: for images or weights that cannot be used, incomplete recordings and non-finite activations.
    """
    started, clock = dt.datetime.now(dt.UTC), time.perf_counter()
    chosen = chosen_metrics(metrics)
    loaded = load_model(
        model, pretrained=pretrained, checkpoint=checkpoint, img_size=img_size, device=device, seed=seed, family=family
    )
    source = _open(images, loaded, limit, seed)
    rank, world_size = _world()
    run = _Run(loaded, chosen, keep_images)
    names, hashes, indices = [], [], []
    with evaluating(loaded.module):
        for batch in batches(source, batch_size, workers=workers, rank=rank, world_size=world_size):
            run.take(batch, amp=amp)
            names += batch.names
            hashes += batch.hashes
            indices += batch.indices
            if progress is not None:
                done = len(indices) * world_size
                progress(done if source.total is None else min(done, source.total), source.total)
        run.flush()
    names, hashes, skipped = _merge_ranks(run, indices, names, hashes, source.skipped, world_size)
    if not names:
        raise ValueError(f"no image of {source.description} could be used: {_skipped_text(skipped)}")
    device_used = next(loaded.module.parameters()).device
    provenance = {
        "model": loaded.name,
        "family": loaded.family.name or type(loaded.family).__name__,
        "untrained": loaded.untrained,
        "weights": loaded.weights,
        **_specialized(loaded.module),
        "images": {
            "source": source.description,
            "note": source.note,
            "given": os.fspath(images) if isinstance(images, str | os.PathLike) else None,
            "limit": limit,
            "count": len(names),
            "skipped": skipped,
            "names": names,
            "hashes": hashes,
            "kept_per_image": min(len(names), keep_images),
        },
        "transform": {key: _plain(value) for key, value in loaded.data_config.items()},
        "image_size": list(run.image_size),
        "seed": seed,
        "device": str(device_used),
        "sums": how_summed(device_used),
        "dtype": "bfloat16 autocast" if amp else str(next(loaded.module.parameters()).dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "world_size": world_size,
        **made_by("analyze"),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
    }
    return run.analysis(loaded.name, provenance, names)


class _Run:
    """One model, its metrics, and what they have seen; the layout comes with the first batch."""

    def __init__(self, loaded: LoadedModel, chosen: list[Metric], keep_images: int) -> None:
        self.loaded = loaded
        self.chosen = chosen
        self.keep_images = keep_images
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
        subject = Subject(module, self.layout, self.blocks, frozenset(sites), self.keep_images)
        for metric in self.chosen:
            reason = metric.prepare(subject)
            if reason is None:
                self.applicable.append(metric)
            else:
                self.not_applicable[metric.name] = reason

    @cached_property
    def _summarizer(self) -> Summarizer:
        assert self.layout is not None
        wanted: dict[str, set[Reduction]] = {}
        for metric in self.applicable:
            for site in metric.observes if metric.wanted or not metric.needs_pattern else ():
                wanted.setdefault(str(site), set()).update(metric.wanted)
        return Summarizer(
            self.layout,
            wanted,
            norm_stages=any(metric.needs_norm_stages for metric in self.applicable),
            updates=any(metric.needs_updates for metric in self.applicable),
            pattern=any(metric.needs_pattern for metric in self.applicable),
            raw=[(m.name, m.sites, m.look) for m in self.applicable if isinstance(m, RawTokenMetric)],
            whole_pattern={reduction for metric in self.applicable for reduction in metric.wanted_of_pattern},
            sums=sums_for(self.layout, next(self.loaded.module.parameters()).device),
        )

    def take(self, batch: Batch, amp: bool) -> None:
        """One forward pass, and what the metrics make of it."""
        height, width = batch.images.shape[-2:]
        if self.layout is None:
            self._prepare((height, width))
        elif (height, width) != self.image_size:
            raise ValueError(
                f"all images of one analysis have one size; the first batch had {self.image_size}, then came "
                f"{(height, width)}"
            )
        assert self.layout is not None
        sites = {site for metric in self.applicable for site in metric.observes}
        if not sites:
            return
        summarizer = self._summarizer
        module = self.loaded.module
        pixels = _for_model(batch.images, module)
        autocast = torch.autocast(pixels.device.type, dtype=torch.bfloat16) if amp else contextlib.nullcontext()
        with Recorder(module, self.loaded.family, self.layout, summarizer, sites=sites) as recorder, autocast:
            if not summarizer.laid_out:
                keep_freed_memory()
                # One image shows what has to be kept, so that there are places for it before the first whole batch.
                summarizer.start(batch.indices[:1])
                recorder.run(pixels[:1])
                summarizer.end()
            if not summarizer.has_room(len(pixels)):
                self.flush()
                summarizer.lay_out(-(-POOL_IMAGES // len(pixels)) * len(pixels))
            summarizer.start(batch.indices)
            recorder.run(pixels)
            summarizer.end()
        self._pending_names += batch.names
        if summarizer.images >= POOL_IMAGES:
            self.flush()

    def flush(self) -> None:
        """Hand the metrics what has been summarized since the last time."""
        if not self._pending_names:
            return
        with torch.no_grad():
            batch, names = self._summarizer.collect(), self._pending_names
            self._pending_names = []
            _check_finite(batch, names)
            for metric in self.applicable:
                metric.update(batch)

    def analysis(self, name: str, provenance: dict[str, Any], names: list[str]) -> Analysis:
        """The table, arrays and per-image values."""
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
            columns=pd.MultiIndex.from_tuples(columns, names=list(SERIES)) if columns else None,
            index=pd.Index(names[:images], name="image"),
            copy=False,
        )
        assert self.layout is not None
        return Analysis(name, self.layout, self.blocks, table, arrays, per_image, provenance, dict(self.not_applicable))


def _for_model(pixels_B3HW: Tensor, module: nn.Module) -> Tensor:
    """Images on the device and in the precision of the model's weights."""
    weights = next(module.parameters())
    return pixels_B3HW.to(weights.device, weights.dtype, non_blocking=True)


def _open(images: Any, loaded: LoadedModel, limit: int | None, seed: int) -> ImageSource:
    """The images, through the model's transform; batches that are tensors already bring their own size."""
    ready = isinstance(images, Tensor | DataLoader)
    size = None if ready else loaded.image_size
    return open_images(images, transform=loaded.transform(), limit=limit, seed=seed, image_size=size)


def _check_finite(batch: BatchSummary, names: Sequence[str]) -> None:
    # A token with a NaN or an infinity has a norm that is NaN or infinite.
    stacks = [(cells, cells.summary.norms, "") for cells in batch.stacks(TokenSummary)]
    stacks += [(cells, cells.summary.input.norms, "input of ") for cells in batch.stacks(NormSummary)]
    # Attention numbers alone take no tokens.
    for cells in batch.stacks(AttentionSummary):
        both = (cells.summary.cls_row, cells.summary.patch_to_prefix)
        stacks += [(cells, weights, "") for weights in both if weights is not None]
    for cells in batch.stacks(PatternSummary):
        if not cells.summary.layout.prefix:  # without prefix tokens all attention is the patches' and has a distance
            stacks.append((cells, cells.summary.patch_distance, ""))
    # All are positive, so a sum is finite if and only if all of it are; it takes no memory.
    if all(bool(torch.isfinite(norms.sum())) for _, norms, _ in stacks):
        return
    found = []
    for cells, norms, prefix in stacks:
        for row, image in (~torch.isfinite(norms.flatten(2)).all(-1)).nonzero().tolist():
            block, site = cells.keys[cells.rows.index(row)]
            place = _ORDER.index(str(site)) - (0.5 if prefix else 0)
            found.append((block is None, -1 if block is None else block, place, image, f"{prefix}{site}"))
    _, first, _, image, site = min(found)
    where = site if first < 0 else f"block {first}, {site}"
    raise NonFiniteActivation(
        f"NaN or infinity in the activations at {where}, first for image {names[image]!r}; no number after it would "
        "mean anything. Check the weights and the images, and try without --amp."
    )


def _world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _merge_ranks(
    run: _Run, indices: list[int], names: list[str], hashes: list[str], skipped: list[dict[str, str]], world_size: int
) -> tuple[list[str], list[str], list[dict[str, str]]]:
    """Merge all ranks' metrics into this run, in rank order; names, hashes and skipped images in image order."""
    if world_size > 1:
        mine = (run.applicable, run.not_applicable, run.image_size, run.layout, indices, names, hashes, skipped)
        buffer = io.BytesIO()
        torch.save(mine, buffer)
        received: list[Any] = [None] * world_size
        torch.distributed.all_gather_object(received, buffer.getvalue())
        # Our own processes' states, not somebody's file; each rank's device is its own, so they meet on the CPU.
        everyone = [torch.load(io.BytesIO(state), map_location="cpu", weights_only=False) for state in received]
        with_images = [state for state in everyone if state[4]]
        if with_images:
            run.applicable, run.not_applicable, run.image_size, run.layout = with_images[0][:4]
            for state in with_images[1:]:
                for metric, other in zip(run.applicable, state[0], strict=True):
                    metric.merge(other)
        indices = [index for state in everyone for index in state[4]]
        names = [name for state in everyone for name in state[5]]
        hashes = [value for state in everyone for value in state[6]]
        skipped = [item for state in everyone for item in state[7]]
    order = np.argsort(np.array(indices, dtype=np.int64), kind="stable")
    return [names[i] for i in order], [hashes[i] for i in order], skipped


def _skipped_text(skipped: list[dict[str, str]]) -> str:
    if not skipped:
        return "there are none"
    first = "; ".join(f"{item['name']}: {item['reason']}" for item in skipped[:3])
    return f"all {len(skipped)} were skipped ({first}{', …' if len(skipped) > 3 else ''})"


def _specialized(module: nn.Module) -> dict[str, Any]:
    """For the provenance of a specialized model: what has two sets of weights, and whose the first one is."""
    plan = plan_of(module)
    return {} if plan is None else {"specialization": plan.specialization.to_dict() | {"prefix": list(plan.groups)}}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
