"""Where the update that attention writes to CLS comes from: the share of each token group, and of the bias."""
# Shapes: B images, H heads, G source groups, S = H·G parts and the bias, d channels of one head, D channels.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenlens.families import AttentionOutput
from tokenlens.metrics._per_image import HookMetric, Values
from tokenlens.metrics.base import PATTERN, Subject
from tokenlens.recording.attention import AttentionCall, as_float, avoid_tf32
from tokenlens.reduction.summaries import BatchSummary, TokenSummary, to_float64
from tokenlens.tokens import Key, TokenLayout, take

TOLERANCE = 0.05
"""Largest difference between the sum of the parts and the update, over the update: more than half precision rounds."""


def values_by_source(layout: TokenLayout, call: AttentionCall) -> Tensor:
    """Compute Σ_{j∈g} A_cls,j v_j of each source g, with A the mean row of the class tokens, (B, H, G, d)."""
    row_BH1T = call.rows(layout.positions("cls")).mean(-2, keepdim=True)
    sums = []
    for group in layout.groups:
        weights, values = (take(x, layout.positions(group), dim) for x, dim in ((row_BH1T, -1), (call.v_BHTd, -2)))
        sums.append((avoid_tf32(weights) @ avoid_tf32(as_float(values))).to(weights.dtype))
    if call.learned is not None:
        bias_BH1 = layout.mean_of(call.bias_mass().unsqueeze(-1), "cls")
        sums.append(bias_BH1.unsqueeze(-1) * as_float(call.learned[1]))
    return torch.cat(sums, dim=-2)


