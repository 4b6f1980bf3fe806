"""Run a model over images once and measure how its tokens differ."""

from __future__ import annotations

import copy
import datetime as dt
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from tokenlens.analysis.analysis import Analysis
from tokenlens.analysis.processes import merge_ranks, rank_and_world_size
from tokenlens.analysis.provenance import Seen, describe_images, describe_model, warn_about_images
from tokenlens.analysis.run import AnalysisRun, no_usable_image, open_for_model
from tokenlens.families.base import Family
from tokenlens.images import iterate_distinct
from tokenlens.images.preprocessing import Batch
from tokenlens.metrics import Metric
from tokenlens.metrics import metrics as metric_catalog
from tokenlens.models.loading import load_model
from tokenlens.recording.recorder import evaluating
from tokenlens.reduction.choice import choose_kernels
from tokenlens.storage.provenance import made_by
from tokenlens.storage.seeds import check_seed

Choice = str | type[Metric] | Metric
"""A metric by its name, its class or an instance."""


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
    model_args: Mapping[str, Any] | None = None,
    family: Family | None = None,
    keep_images: int = 4096,
    photos: bool = True,
    progress: Callable[[int, int | None], None] | None = None,
) -> Analysis:
    """Run a model over images once and measure how its CLS, register and patch tokens differ at every site.

    Args:
        model: a name (timm, ``hf-hub:``, ``local-dir:``, a run folder of a training) or any module that a family knows,
            alone or as the only one inside a wrapper; it is not modified.
        images: a folder, a file, ``"sample"``, ``hfds/…``, ``wds/…``, a preprocessed tensor (N, C, H, W), a Dataset
            or a DataLoader.
        metrics: names from ``tokenlens list metrics``, ``Metric`` classes or instances, or ``"all"``. By default every
            metric at the sites that cost little; a metric that is named is taken at its expensive sites as well.
        limit: maximum number of images.
        batch_size: images per forward pass; the numbers do not depend on it.
        workers: number of processes that decode images.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``, …
        amp: run the model under autocast in bfloat16; metrics are computed in float32 and float64.
        seed: seed for image sampling, sample crops and random weights.
        checkpoint: file of weights to load instead of the published ones.
        pretrained: False for random weights; the result is then marked as untrained.
        img_size: image side, or (height, width), where the model allows another size.
        model_args: arguments of the constructor of a named timm model, as in ``load_model``.
        family: location of tokens and sites in a model that tokenlens does not know.
        keep_images: maximum number of images whose values are kept one by one; means and spreads cover all images.
        photos: keep the first four images as small JPEGs, which the run folder and its page then contain. Without them,
            maps of their patches are kept still.
        progress: called after each batch with the number of images done and in total (None if unknown).

    Returns:
        The Analysis. Under ``torch.distributed`` the ranks share the batches, and all return the merged result.

    Raises:
        LookupError: for an unknown model, metric or family.
        ValueError: for images or weights that cannot be used, incomplete recordings and non-finite activations.
    """
    started, clock = dt.datetime.now(dt.UTC), time.perf_counter()
    chosen = choose_metrics(metrics)
    check_seed(seed)
    loaded = load_model(
        model,
        pretrained=pretrained,
        checkpoint=checkpoint,
        img_size=img_size,
        model_args=model_args,
        device=device,
        seed=seed,
        family=family,
    )
    source = open_for_model(images, loaded, limit, seed)
    rank, world_size = rank_and_world_size()
    run = AnalysisRun(loaded, chosen, keep_images, expensive=metrics is not None)
    seen: Seen = []

    def count(batch: Batch) -> None:
        seen.extend(zip(batch.indices, batch.names, batch.hashes, strict=True))
        if progress is not None:
            done = len(seen) * world_size
            progress(done if source.total is None else min(done, source.total), source.total)

    with evaluating(loaded.module):
        if progress is not None:
            progress(0, source.total)
        run.process(iterate_distinct(source, batch_size, workers, rank, world_size), amp, count)
    seen, skipped = merge_ranks(run, seen, source.skipped, world_size)
    if not seen:
        raise no_usable_image(source.description, skipped)
    described = describe_images(source, images, limit, seen, skipped)
    if rank == 0:
        warn_about_images(described)
    weights = next(loaded.module.parameters())
    provenance = {
        **describe_model(loaded),
        "images": described | {"kept_per_image": min(len(seen), keep_images)},
        "transform": {k: list(v) if isinstance(v, tuple) else v for k, v in loaded.data_config.items()},
        "image_size": list(run.image_size),
        **({"notes": run.notes} if run.notes else {}),
        "seed": seed,
        "device": str(weights.device),
        "kernels": choose_kernels(weights.device)[1],
        "dtype": "bfloat16 autocast" if amp else str(weights.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "world_size": world_size,
        **made_by("analyze"),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
    }
    analysis = run.to_analysis(loaded.name, provenance, described["names"])
    if run.photographs is not None:
        mean, std = (loaded.data_config[name] for name in ("mean", "std"))
        analysis.photographs = run.photographs.photographs(mean, std, photos)
    return analysis


def choose_metrics(metrics: Choice | Sequence[Choice] | None) -> list[Metric]:
    """Return fresh metrics for one analysis.

    Args:
        metrics: None for all metrics that are not opt-in, ``"all"``, or names, classes and instances. Instances are
            copied, so that they can be used again.

    Raises:
        LookupError: for an unknown name.
        ValueError: for an empty list, anything that is not a metric, and a metric whose name is missing or taken.
    """
    names = metric_catalog.names()
    wanted: Sequence[Choice]
    if metrics is None:
        wanted = [name for name in names if not metric_catalog.get(name).is_opt_in()]
    elif metrics == "all":
        wanted = names
    else:
        wanted = [metrics] if isinstance(metrics, str | type | Metric) else list(dict.fromkeys(metrics))
    if not wanted:
        raise ValueError("metrics is an empty list; leave it out for the default metrics")
    chosen = [_fresh(metric) for metric in wanted]
    _check_names(chosen)
    return chosen


def _fresh(metric: Choice) -> Metric:
    """Return a metric that has seen no image yet."""
    if isinstance(metric, str):
        found: Metric = metric_catalog.get(metric)()
        return found
    if isinstance(metric, type) and issubclass(metric, Metric):
        return metric()
    if isinstance(metric, Metric):
        return copy.deepcopy(metric)
    raise ValueError(f"a metric must be a name, a Metric class or an instance of one, got {metric!r}")


def _check_names(chosen: Sequence[Metric]) -> None:
    """Raise ValueError unless each metric has a name that no other metric has."""
    known, seen = set(metric_catalog.names()), set()
    for metric in chosen:
        kind = type(metric).__qualname__
        if not metric.name:
            raise ValueError(f'the metric {kind} has no name; set one in its class: name = "…"')
        if metric.name in seen or (metric.name in known and type(metric) is not metric_catalog.get(metric.name)):
            raise ValueError(f"the name {metric.name!r} of the metric {kind} is taken; choose another")
        seen.add(metric.name)
