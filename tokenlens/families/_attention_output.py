"""The maps between the heads of an attention and the update that its block adds to the residual stream."""

# Shapes: B images, S parts of one token's update (the last one is the bias), C channels of all heads, D channels.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tokenlens.families._norms import norm_parameters


@dataclass(frozen=True)
class Gate:
    """An elementwise gate, sigmoid(module(x)), with x the input of the attention, the output of norm1."""

    module: nn.Module


OutputStage = nn.Module | Tensor | Gate
"""A linear map, a norm or a LayerScale; a bare gain (D,); a gate."""


@dataclass(frozen=True)
class AttentionOutput:
    """The maps from the concatenated heads of a block's attention to its site ``attn_out``.

    Args:
        branches: the maps in order, for each of the attentions that run in parallel; their outputs are added.
    """

    branches: tuple[tuple[OutputStage, ...], ...]

    @property
    def gated(self) -> bool:
        """Whether the input of the attention is needed."""
        return any(isinstance(stage, Gate) for stages in self.branches for stage in stages)

    @property
    def linear(self) -> bool:
        """Whether no norm and no gate is among the maps, so that the mean of several tokens is mapped to their mean."""
        return not any(
            isinstance(stage, Gate) or (isinstance(stage, nn.Module) and _is_norm(_for_cls(stage)))
            for stages in self.branches
            for stage in stages
        )

    def projection(self) -> Tensor:
        """Return the weight of the output projection, (D, C), without LayerScale; of parallel attentions side by side.

        Raises:
            LookupError: if a norm or a gate comes before it, or it is specialized.
        """
        for first, *_ in self.branches:
            if isinstance(first, nn.Module) and _for_cls(first) is not first and not _is_norm(_for_cls(first)):
                raise LookupError("the output projection has separate weights for special tokens and patches")
            if not isinstance(first, nn.Linear):
                raise LookupError(
                    "a norm or gate between the heads and the output projection scales each token by itself"
                )
        weights = [first.weight.detach() for first, *_ in self.branches if isinstance(first, nn.Linear)]
        return torch.cat(weights, dim=1) if len(weights) > 1 else weights[0]

    def split(self, heads_BSC: Tensor, input_BD: Tensor | None = None) -> Tensor:
        """Map parts of one special token's heads to parts of its update, (B, S + 1, D); the last one is the bias.

        All maps are affine once the scale of each norm and gate is held at what it is for the sum of the parts. Their
        biases, also those of norms, are the last part, so that the parts add up to the update. Specialized modules
        apply their weights for special tokens.

        Args:
            heads_BSC: parts of the concatenated heads, which add up to them.
            input_BD: input of the attention, if it has a gate.
        """
        parts = heads_BSC.chunk(len(self.branches), dim=-1)
        mapped = [_map(part, stages, input_BD) for part, stages in zip(parts, self.branches, strict=True)]
        return torch.stack(mapped).sum(0)


def output_of(block: nn.Module, paths: Sequence[str]) -> AttentionOutput:
    """Return the maps at these paths inside a block, in order."""
    stages = []
    for path in paths:
        owner, _, name = path.rpartition(".")
        stages.append(getattr(block.get_submodule(owner), name))
    return AttentionOutput((tuple(stages),))


def _map(heads_BSC: Tensor, stages: Sequence[OutputStage], input_BD: Tensor | None) -> Tensor:
    parts = torch.cat([heads_BSC, torch.zeros_like(heads_BSC[:, :1])], dim=1)
    for stage in stages:
        if isinstance(stage, Gate):
            assert input_BD is not None
            weights = _weights(_for_cls(stage.module), parts)
            parts = parts * linear(input_BD.to(parts), *weights).sigmoid().unsqueeze(1)
            continue
        module = _for_cls(stage) if isinstance(stage, nn.Module) else stage
        if isinstance(module, nn.Linear):
            weight, bias = _weights(module, parts)
            parts = linear(parts, weight)
        elif isinstance(module, Tensor) or not _is_norm(module):
            [gain] = [module] if isinstance(module, Tensor) else module.parameters()
            parts, bias = parts * gain.detach().to(parts), None
        else:
            parts, bias = _normed(parts, module)
        if bias is not None:
            parts[:, -1] += bias
    return parts


def _normed(parts: Tensor, module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Apply a norm, without its bias, with the scale that it has for the sum of the parts."""
    norm = norm_parameters(module)
    if norm.kind == "layer":
        parts = parts - parts.mean(-1, keepdim=True)
    parts = parts * (parts.sum(1, keepdim=True).square().mean(-1, keepdim=True) + norm.eps).rsqrt()
    weight, bias = (None if x is None else x.to(parts) for x in (norm.weight_prefix, norm.bias_prefix))
    return (parts if weight is None else parts * weight), bias


def _weights(module: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    assert isinstance(module, nn.Linear)
    return module.weight.detach().to(like), None if module.bias is None else module.bias.detach().to(like)


def _is_norm(module: nn.Module) -> bool:
    return not isinstance(module, nn.Linear) and any(hasattr(module, name) for name in ("eps", "variance_epsilon"))


def _for_cls(module: nn.Module) -> nn.Module:
    """Return the module with the weights for special tokens."""
    children = module.__dict__.get("_modules", {})
    return children["cls"] if {"cls", "patch"} <= children.keys() else module
