"""Attention bias: a learned key and value in every attention, beside those of the tokens.

Sun et al. 2024 (arXiv 2402.17762): softmax over [keys; k'] weights [values; v'], so that a head that has nothing to
write need not park its attention on a token. The term in the softmax makes it another function from the start, so such
a model is trained from scratch.
"""

# Shapes: B images, T tokens, H heads, d channels per head, C channels of all heads.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tokenlens.families import find_family, has_attention_bias

TIMM_ENTRY_POINT = "attention_bias_vit"
"""The timm name of any model with an attention bias; ``config.json`` of a saved one has it as its architecture."""


class BiasedAttention(Attention):
    """timm's attention with a learned key ``bias_k`` and value ``bias_v``, (C,) each, that every token can attend to.

    They are not normalized (q/k norm) and get no position.
    """

    bias_k: nn.Parameter
    bias_v: nn.Parameter

    def add_bias(self) -> None:
        """Add both parameters, drawn from N(0, 0.02²) as timm draws its weights."""
        for name in ("bias_k", "bias_v"):
            weight = nn.init.trunc_normal_(self.qkv.weight.new_empty(self.attn_dim), std=0.02)
            self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map tokens (B, T, D) to their update, as timm's attention does with one more key and value.

        Raises:
            ValueError: for a mask.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("attention with an attention bias takes no mask")
        images, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(images, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q_BHTd, k_BHTd, v_BHTd = qkv.unbind(0)
        q_BHTd, k_BHTd = self.q_norm(q_BHTd), self.k_norm(k_BHTd)
        k_BHSd, v_BHSd = self._append(k_BHTd, self.bias_k), self._append(v_BHTd, self.bias_v)
        dropout = self.attn_drop.p if self.training else 0.0
        if self.fused_attn:
            heads_BHTd = scaled_dot_product_attention(q_BHTd, k_BHSd, v_BHSd, dropout_p=dropout)
        else:
            pattern_BHTS = (q_BHTd * self.scale @ k_BHSd.transpose(-2, -1)).softmax(dim=-1)
            heads_BHTd = self.attn_drop(pattern_BHTS) @ v_BHSd
        heads_BTC = self.norm(heads_BHTd.transpose(1, 2).reshape(images, tokens, self.attn_dim))
        if self.gate is not None:
            heads_BTC = heads_BTC * self.gate(x).sigmoid()
        update: Tensor = self.proj_drop(self.proj(heads_BTC))
        return update

    def _append(self, x_BHTd: Tensor, learned_C: Tensor) -> Tensor:
        learned_BH1d = learned_C.to(x_BHTd.dtype).view(1, self.num_heads, 1, self.head_dim)
        return torch.cat([x_BHTd, learned_BH1d.expand(len(x_BHTd), -1, -1, -1)], dim=-2)


def add_attention_bias(model: nn.Module) -> nn.Module:
    """Give every attention of a standard timm model a learned key and value, in place; return the model.

    All other weights stay as they are, so models of one seed differ in these parameters alone. timm's ``save_for_hf``
    then writes a configuration that rebuilds the model.

    Raises:
        ValueError: for a model that has one already, is specialized, or whose blocks do not have timm's standard
            attention; the model is then unchanged.
        LookupError: for a model of no known family.
    """
    blocks = list(find_family(model).blocks(model))
    attentions: list[Any] = [getattr(block, "attn", None) for block in blocks]
    if any(has_attention_bias(attention) for attention in attentions):
        raise ValueError(f"this {type(model).__qualname__} has an attention bias already")
    for block, attention in zip(blocks, attentions, strict=True):
        if type(attention) is not Attention:
            found = type(block if attention is None else attention).__qualname__
            raise ValueError(
                f"an attention bias needs the standard attention of timm's VisionTransformer in every block, this "
                f"{type(model).__qualname__} has {found}"
            )
        if not isinstance(attention.qkv, nn.Linear):
            raise ValueError("the model is specialized; add the attention bias first, then specialize")
    for attention in attentions:
        attention.__class__ = BiasedAttention
        attention.add_bias()
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(config, Mapping):
        saved = {**config, "architecture": TIMM_ENTRY_POINT, "attention_bias": config.get("architecture")}
        model.pretrained_cfg = model.default_cfg = saved  # type: ignore[assignment]
    return model