def split_update(output: AttentionOutput, values_BHGd: Tensor, input_BD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Split CLS's attention update into the parts of each head and group, (B, H, G, D), and of the bias, (B, D).

    Args:
        output: the maps from the heads to the update.
        values_BHGd: Σ_{j∈g} A_cls,j v_j of each head and group.
        input_BD: CLS at the input of the attention, for gates.
    """
    images, heads, groups, channels = values_BHGd.shape
    placed = values_BHGd.new_zeros(images, heads, groups, heads, channels)
    each = torch.arange(heads, device=values_BHGd.device)
    placed[:, each, :, each] = values_BHGd.transpose(0, 1)
    parts_BSD = output.split(placed.flatten(1, 2).flatten(2), input_BD)
    return parts_BSD[:, :-1].unflatten(1, (heads, groups)), parts_BSD[:, -1]


class ClsUpdate(HookMetric):
    """Attention's update of CLS, split by the token group that it comes from, per block and per head.

    Formula: u = Σ_g u_g + u_bias at ``attn_out``, with u_g = LayerScale ⊙ W_O (Σ_{j∈g} A_cls,j v_j) of group g. Where a
        norm or a gate stands between, its scale is held at what it is for CLS; biases of norms belong to u_bias.
    Parts:
        share: ⟨u_g, u⟩/‖u‖² for ``cls-cls``, ``cls-reg``, ``cls-patch``, …; with ``bias_share`` these sum to 1, and
            single ones may be negative or above 1. ``cls-bias`` is the learned value of an attention bias.
        bias_share: ⟨u_bias, u⟩/‖u‖², of the output projection's bias; biases of values stay in the values.
        norm: ‖u_g‖.
        bias_norm: ‖u_bias‖.
        head_share: the share of a group in one head; over heads they sum to ``share``.
    Reference: Kobayashi et al. 2020 (arXiv 2004.10102) on norms of weighted values; arXiv 2505.05892 (last block).
    Pitfalls: A share near 0 may be large parts that cancel: see ``norm``. The share of the patches counts what they
        write, not what is specific to the image: a vector common to all images counts as well.
    Tested against: W_O A V from stored patterns and values, head by head; attn_out itself, for every family.
    """

    title = "CLS update by source"
    unit = {  # noqa: RUF012
        "share": "share of ‖u‖²",
        "bias_share": "share of ‖u‖²",
        "norm": "norm",
        "bias_norm": "norm",
        "head_share": "share of ‖u‖²",
    }
    expensive_sites = ("attn_out",)
    cost = "one row of attention times the values, and the output projection for each head: 3 % of a ViT-S forward pass"
    needs = frozenset({"cls", "pattern"})

    def __init__(self) -> None:
        super().__init__()
        self._outputs: list[AttentionOutput] = []

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model's modules out of what is sent to other processes."""
        return self.__dict__ | {"_outputs": []}

    @property
    def observes(self) -> tuple[str, ...]:
        """Attention, its update, and its input where a gate reads it."""
        return ("q", "attn_out", *(["norm1"] if any(output.gated for output in self._outputs) else []))

    def prepare(self, subject: Subject) -> str | None:
        """Find the maps from heads to update in every block; say so where the family cannot."""
        reason = super().prepare(subject)
        if reason is not None or subject.family is None:
            return reason
        blocks = subject.family.blocks(subject.model)
        try:
            self._outputs = [subject.family.attention_output(block) for block in blocks]
        except LookupError as error:
            return str(error)
        if len(subject.layout.positions("cls")) > 1 and not all(output.linear for output in self._outputs):
            return "a norm or gate between attention and update scales each of the several class tokens differently"
        return None

    @property
    def looks_at(self) -> tuple[str, ...]:
        """Attention."""
        return (PATTERN,)

    def look(self, layout: TokenLayout, block: int, call: AttentionCall) -> Values:
        """Weight the values by the CLS row, source by source; ``results`` splits the update by them."""
        return {("values", ""): values_by_source(layout, call)}

    def results(self, batch: BatchSummary) -> Iterable[tuple[list[Key], Values]]:
        """Yield the numbers of one block after the other."""
        cls = {
            key: to_float64(stack.summary.group("cls").mean(-2)[row])
            for stack in batch.stacks(TokenSummary, ("attn_out", "norm1"))
            for row, key in enumerate(stack.keys)
        }
        for (block, _), found in batch.raw.get(self.name, {}).items():
            assert block is not None
            output, update_BD = self._outputs[block], cls[block, "attn_out"]
            values_BHGd = to_float64(found["values", ""])
            parts_BHGD, bias_BD = split_update(output, values_BHGd, cls.get((block, "norm1")))
            values = _describe(batch.layout.sources, parts_BHGD, bias_BD, update_BD, block)
            yield [(block, "attn_out")], {name: value.unsqueeze(0) for name, value in values.items()}

    def per_image(self, summary: Any) -> Values:
        """Not used: ``results`` reads two kinds of summaries."""
        raise NotImplementedError


def _describe(
    groups: Sequence[str], parts_BHGD: Tensor, bias_BD: Tensor, update_BD: Tensor, block: int
) -> dict[tuple[str, str], Tensor]:
    """Compute the numbers of one block."""
    size_B = update_BD.square().sum(-1)
    group_BGD = parts_BHGD.sum(1)
    missing_BD = update_BD - group_BGD.sum(1) - bias_BD
    if bool((missing_BD.square().sum(-1) > TOLERANCE**2 * size_B).any()):
        raise ValueError(
            f"block {block}: the parts of CLS's update do not add up to attn_out; the family's attention_output() must "
            "name every map between the heads of attention and attn_out (docs/add-a-family.md)"
        )
    head_BHG = (parts_BHGD * update_BD[:, None, None]).sum(-1) / size_B[:, None, None]
    values = {
        ("bias_share", "cls"): (bias_BD * update_BD).sum(-1) / size_B,
        ("bias_norm", "cls"): bias_BD.norm(dim=-1),
    }
    for index, group in enumerate(groups):
        values["share", f"cls-{group}"] = head_BHG[..., index].sum(-1)
        values["norm", f"cls-{group}"] = group_BGD[:, index].norm(dim=-1)
        values["head_share", f"cls-{group}"] = head_BHG[..., index]
    return values
