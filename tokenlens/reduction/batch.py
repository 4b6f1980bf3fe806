"""Where the summary of each cell lies, and many of them read as one: what a batch leaves to the metrics."""

# Shapes: N cells (block, site), B images, D channels.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokenlens.families.base import NormParameters
from tokenlens.reduction.buffers import Places, rows_of
from tokenlens.reduction.summaries import (
    AttentionSummary,
    Kind,
    NormSummary,
    PatternSummary,
    TokenSummary,
    UpdateSummary,
    precise,
)
from tokenlens.tokens import Key, TokenLayout

_VECTORS = ("rows", "patch_abs_sum", "stage_sums")
"""Fields that stay in float32, since sums over channels of their products do; they are half of all memory."""

_OF_A_NORM = ("weight_prefix", "weight_patch", "bias_prefix", "bias_patch")


class Store:
    """The places of some images, read field by field; what is not a vector in float64."""

    def __init__(self, layout: TokenLayout, places: Places, images: int) -> None:
        self.layout = layout
        self._places = places
        self._images = images
        self._precise: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def read(self, name: str, tail: tuple[int, ...], rows: Sequence[int]) -> Tensor:
        """Some cells of a field, (N, B, *tail)."""
        if (name, tail) not in self._precise:
            whole = self._places.of(name, tail)[:, : self._images]
            self._precise[name, tail] = whole if name in _VECTORS else precise(whole)
        return rows_of(self._precise[name, tail], rows)


@dataclass(eq=False)
class TokenCell:
    """Where the summary of one tensor of tokens lies; several sites can stand for one tensor."""

    rows_tail: tuple[int, ...]
    norms_tail: tuple[int, ...]
    sums: tuple[str, ...]
    row: int
    norms_row: int
    abs_row: int | None = None

    @property
    def signature(self) -> tuple[Any, ...]:
        """What must be equal for cells to be stacked."""
        return self.rows_tail, self.norms_tail, self.sums

    @staticmethod
    def read(cells: Sequence[TokenCell], store: Store) -> TokenSummary:
        """The summary of many."""
        first = cells[0]
        # Left out where not all have it: it may be there only because another site shares the tensor.
        abs_rows = [cell.abs_row for cell in cells if cell.abs_row is not None]
        abs_tail = (*first.rows_tail[:-2], first.rows_tail[-1])
        return TokenSummary(
            store.layout,
            store.read("rows", first.rows_tail, [cell.row for cell in cells]),
            first.sums,
            store.read("norms", first.norms_tail, [cell.norms_row for cell in cells]),
            store.read("patch_abs_sum", abs_tail, abs_rows) if len(abs_rows) == len(cells) else None,
        )


@dataclass(eq=False)
class NormCell:
    """Where the summary of one norm lies."""

    input: TokenCell
    output: TokenCell
    stages: int
    mean_row: int | None
    lengths_row: int
    sums_row: int
    parameters: NormParameters

    @property
    def signature(self) -> tuple[Any, ...]:
        """What must be equal for cells to be stacked."""
        norm = self.parameters
        present = tuple(getattr(norm, name) is not None for name in _OF_A_NORM)
        return norm.kind, present, self.stages, self.input.signature, self.output.signature

    @staticmethod
    def read(cells: Sequence[NormCell], store: Store) -> NormSummary:
        """The summary of many."""
        first = cells[0]
        patches, channels = store.layout.patches, first.input.rows_tail[-1]
        means = [cell.mean_row for cell in cells if cell.mean_row is not None]
        sums = store.read("stage_sums", (first.stages, channels), [cell.sums_row for cell in cells])

        norms = [cell.parameters for cell in cells]

        def of_norms(name: str) -> Tensor | None:
            found = [tensor for norm in norms if (tensor := getattr(norm, name)) is not None]
            return torch.stack(found).to(sums.dtype).unsqueeze(1) if found else None

        return NormSummary(
            first.parameters.kind,
            first.parameters.bias_patch is not None,
            TokenCell.read([cell.input for cell in cells], store),
            TokenCell.read([cell.output for cell in cells], store),
            store.read("patch_mean", (patches,), means) if means else None,
            store.read("patch_lengths", (first.stages, patches), [cell.lengths_row for cell in cells]),
            sums,
            of_norms("weight_prefix"),
            of_norms("weight_patch"),
            of_norms("bias_prefix"),
            of_norms("bias_patch"),
            torch.tensor([norm.eps for norm in norms], dtype=sums.dtype, device=sums.device),
            tuple(norm.specialized for norm in norms),
        )


