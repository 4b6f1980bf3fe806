"""The blocks of a model whose tokens have the same layout, with the metrics that observe them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property

from torch import nn

from tokenlens.families.base import Family
from tokenlens.metrics import TOKEN_REDUCTIONS, AccumulatingMetric, HookMetric, Metric, Subject
from tokenlens.reduction.choice import choose_kernels
from tokenlens.reduction.reducer import Reducer
from tokenlens.reduction.summaries import Reduction
from tokenlens.tokens import HEAD_SITES, Site, TokenLayout


class BlockGroup:
    """The blocks with one layout (nearly always all of them), their metrics and their reducer.

    Args:
        blocks: numbers of the blocks; None is the model's final norm.
        layout: the tokens of these blocks.
        subject: the model with this layout.
        chosen: fresh metrics; those that apply are in ``metrics``, the reasons for the others in ``not_applicable``.
    """

    def __init__(
        self, blocks: Sequence[int | None], layout: TokenLayout, subject: Subject, chosen: Sequence[Metric]
    ) -> None:
        self.blocks = list(blocks)
        self.layout = layout
        self.subject = subject
        self.metrics: list[Metric] = []
        self.not_applicable: dict[str, str] = {}
        for metric in chosen:
            reason = metric.prepare(subject)
            if reason is None:
                self.metrics.append(metric)
            else:
                self.not_applicable[metric.name] = reason

    @cached_property
    def reducer(self) -> Reducer:
        """The reducer of these blocks' activations."""
        wanted: dict[str, set[Reduction]] = {}
        for metric in self.metrics:
            reductions = TOKEN_REDUCTIONS & metric.needs
            # Attention metrics observe q only to see the kernel call; they need no sums over tokens there.
            if reductions or "pattern" not in metric.needs:
                for site in metric.observes:
                    wanted.setdefault(str(site), set()).update(reductions)
        needs = {need for metric in self.metrics for need in metric.needs}
        raw = [(m.name, m.looks_at, m.receive_activation) for m in self.metrics if isinstance(m, HookMetric)]
        sums = [(m.name, m.chosen_sites, m.add_tokens) for m in self.metrics if isinstance(m, AccumulatingMetric)]
        device = next(self.subject.model.parameters()).device
        return Reducer(
            self.subject.layout,
            wanted,
            needs,
            raw=[*raw, *sums],
            kernels=choose_kernels(device)[0](self.subject.layout),
        )

    @property
    def where(self) -> str:
        """The blocks in words."""
        numbers = [block for block in self.blocks if block is not None]
        blocks = f"blocks {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"block {numbers[0]}"
        return f"{blocks} and the final norm" if None in self.blocks else blocks


def group_blocks(
    module: nn.Module,
    family: Family,
    layout: TokenLayout,
    chosen: Sequence[Metric],
    keep_images: int,
    expensive: bool,
) -> list[BlockGroup]:
    """Group a model's blocks by the layout of their tokens; the final norm and the pooling belong to ``layout``."""
    modules = list(family.blocks(module))
    layouts = [family.block_layout(block, layout) for block in modules]
    groups: list[BlockGroup] = []
    kinds = list(dict.fromkeys(layouts))
    fresh = [list(chosen), *(copy.deepcopy(list(chosen)) for _ in kinds[1:])]
    for own, metrics in zip(kinds, fresh, strict=True):
        numbers: list[int | None] = [number for number, other in enumerate(layouts) if other == own]
        taps = [family.taps(modules[number]) for number in numbers if number is not None]
        sites = {str(site) for tap in taps for site in tap.sites}
        if any(tap.attention is not None for tap in taps):
            sites |= {str(site) for site in HEAD_SITES}
        if own == layout:
            numbers.append(None)
            sites |= {str(Site.FINAL_NORM)} if family.final_norm(module) is not None else set()
            sites |= {str(Site.POOL)} if family.pooling(module) is not None else set()
        subject = Subject(
            module,
            own,
            len(modules),
            frozenset(sites),
            keep_images,
            expensive,
            all_attend=all(tap.queries is None for tap in taps),
            family=family,
        )
        groups.append(BlockGroup(numbers, own, subject, metrics))
    return groups
