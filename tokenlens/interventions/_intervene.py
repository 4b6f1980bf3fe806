"""Replace tokens of a model in forward passes, and measure what changes at its end."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tokenlens.analysis.finite import NonFiniteActivation
from tokenlens.analysis.processes import rank_and_world_size
from tokenlens.analysis.provenance import describe_images, describe_model, warn_about_images
from tokenlens.analysis.run import check_channels, no_usable_image, open_for_model, to_model
from tokenlens.families import Family
from tokenlens.images import Batch, ImageSource, iterate_distinct
from tokenlens.interventions._effects import RANGES, UNITS, EffectKey, class_logits, measure_effects
from tokenlens.interventions._hooks import Sites
from tokenlens.interventions._intervention import EFFECT_COLUMNS, Intervention
from tokenlens.interventions._statistics import TokenStatistics
from tokenlens.interventions._targets import CONTROL, check_target, chosen_tokens, generator
from tokenlens.interventions.base import Replaced, Replacement, replacements
from tokenlens.models.loading import LoadedModel, load_model
from tokenlens.recording.recorder import evaluating, resolve_blocks
from tokenlens.statistics.moments import Moments
from tokenlens.storage.provenance import made_by
from tokenlens.storage.seeds import check_seed
from tokenlens.tokens import Site, TokenLayout

Several = str | Sequence[str]
"""One name or several."""

SiteKey = tuple[Site, int]
"""Site and block."""


@dataclass(frozen=True)
class Condition:
    """One replacement at one site of one block."""

    replace: str
    by: str
    site: Site
    block: int


def intervene(
    model: str | nn.Module,
    images: Any = "sample",
    *,
    replace: Several = "cls",
    by: Several = ("zero", "mean", "noise", "shuffle"),
    site: Several = "resid_post",
    blocks: Literal["each"] | Sequence[int] = "each",
    share: float = 0.25,
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
            (0, 1], and activations that are not finite.
    """
    started, clock = dt.datetime.now(dt.UTC), time.perf_counter()
    check_seed(seed)
    kinds = {name: replacements.get(name)() for name in _several(by)}
    sites = [Site(name) for name in _several(site)]
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
    source, positions = _in_seeded_order(source, seed)
    batches = partial(iterate_distinct, source, batch_size, workers=workers, rank=rank, world_size=world_size)
    run = _Run(loaded, kinds, sites, blocks, _targets(replace), share, seed, amp, positions)
    with evaluating(loaded.module):
        if run.needs & {"statistics", "donors"}:
            for batch in batches():
                run.observe(batch)
            run.merge_statistics(world_size)
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
    described = describe_images(source, images, limit, run.seen, skipped)
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
    return run.to_intervention(provenance)


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


