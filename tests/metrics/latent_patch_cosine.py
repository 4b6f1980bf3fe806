"""Cosines of the MAP head's output with every patch, one by one."""

import copy

import numpy as np
import torch

from tests.metrics._stored import Number, Stored

LEVEL = "image"
NEEDS = ("latent",)


def reference_latent_patch_cosine(stored: Stored) -> dict[Number, object]:
    tokens = stored.tokens[None, "final_norm"]
    head = copy.deepcopy(stored.model.attn_pool).double()
    with torch.inference_mode(False), torch.no_grad():
        latents = head(torch.tensor(tokens)).numpy()
    means = []
    for latent, patches in zip(latents, stored.of("patch", tokens), strict=True):
        cosines = [latent @ patch / np.linalg.norm(latent) / np.linalg.norm(patch) for patch in patches]
        means.append(np.mean(cosines))
    return {("cosine", None, "pool", "latent-patch", None): np.array(means)}
