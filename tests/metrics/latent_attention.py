"""Softmax of the latent's scores, from the weights of the MAP head; its sums by group, and its entropy over patches."""

import numpy as np
import torch
from scipy import stats

from tests.metrics._stored import Number, Stored

LEVEL = "image"
NEEDS = ("latent",)


def reference_latent_attention(stored: Stored) -> dict[Number, object]:
    head = stored.model.attn_pool
    weights = {name: parameter.detach().double().numpy() for name, parameter in head.named_parameters()}
    tokens = stored.tokens[None, "final_norm"]
    query = (weights["latent"][0, 0] @ weights["q.weight"].T + weights["q.bias"]).reshape(head.num_heads, -1)
    both = tokens @ weights["kv.weight"].T + weights["kv.bias"]
    keys = both[..., : tokens.shape[-1]].reshape(*tokens.shape[:2], head.num_heads, -1)
    numbers: dict[Number, object] = {}
    for index in range(head.num_heads):
        scores = keys[:, :, index] @ query[index] / np.sqrt(len(query[index]))
        rows = torch.from_numpy(scores).softmax(-1).numpy()
        for group in stored.groups:
            numbers["mass", None, "pool", f"latent-{group}", index] = rows[:, stored.positions(group)].sum(-1)
        entropy = np.array([stats.entropy(row) for row in rows[:, stored.positions("patch")]])
        normalized = entropy / np.log(len(stored.positions("patch")))
        numbers["normalized_entropy", None, "pool", "latent-patch", index] = normalized
    return numbers