class _Run:
    """The passes over one model; the token layout is known from the first batch on."""

    def __init__(
        self,
        loaded: LoadedModel,
        kinds: dict[str, Replacement],
        sites: list[Site],
        blocks: Literal["each"] | Sequence[int],
        targets: list[str],
        share: float,
        seed: int,
        amp: bool,
        positions: np.ndarray | None,
    ) -> None:
        self.loaded, self.kinds, self.sites, self.targets = loaded, kinds, sites, targets
        self.share, self.seed, self.amp, self.positions = share, seed, amp, positions
        self.needs = frozenset().union(*(kind.needs for kind in kinds.values()))
        self.depth = len(loaded.family.blocks(loaded.module))
        self.blocks = _resolve_blocks(blocks, self.depth)
        self._all_blocks = blocks == "each"
        self.image_size = (0, 0)
        self.not_applicable: dict[str, str] = {}
        self.notes: list[str] = []
        self.conditions: list[Condition] = []
        self.seen: list[tuple[int, str, str]] = []
        self._layout: TokenLayout | None = None
        self._statistics: dict[SiteKey, TokenStatistics] = {}
        self._moments: dict[SiteKey, tuple[Tensor, Tensor]] = {}
        self._previous: dict[SiteKey, Tensor] = {}
        """The tokens of the image before the next batch, (1, T, D)."""
        self._values: list[dict[tuple[Condition, EffectKey], np.ndarray]] = []
        self._observed: list[str] = []

    # -- passes

    def observe(self, batch: Batch) -> None:
        """Add one batch to the means and spreads, and remember its last image."""
        with contextlib.ExitStack() as hooks:
            pixels = self._prepare(batch)
            for key in self._wanted:
                hooks.enter_context(self._sites.at(*key, partial(self._observe, key)))
            self._forward(pixels)
        self._observed += batch.hashes

    def _observe(self, key: SiteKey, x_BTD: Tensor) -> None:
        if "statistics" in self.needs:
            self._statistics.setdefault(key, TokenStatistics(self.layout)).update(x_BTD)
        if "donors" in self.needs:
            self._previous[key] = x_BTD[-1:].clone()

    def process(self, batch: Batch) -> None:
        """Run one batch untouched and under every condition."""
        pixels = self._prepare(batch)
        indices = batch.indices if self.positions is None else [int(self.positions[index]) for index in batch.indices]
        self._check_order(batch)
        kept: dict[SiteKey, Tensor] = {}
        norms: dict[int, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for key in self._wanted if "donors" in self.needs else ():
                hooks.enter_context(self._sites.at(*key, partial(kept.__setitem__, key)))
            for block in {condition.block for condition in self.conditions if "high_norm" in condition.replace}:
                keep = partial(_keep_norms, norms, block)
                hooks.enter_context(self._sites.at(Site.RESID_POST, block, keep))
            output, before_BTD = self._run(pixels)
        if not bool(torch.isfinite(before_BTD.sum())):
            raise NonFiniteActivation(
                "NaN or infinity in the final tokens of the untouched model; check the weights and the images, and try "
                "without reduced precision (amp)"
            )
        logits = class_logits(self.loaded.module, output)
        if logits is None:
            self.not_applicable["class_kl"] = self.not_applicable["class_agreement"] = "the model does not classify"
        noise_BTD = self._noise(indices, before_BTD) if "noise" in self.needs else None
        masks: dict[tuple[str, int], Tensor] = {}
        effects: dict[tuple[Condition, EffectKey], Tensor] = {}
        for condition in self.conditions:
            block, target = condition.block, condition.replace
            if (target, block) not in masks:
                masks[target, block] = chosen_tokens(
                    target, self.layout, norms.get(block), indices, self.share, self.seed
                ).to(pixels.device)
            replaced_BT = masks[target, block]
            key = (condition.site, block)
            donors_BTD = torch.cat([self._previous[key], kept[key][:-1]]) if key in kept else None
            change = partial(self._replace, condition, replaced_BT, noise_BTD, donors_BTD)
            with self._sites.at(*key, change):
                output, after_BTD = self._run(pixels)
            changed = None if logits is None else class_logits(self.loaded.module, output)
            measured = measure_effects(self.layout, before_BTD, after_BTD, replaced_BT, logits, changed)
            effects |= {(condition, effect): values_B for effect, values_B in measured.items()}
        self._previous |= {key: x_BTD[-1:].clone() for key, x_BTD in kept.items()}
        values = torch.stack(list(effects.values())).cpu().numpy()  # one copy to the host for all conditions
        self._values.append(dict(zip(effects, values, strict=True)))
        self.seen += zip(indices, batch.names, batch.hashes, strict=True)

    def _replace(
        self,
        condition: Condition,
        replaced_BT: Tensor,
        noise_BTD: Tensor | None,
        donors_BTD: Tensor | None,
        x_BTD: Tensor,
    ) -> Tensor:
        mean_TD, sd_TD = self._moments.get((condition.site, condition.block), (None, None))
        new = self.kinds[condition.by].compute(
            Replaced(
                x_BTD,
                None if mean_TD is None else mean_TD.to(x_BTD.device, x_BTD.dtype),
                None if sd_TD is None else sd_TD.to(x_BTD.device, x_BTD.dtype),
                None if noise_BTD is None else noise_BTD.to(x_BTD.dtype),
                donors_BTD,
            )
        )
        return torch.where(replaced_BT.unsqueeze(-1), new, x_BTD)

    def _run(self, pixels: Tensor) -> tuple[Any, Tensor]:
        """Return the model's output and its final tokens."""
        final: list[Tensor] = []
        site, block = (Site.RESID_POST, self.depth - 1) if self._sites.final_norm is None else (Site.FINAL_NORM, 0)
        with self._sites.at(site, block, final.append):
            output = self._forward(pixels)
        return output, final[0]

    def _forward(self, pixels: Tensor) -> Any:
        amp = torch.autocast(pixels.device.type, dtype=torch.bfloat16) if self.amp else contextlib.nullcontext()
        with amp:
            return self.loaded.family.forward(self.loaded.module, pixels)

    # -- preparation

    @property
    def layout(self) -> TokenLayout:
        """The model's tokens."""
        assert self._layout is not None
        return self._layout

    def _prepare(self, batch: Batch) -> Tensor:
        height, width = batch.images.shape[-2:]
        if self._layout is None:
            self.image_size = (height, width)
            self._layout = self.loaded.family.layout(self.loaded.module, self.image_size)
            self._sites = Sites(self.loaded.module, self.loaded.family, self._layout)
            notes = (self.loaded.note, self._layout.border_note(self.image_size))
            self.notes = [note for note in (*notes, *self.loaded.family.notes(self.loaded.module)) if note]
            check_channels(batch.images, self.loaded)
            self._choose_conditions()
        elif (height, width) != self.image_size:
            raise ValueError(
                f"all images must have the same size; the first batch had {self.image_size}, a later one "
                f"{(height, width)}"
            )
        return to_model(batch.images, self.loaded.module)

    def _choose_conditions(self) -> None:
        for target in self.targets:
            reason = check_target(target, self.layout, self.share)
            if reason is not None:
                raise LookupError(f"{target!r} cannot be replaced: {reason}")
        if self._all_blocks and (lacking := [block for block in self.blocks if not self._sites.has_all_tokens(block)]):
            self.not_applicable[f"block {', '.join(map(str, lacking))}"] = "the block lacks some of the model's tokens"
            self.blocks = [block for block in self.blocks if block not in lacking]
        for site in self.sites:
            for block in self.blocks:
                self._sites.check(site, block)
        self.conditions = [
            Condition(target, by, site, block)
            for target in self.targets
            for by in self.kinds
            for site in self.sites
            for block in self.blocks
        ]
        self._wanted = [(site, block) for site in self.sites for block in self.blocks]

    def _check_order(self, batch: Batch) -> None:
        if not self.needs & {"statistics", "donors"}:
            return
        first = len(self.seen)
        if self._observed[first : first + len(batch.hashes)] != batch.hashes:
            raise ValueError("the images came in another order when they were read again; pass a source that keeps it")
        if "donors" in self.needs and len(self._observed) < 2:
            raise ValueError("shuffle needs at least two images (in each process); got one")

    def _noise(self, indices: Sequence[int], like_BTD: Tensor) -> Tensor:
        shape = like_BTD.shape[1:]
        drawn = [torch.randn(shape, generator=generator(self.seed, image, use=3)) for image in indices]
        return torch.stack(drawn).to(like_BTD.device)

    # -- results

    def merge_statistics(self, world_size: int) -> None:
        """Merge the means and spreads of all processes."""
        if world_size > 1:
            received: list[Any] = [None] * world_size
            torch.distributed.all_gather_object(received, self._statistics)
            merged: dict[SiteKey, TokenStatistics] = {}
            for statistics in received:
                for key, found in statistics.items():
                    merged.setdefault(key, TokenStatistics(found.layout)).merge(found)
            self._statistics = merged
        self._moments = {key: found.moments() for key, found in self._statistics.items()}

    def merge(self, world_size: int, skipped: list[dict[str, str]]) -> list[dict[str, str]]:
        """Merge the values of all processes, in the order of the images; return all skipped images."""
        if world_size > 1:
            received: list[Any] = [None] * world_size
            mine = (self.seen, self._values, self.conditions, self._layout, self.image_size, self.not_applicable)
            torch.distributed.all_gather_object(received, (*mine, skipped))
            with_images = [state for state in received if state[0]]
            if with_images:
                _, _, self.conditions, self._layout, self.image_size, self.not_applicable, _ = with_images[0]
            self.seen = [image for state in received for image in state[0]]
            self._values = [values for state in received for values in state[1]]
            skipped = [image for state in received for image in state[-1]]
        self._order = np.argsort([index for index, *_ in self.seen], kind="stable")
        self.seen = [self.seen[position] for position in self._order]
        return skipped

    def to_intervention(self, provenance: dict[str, Any]) -> Intervention:
        """Return the result: per effect its mean, spread and interval over images."""
        keys = list(dict.fromkeys(key for values in self._values for key in values))
        columns = [
            np.concatenate([values.get(key, np.full(_length(values), np.nan)) for values in self._values])[self._order]
            for key in keys
        ]
        values_NS = np.stack(columns, axis=1)
        moments = Moments()
        moments.update(values_NS)
        # Student's interval knows no bounds, which the quantities have.
        ranges = np.array([RANGES.get(UNITS[metric], (-np.inf, np.inf)) for _, (metric, *_) in keys])
        low, high = (np.clip(end, *ranges.T) for end in moments.interval())
        rows = [
            {
                "replace": condition.replace,
                "by": condition.by,
                "metric": metric,
                "part": part,
                "block": condition.block,
                "site": str(condition.site),
                "group": group,
                "value": moments.mean[i],
                "sd": moments.sd[i],
                "n": moments.n[i],
                "ci_low": low[i],
                "ci_high": high[i],
                "unit": UNITS[metric],
            }
            for i, (condition, (metric, part, group)) in enumerate(keys)
        ]
        table = pd.DataFrame(rows).assign(model=self.loaded.name, head=pd.NA)
        texts = dict.fromkeys(("model", "replace", "by", "metric", "part", "site", "group", "unit"), "str")
        table = table.astype(texts | {"block": "Int64", "head": "Int64", "n": "int64"})[list(EFFECT_COLUMNS)]
        kept = np.flatnonzero(moments.n > 0)
        empty = [row for row in rows if row["n"] == 0]
        for replace in dict.fromkeys(row["replace"] for row in empty):
            blocks = sorted({row["block"] for row in empty if row["replace"] == replace})
            self.not_applicable[replace] = f"no image has such a token at block {', '.join(map(str, blocks))}"
        per_image = pd.DataFrame(
            values_NS[:, kept].astype(np.float32), index=pd.Index([name for _, name, _ in self.seen], name="image")
        )
        table = table.iloc[kept].reset_index(drop=True)
        return Intervention(
            self.loaded.name, self.layout, self.depth, table, per_image, provenance, dict(self.not_applicable)
        )


def _keep_norms(norms: dict[int, Tensor], block: int, x_BTD: Tensor) -> None:
    norms[block] = torch.linalg.vector_norm(x_BTD.float(), dim=-1)


def _length(values: dict[Any, np.ndarray]) -> int:
    return len(next(iter(values.values())))


def _resolve_blocks(blocks: Literal["each"] | Sequence[int], depth: int) -> list[int]:
    """Return block numbers from 0, in order."""
    if isinstance(blocks, str):
        if blocks != "each":
            raise ValueError(f"blocks must be 'each' or a list of block numbers, got {blocks!r}")
        return list(range(depth))
    if not blocks:
        raise LookupError(f"expected at least one of the blocks 0 to {depth - 1}, got none")
    return resolve_blocks(blocks, depth)