@dataclass(eq=False)
class AttentionCell:
    """Where the summary of one block's attention lies."""

    heads: int
    cls_row: int | None
    columns_row: int | None

    @property
    def signature(self) -> tuple[Any, ...]:
        """What must be equal for cells to be stacked."""
        return self.heads, self.cls_row is None, self.columns_row is None

    @staticmethod
    def read(cells: Sequence[AttentionCell], store: Store) -> AttentionSummary:
        """The summary of many."""
        heads, layout = cells[0].heads, store.layout
        rows = [cell.cls_row for cell in cells if cell.cls_row is not None]
        columns = [cell.columns_row for cell in cells if cell.columns_row is not None]
        return AttentionSummary(
            layout,
            store.read("cls_row", (heads, layout.tokens), rows) if rows else None,
            store.read("patch_to_prefix", (heads, len(layout.prefix)), columns) if columns else None,
        )


@dataclass(eq=False)
class PatternCell:
    """Where the summary of one block's whole pattern lies."""

    heads: int
    rollout_row: int | None
    distance_row: int | None

    @property
    def signature(self) -> tuple[Any, ...]:
        """What must be equal for cells to be stacked."""
        return self.heads, self.rollout_row is None, self.distance_row is None

    @staticmethod
    def read(cells: Sequence[PatternCell], store: Store) -> PatternSummary:
        """The summary of many."""
        rollouts = [cell.rollout_row for cell in cells if cell.rollout_row is not None]
        distances = [cell.distance_row for cell in cells if cell.distance_row is not None]
        return PatternSummary(
            store.layout,
            store.read("cls_rollout", (store.layout.tokens,), rollouts) if rollouts else None,
            store.read("patch_distance", (cells[0].heads,), distances) if distances else None,
        )


@dataclass(eq=False)
class UpdateCell:
    """Where the summary of one update lies."""

    update: TokenCell
    residual: TokenCell
    row: int

    @property
    def signature(self) -> tuple[Any, ...]:
        """What must be equal for cells to be stacked."""
        return self.update.norms_tail

    @staticmethod
    def read(cells: Sequence[UpdateCell], store: Store) -> UpdateSummary:
        """The summary of many."""
        tail = cells[0].update.norms_tail
        return UpdateSummary(
            store.layout,
            store.read("product", tail, [cell.row for cell in cells]),
            store.read("norms", tail, [cell.update.norms_row for cell in cells]),
            store.read("norms", tail, [cell.residual.norms_row for cell in cells]),
        )


Cell = TokenCell | NormCell | AttentionCell | PatternCell | UpdateCell
CELLS: Mapping[Kind, Any] = {
    TokenSummary: TokenCell,
    NormSummary: NormCell,
    AttentionSummary: AttentionCell,
    PatternSummary: PatternCell,
    UpdateSummary: UpdateCell,
}


@dataclass
class Stack:
    """Cells of equal shape and their summary, with a first axis of cells.

    Attributes:
        keys: the cells.
        rows: where in the summary each of them is; two cells share a row where they stand for one tensor.
        summary: of the cells that differ.
    """

    keys: list[Key]
    rows: list[int]
    summary: Any

    @cached_property
    def shared(self) -> bool:
        """Whether some cells share a row."""
        return self.rows != list(range(len(self.keys)))


@dataclass
class BatchSummary:
    """All that one or several forward passes left behind.

    Attributes:
        indices: each image's index in the image source.
        cells: where what was kept of each cell lies.
        store: where from.
        raw: results of the metrics that looked at the tokens themselves, by metric and (block, site).
    """

    indices: list[int]
    cells: Mapping[Kind, Mapping[Key, Cell]]
    store: Store
    raw: dict[str, dict[Key, Mapping[tuple[str, str], Tensor]]] = field(default_factory=dict)
    _stacks: dict[tuple[Kind, tuple[str, ...] | None], list[Stack]] = field(default_factory=dict)

    def stacks(self, kind: Kind, sites: Iterable[str] | None = None) -> list[Stack]:
        """Stacked summaries of one kind at some sites (default all), one for each distinct shape; selected once."""
        chosen = None if sites is None else tuple(sites)
        if (kind, chosen) not in self._stacks:
            alike: dict[Any, list[tuple[Key, Cell]]] = {}
            for key, cell in self.cells.get(kind, {}).items():
                if chosen is None or key[1] in chosen:
                    alike.setdefault(cell.signature, []).append((key, cell))
            self._stacks[kind, chosen] = [self._stack(kind, members) for members in alike.values()]
        return self._stacks[kind, chosen]

    def _stack(self, kind: Kind, members: list[tuple[Key, Cell]]) -> Stack:
        places: dict[int, int] = {}
        distinct: list[Cell] = []
        for _, cell in members:
            if id(cell) not in places:
                places[id(cell)] = len(distinct)
                distinct.append(cell)
        rows = [places[id(cell)] for _, cell in members]
        return Stack([key for key, _ in members], rows, CELLS[kind].read(distinct, self.store))
