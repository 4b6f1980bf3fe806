"""The forward passes of an intervention over one model, untouched and under every condition."""

# Shapes: B images, T tokens, P patches, D channels, N images in all, S numbers that are summed over images.

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tokenlens.analysis.finite import NonFiniteActivation
from tokenlens.analysis.run import check_channels, to_model
from tokenlens.images import Batch
from tokenlens.interventions._effects import EffectKey, PassEnd, class_logits, measure_effects
from tokenlens.interventions._hooks import Sites
from tokenlens.interventions._neurons import NeuronSums
from tokenlens.interventions._photographs import PhotographMaps, choose_photographs
from tokenlens.interventions._rows import effect_rows, score_rows
from tokenlens.interventions._statistics import TokenStatistics
from tokenlens.interventions._targets import check_target, chosen_tokens, generator
from tokenlens.interventions.base import Condition, Given, Replacement
from tokenlens.models.loading import LoadedModel
from tokenlens.probes import FittedProbe
from tokenlens.recording.recorder import resolve_blocks
from tokenlens.tokens import Site, TokenLayout

SiteKey = tuple[Site, int]
"""Site and block."""

TargetKey = tuple[str, int]
"""Target and block."""

_GATHERED = ("seen", "_values", "_counts", "photographs")
_SHARED = ("conditions", "_layout", "image_size", "not_applicable", "blocks", "notes")


