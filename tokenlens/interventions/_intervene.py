"""Replace tokens of a model in forward passes, and measure what changes at its end."""

# Shapes: N images, E effects, S numbers that are summed over images.

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import nn

from tokenlens.analysis.processes import rank_and_world_size
from tokenlens.analysis.provenance import describe_images, describe_model, warn_about_images
from tokenlens.analysis.run import no_usable_image, open_for_model
from tokenlens.families import Family
from tokenlens.images import ImageSource, iterate_distinct
from tokenlens.interventions._intervention import Intervention
from tokenlens.interventions._photographs import join_photographs
from tokenlens.interventions._rows import to_table
from tokenlens.interventions._run import InterventionRun
from tokenlens.interventions._targets import CONTROL
from tokenlens.interventions.base import replacements
from tokenlens.models.loading import load_model
from tokenlens.probes import FittedProbe, ProbeResult, load_probe
from tokenlens.recording.recorder import evaluating
from tokenlens.statistics.bootstrap import bootstrap_interval
from tokenlens.storage.provenance import made_by
from tokenlens.storage.seeds import check_seed
from tokenlens.tokens import Site

Several = str | Sequence[str]
"""One name or several."""


def intervene(
    model: str | nn.Module,
    images: Any = "sample",
    *,
    replace: Several = "cls",
    by: Several = ("zero", "mean", "noise", "shuffle"),
    site: Several = "resid_post",
    blocks: Literal["each"] | Sequence[int] = "each",
    share: float = 0.25,
    probe: str | os.PathLike[str] | ProbeResult | None = None,
    data: Any = None,
    photos: bool = True,
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
    progress: Callable[[int, int | None], None] | None = None,
) -> Intervention:
    """Replace the tokens of a group at a site, block by block, and measure what the final tokens lose.

    Every combination of ``replace``, ``by``, ``site`` and ``blocks`` is a condition: one forward pass for each, one
    untouched pass, and one for means and spreads where a replacement needs them. The model is left as it was.

    Args:
        model, limit, workers, device, amp, checkpoint, pretrained, img_size, model_args, family: as in ``analyze``.
        images: as in ``analyze``; they are read twice, so a DataLoader must keep its order.
        replace: groups whose tokens are replaced: ``"cls"``, ``"reg"``, …; ``"patch"`` for a random ``share`` of the
            patches; ``"high_norm"`` for the patches that ``high_norm_patches`` finds at the block's ``resid_post``,
            with as many random other patches as a control (``"high_norm_control"``).
        by: names from ``tokenlens list replacements``.
        site: sites at which tokens are replaced; not ``q``, ``k`` and ``v``. Behind a norm (``norm1``, ``norm2``) only
            the branch that it feeds sees the replacement.
        blocks: ``"each"``, or block numbers; negative ones count from the end.
        share: share of the patches that ``"patch"`` replaces, in (0, 1].
        probe: a probe run of this model, whose score is measured under every condition. The images are then those that
            the run was tested on, and image size and preprocessing are the run's.
        data: the data set of the probe, if it is not where the run found it.
        photos: keep the first four images as small JPEGs; maps of their patches are kept in any case.
        batch_size: images per forward pass; the numbers do not depend on it.
        seed: seed for image sampling, random weights, the choice of patches, noise, and the order in which ``shuffle``
            passes tokens on.
        progress: called after each batch with the number of images done and in total (None if unknown).

    Returns:
        The Intervention. Under ``torch.distributed`` the ranks share the batches, and all return the merged result;
        ``shuffle`` then passes tokens on among the images of a rank.

    Raises:
        LookupError: for an unknown model, group, replacement or site, or a block that the model does not have.
        ValueError: for images or weights that cannot be used, a single image with ``shuffle``, a ``share`` outside
            (0, 1], activations that are not finite, and a probe run without a head, of another model or other images.
    """
    started, clock = dt.datetime.now(dt.UTC), time.perf_counter()
    check_seed(seed)
    kinds = {name: replacements.get(name)() for name in _several(by)}
    sites = [Site(name) for name in _several(site)]
    result = None if probe is None else load_probe(probe)
    if result is None and data is not None:
        raise ValueError("data names the data set of a probe; give the probe run as well, or images instead of data")
    if result is not None:
        if not (isinstance(images, str) and images == "sample"):
            raise ValueError(
                "with a probe, the images are those that it was tested on; leave images out, and use data if the "
                "data set is no longer where it was"
            )
        img_size = tuple(result.provenance["identity"]["image_size"]) if img_size is None else img_size
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
    fitted = None if result is None else FittedProbe(result, loaded, data, amp)
    source = open_for_model(images, loaded, limit, seed) if fitted is None else fitted.open(limit, seed)
    rank, world_size = rank_and_world_size()
    source, positions = _in_seeded_order(source, seed)
    batches = partial(iterate_distinct, source, batch_size, workers=workers, rank=rank, world_size=world_size)
    run = InterventionRun(loaded, kinds, sites, blocks, _targets(replace), share, seed, amp, positions, fitted)
    with evaluating(loaded.module):
        if run.observes:
            for batch in batches():
                run.observe(batch)
            run.merge_observed(world_size)
        if progress is not None:
            progress(0, source.total)
        for batch in batches():
            run.process(batch)
            if progress is not None:
                done = len(run.seen) * world_size
                progress(done if source.total is None else min(done, source.total), source.total)
    skipped = run.merge(world_size, source.skipped)
    if not run.seen:
        raise no_usable_image(source.description, skipped)
    described = describe_images(source, None if fitted else images, limit, run.seen, skipped)
    if rank == 0:
        warn_about_images(described)
    weights = next(loaded.module.parameters())
    provenance = {
        **describe_model(loaded),
        "images": described,
        **({"notes": run.notes} if run.notes else {}),
        "replace": list(run.targets),
        "by": list(kinds),
        "unseen": {name: kind.unseen for name, kind in kinds.items() if kind.unseen},
        "sites": [str(name) for name in sites],
        "blocks": run.blocks,
        "share": share,
        **({} if fitted is None else {"probe": _describe_probe(fitted, probe, run.untouched_counts())}),
        "image_size": list(run.image_size),
        "seed": seed,
        "device": str(weights.device),
        "dtype": "bfloat16 autocast" if amp else str(weights.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "world_size": world_size,
        **made_by("intervene"),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
    }
    rows, values_NE = run.rows()
    _explain_missing(run.not_applicable, rows)
    kept = [i for i, row in enumerate(rows) if row["n"] > 0]
    names = pd.Index([name for _, name, _ in run.seen], name="image")
    mean, std = (loaded.data_config[name] for name in ("mean", "std"))
    return Intervention(
        model=loaded.name,
        layout=run.layout,
        blocks=len(loaded.family.blocks(loaded.module)),
        table=to_table([rows[i] for i in kept], loaded.name),
        per_image=pd.DataFrame(values_NE[:, kept].astype(np.float32), index=names),
        provenance=provenance,
        not_applicable=dict(run.not_applicable),
        photographs=join_photographs(run.photographs, run.conditions, mean, std, photos),
    )


def _describe_probe(fitted: FittedProbe, run: Any, counts_NS: np.ndarray) -> dict[str, Any]:
    """Return the run, and the score of the untouched model on the images of the intervention."""

    def measure(sums_XS: np.ndarray) -> np.ndarray:
        return fitted.probe.measure(sums_XS)[:, None]

    low, high = bootstrap_interval(counts_NS, measure)
    return {
        "run": os.fspath(run) if isinstance(run, str | os.PathLike) else None,
        "task": fitted.result.task,
        "unit": fitted.result.unit,
        "score_of_run": fitted.result.value,
        "value": float(measure(counts_NS.sum(0, keepdims=True))[0, 0]),
        "ci_low": float(low[0]) if len(counts_NS) > 1 else None,
        "ci_high": float(high[0]) if len(counts_NS) > 1 else None,
        "n": len(counts_NS),
    }


def _explain_missing(not_applicable: dict[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Add the targets without a token in any image."""
    empty = [row for row in rows if row["n"] == 0]
    for replace in dict.fromkeys(row["replace"] for row in empty):
        blocks = sorted({row["block"] for row in empty if row["replace"] == replace})
        not_applicable[replace] = f"no image has such a token at block {', '.join(map(str, blocks))}"


def _several(names: Several) -> list[str]:
    found = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not found:
        raise ValueError("expected at least one name, got an empty list")
    return found


def _targets(replace: Several) -> list[str]:
    """Return the targets, with the control right after ``high_norm``."""
    targets = []
    for name in _several(replace):
        targets += [name, CONTROL] if name == "high_norm" else [name]
    return list(dict.fromkeys(targets))


def _in_seeded_order(source: ImageSource, seed: int) -> tuple[ImageSource, np.ndarray | None]:
    """Return the source with its images in seeded order, and the position of each in the order before."""
    if source.order is None:
        return source, None
    positions = np.random.default_rng([seed, 2]).permutation(len(source.order))
    return dataclasses.replace(source, order=source.order[positions], skipped=[]), positions
