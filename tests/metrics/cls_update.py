"""W_O A V of stored patterns and values, source token by source token, with the weights of timm's modules."""

import numpy as np

from tests.metrics._stored import Number, Stored, numpy64

LEVEL = "image"
NEEDS = ("cls",)


def _parts(stored: Stored, block: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return for each group the parts of every head (N, H, D), and the bias (D,)."""
    module = stored.model.blocks[block]
    weight, bias = (numpy64(x) for x in (module.attn.proj.weight, module.attn.proj.bias))
    gain = getattr(module, "gamma_1", None)
    if gain is None:
        gain = getattr(module.ls1, "gamma", None)
    gain = 1.0 if gain is None else numpy64(gain)
    heads = stored.patterns[block].shape[1]
    weight_DHd = weight.reshape(len(weight), heads, -1)
    row = stored.patterns[block][:, :, stored.positions("cls")[0]]
    written = np.einsum("dhc,nhtc->nhtd", weight_DHd, stored.heads[block, "v"]) * row[..., None] * gain
    return {group: written[:, :, stored.positions(group)].sum(2) for group in stored.groups}, bias * gain


def reference_cls_update(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for block in stored.patterns:
        parts, bias = _parts(stored, block)
        update = stored.of("cls", stored.tokens[block, "attn_out"])[:, 0]
        square = (update**2).sum(-1)
        where = (block, "attn_out")
        numbers["bias_share", *where, "cls", None] = update @ bias / square
        numbers["bias_norm", *where, "cls", None] = np.full(len(update), np.linalg.norm(bias))
        for group, heads in parts.items():
            shares = (heads * update[:, None]).sum(-1) / square[:, None]
            numbers["share", *where, f"cls-{group}", None] = shares.sum(-1)
            numbers["norm", *where, f"cls-{group}", None] = np.linalg.norm(heads.sum(1), axis=-1)
            for head in range(heads.shape[1]):
                numbers["head_share", *where, f"cls-{group}", head] = shares[:, head]
    return numbers