class InterventionRun:
    """The passes over one model; the token layout is known from the first batch on.

    Args:
        loaded: the model.
        kinds: the replacements by name.
        sites, blocks, targets, share, seed, amp: as in ``intervene``.
        positions: the position in the source of each image in the order of reading; None for the order of reading.
        probe: scored under every condition.
    """

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
        probe: FittedProbe | None,
    ) -> None:
        self.loaded, self.kinds, self.sites, self.targets = loaded, kinds, sites, targets
        self.share, self.seed, self.amp, self.positions, self.probe = share, seed, amp, positions, probe
        self.needs = frozenset().union(*(kind.needs for kind in kinds.values()))
        self.blocks = _resolve_blocks(blocks, len(loaded.family.blocks(loaded.module)))
        self._all_blocks = blocks == "each"
        self.image_size = (0, 0)
        self.not_applicable: dict[str, str] = {}
        self.notes: list[str] = []
        self.conditions: list[Condition] = []
        self.seen: list[tuple[int, str, str]] = []
        self.photographs: list[PhotographMaps] = []
        self._layout: TokenLayout | None = None
        self._statistics: dict[SiteKey, TokenStatistics] = {}
        self._moments: dict[SiteKey, tuple[Tensor, Tensor]] = {}
        self._neuron_sums: dict[TargetKey, NeuronSums] = {}
        self._neurons: dict[TargetKey, dict[int, Tensor]] = {}
        self._previous: dict[SiteKey, Tensor] = {}
        """The tokens of the image before the next batch, (1, T, D)."""
        self._values: list[dict[tuple[Condition, EffectKey], np.ndarray]] = []
        self._counts: list[dict[Condition | None, np.ndarray]] = []
        self._observed: list[str] = []

    # -- passes

    @property
    def observes(self) -> bool:
        """Return whether a pass over the images precedes the measured ones."""
        return bool(self.needs & {"statistics", "donors", "neurons"})

    def observe(self, batch: Batch) -> None:
        """Add one batch to the means, spreads and activations of neurons, and remember its last image."""
        norms: dict[int, Tensor] = {}
        hidden: dict[int, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            pixels = self._prepare(batch)
            for key in self._wanted if self.needs & {"statistics", "donors"} else ():
                hooks.enter_context(self._sites.at(*key, partial(self._observe, key)))
            if "neurons" in self.needs:
                self._keep_norms(hooks, norms)
                for block in range(max(self.blocks) + 1):
                    keep = partial(hidden.__setitem__, block)
                    hooks.enter_context(self._sites.at_hidden(block, keep, added=0))
            self._forward(pixels)
        if "neurons" in self.needs:
            indices = self._indices(batch)
            for target, last in dict.fromkeys((each.replace, each.block) for each in self.conditions):
                marked_BT = self._chosen(target, norms.get(last), indices).to(pixels.device)
                before = {block: hidden[block] for block in range(last + 1)}
                self._neuron_sums.setdefault((target, last), NeuronSums()).update(before, marked_BT)
        self._observed += batch.hashes

    def _observe(self, key: SiteKey, x_BTD: Tensor) -> None:
        if "statistics" in self.needs:
            self._statistics.setdefault(key, TokenStatistics(self.layout)).update(x_BTD)
        if "donors" in self.needs:
            self._previous[key] = x_BTD[-1:].clone()

    def process(self, batch: Batch) -> None:
        """Run one batch untouched and under every condition."""
        pixels = self._prepare(batch)
        indices = self._indices(batch)
        self._check_order(batch)
        kept: dict[SiteKey, Tensor] = {}
        norms: dict[int, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for key in self._wanted if "donors" in self.needs else ():
                hooks.enter_context(self._sites.at(*key, partial(kept.__setitem__, key)))
            self._keep_norms(hooks, norms)
            before = self._run(pixels, batch.names)
        if not bool(torch.isfinite(before.final_BTD.sum())):
            raise NonFiniteActivation(
                "NaN or infinity in the final tokens of the untouched model; check the weights and the images, and try "
                "without reduced precision (amp)"
            )
        if before.logits_BK is None:
            self.not_applicable["class_kl"] = self.not_applicable["class_agreement"] = "the model does not classify"
        maps = self._start_photographs(batch, indices, before.final_BTD)
        noise_BTD = self._noise(indices, before.final_BTD) if "noise" in self.needs else None
        masks: dict[TargetKey, Tensor] = {}
        effects: dict[tuple[Condition, EffectKey], Tensor] = {}
        counts: dict[Condition | None, np.ndarray] = {} if before.counts_BS is None else {None: before.counts_BS}
        for condition in self.conditions:
            target = condition.replace, condition.block
            if target not in masks:
                masks[target] = self._chosen(condition.replace, norms.get(condition.block), indices).to(pixels.device)
            kind, key = self.kinds[condition.by], (condition.site, condition.block)
            mean_TD, sd_TD = self._moments.get(key, (None, None))
            donors_BTD = torch.cat([self._previous[key], kept[key][:-1]]) if key in kept else None
            neurons = self._neurons.get(target) if "neurons" in kind.needs else None
            given = Given(mean_TD, sd_TD, noise_BTD, donors_BTD, neurons)
            with kind.applied(self._sites, *key, masks[target], given):
                after = self._run(pixels, batch.names)
            everywhere = kind.everywhere and bool(neurons)
            measured = measure_effects(self.layout, before, after, masks[target], everywhere)
            effects |= {(condition, effect): values_B for effect, values_B in measured.items()}
            if after.counts_BS is not None:
                counts[condition] = after.counts_BS
            for row, each in maps.items():
                each.add(self.layout.patches_of(after.final_BTD)[row])
        self._previous |= {key: x_BTD[-1:].clone() for key, x_BTD in kept.items()}
        values = torch.stack(list(effects.values())).cpu().numpy()  # one copy to the host for all conditions
        self._values.append(dict(zip(effects, values, strict=True)))
        self._counts.append(counts)
        self.photographs += maps.values()
        self.seen += zip(indices, batch.names, batch.hashes, strict=True)

    def _run(self, pixels: Tensor, names: Sequence[str]) -> PassEnd:
        final: list[Tensor] = []
        stream: list[Tensor] = []
        features: dict[str, Tensor] = {}
        with self._sites.at_end(final.append, stream.append):
            if self.probe is None:
                output = self._forward(pixels)
            else:
                output, features = self.probe.backbone.forward(pixels)
        norms_BP = None
        if stream:
            norms_BP = torch.linalg.vector_norm(self.layout.patches_of(stream[0]).float(), dim=-1)
        added_BD = self._sites.added_BD
        return PassEnd(
            final[0],
            class_logits(self.loaded.module, output),
            norms_BP,
            None if added_BD is None else torch.linalg.vector_norm(added_BD.float(), dim=-1),
            None if self.probe is None else self.probe.count(features, names),
        )

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
        self.conditions = [
            Condition(target, by, site, block)
            for target in self.targets
            for by in self.kinds
            for site in self.sites
            for block in self.blocks
        ]
        for each in self.conditions:
            self.kinds[each.by].check(self._sites, each.replace, each.site, each.block)
        self._wanted = [(site, block) for site in self.sites for block in self.blocks]
        if self._sites.final_stream is None:
            reason = "no module outputs the residual stream of all tokens behind the last block"
            self.not_applicable["max_patch_norm"] = self.not_applicable["high_norm_share"] = reason

    def _indices(self, batch: Batch) -> list[int]:
        """Return the positions of the images in their source."""
        return batch.indices if self.positions is None else [int(self.positions[index]) for index in batch.indices]

    def _keep_norms(self, hooks: contextlib.ExitStack, norms: dict[int, Tensor]) -> None:
        """Keep the norms of the tokens at ``resid_post`` of the blocks where high-norm patches are replaced."""

        def keep(block: int, x_BTD: Tensor) -> None:
            norms[block] = torch.linalg.vector_norm(x_BTD.float(), dim=-1)

        for block in {condition.block for condition in self.conditions if "high_norm" in condition.replace}:
            hooks.enter_context(self._sites.at(Site.RESID_POST, block, partial(keep, block)))

    def _chosen(self, target: str, norms_BT: Tensor | None, indices: Sequence[int]) -> Tensor:
        return chosen_tokens(target, self.layout, norms_BT, indices, self.share, self.seed)

    def _start_photographs(self, batch: Batch, indices: Sequence[int], final_BTD: Tensor) -> dict[int, PhotographMaps]:
        patch_BPD = self.layout.patches_of(final_BTD)
        return {
            row: PhotographMaps(
                indices[row],
                batch.names[row],
                batch.hashes[row],
                batch.images[row].clone(),
                patch_BPD[row],
                self.layout.grid,
            )
            for row in choose_photographs(indices)
        }

    def _check_order(self, batch: Batch) -> None:
        if not self.observes:
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

    def merge_observed(self, world_size: int) -> None:
        """Merge what all processes observed."""
        if world_size > 1:
            states = _gather((self._statistics, self._neuron_sums), world_size)
            self._statistics, self._neuron_sums = (_merged(each) for each in zip(*states, strict=True))
        device = next(self.loaded.module.parameters()).device
        for key, found in self._statistics.items():
            mean_TD, sd_TD = found.moments()
            self._moments[key] = mean_TD.float().to(device), sd_TD.float().to(device)
        self._neurons = {key: sums.largest() for key, sums in self._neuron_sums.items()}

    def merge(self, world_size: int, skipped: list[dict[str, str]]) -> list[dict[str, str]]:
        """Merge the values of all processes, in the order of the images; return all skipped images."""
        if world_size > 1:
            states = _gather(({name: getattr(self, name) for name in (*_GATHERED, *_SHARED)}, skipped), world_size)
            for name in _GATHERED:
                setattr(self, name, [item for state, _ in states for item in state[name]])
            first = next((state for state, _ in states if state["seen"]), None)
            for name in _SHARED if first is not None else ():
                assert first is not None
                setattr(self, name, first[name])
            skipped = [image for _, images in states for image in images]
        self._order = np.argsort([index for index, *_ in self.seen], kind="stable")
        self.seen = [self.seen[position] for position in self._order]
        return skipped

    def rows(self) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Return the rows of the table, those of a condition together, and the values per image, (N, rows)."""
        values = _joined(self._values, self._order)
        rows, columns_NE = effect_rows(values)
        if self.probe is not None:
            counted = {
                condition: np.isfinite(values[condition, ("final_cosine", "all", "patch")])
                for condition in self.conditions
            }
            scores, scores_NE = score_rows(self.probe.probe, _joined(self._counts, self._order), counted)
            rows, columns_NE = rows + scores, np.concatenate([columns_NE, scores_NE], axis=1)
        place = {condition.key(): i for i, condition in enumerate(self.conditions)}
        order = sorted(
            range(len(rows)), key=lambda i: place[tuple(rows[i][name] for name in ("replace", "by", "site", "block"))]
        )
        return [rows[i] for i in order], columns_NE[:, order]

    def untouched_counts(self) -> np.ndarray:
        """Return the numbers per image whose sums give the score of the probe in the untouched model, (N, S)."""
        return _joined(self._counts, self._order)[None]


def _joined(batches: Sequence[dict[Any, np.ndarray]], order: np.ndarray) -> dict[Any, np.ndarray]:
    """Return the values of all images under each key, in order; NaN for a batch without the key."""
    found = {}
    for key in dict.fromkeys(key for values in batches for key in values):
        shape = next(values[key].shape[1:] for values in batches if key in values)
        parts = [values.get(key, np.full((len(next(iter(values.values()))), *shape), np.nan)) for values in batches]
        found[key] = np.concatenate(parts)[order]
    return found


def _gather(state: Any, world_size: int) -> list[Any]:
    received: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(received, state)
    return received


def _merged(states: Iterable[dict[Any, Any]]) -> dict[Any, Any]:
    merged: dict[Any, Any] = {}
    for state in states:
        for key, found in state.items():
            if key in merged:
                merged[key].merge(found)
            else:
                merged[key] = found
    return merged


def _resolve_blocks(blocks: Literal["each"] | Iterable[int], depth: int) -> list[int]:
    """Return block numbers from 0, in order."""
    if isinstance(blocks, str):
        if blocks != "each":
            raise ValueError(f"blocks must be 'each' or a list of block numbers, got {blocks!r}")
        return list(range(depth))
    numbers = list(blocks)
    if not numbers:
        raise LookupError(f"expected at least one of the blocks 0 to {depth - 1}, got none")
    return resolve_blocks(numbers, depth)
