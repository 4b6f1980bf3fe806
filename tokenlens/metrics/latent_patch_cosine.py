"""Mean cosine similarity between the pooling latent and the patches that it pools."""
# Shapes: B images, L latents, P patches, D channels; "..." any leading axes.

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from tokenlens.metrics._per_image import LatentMetric, Values
from tokenlens.recording.recorder import PooledTokens
from tokenlens.reduction.summaries import to_float64


def latent_patch_cosine(latent_BLD: Tensor, patch_BPD: Tensor) -> Tensor:
    """Compute the mean over latents and patches of cos(latent, patch), per image, in [-1, 1]."""
    latent_BD, patch_BD = (normalize(x, dim=-1).mean(-2) for x in (latent_BLD, patch_BPD))
    return (latent_BD * patch_BD).sum(-1)


class LatentPatchCosine(LatentMetric):
    """Cosine between the latent of a MAP head, after it has pooled the tokens, and the patches that it pooled.

    Formula: part ``cosine`` = ⟨cos(l, x_i)⟩ over the patches x_i that enter the head, with its output l, in [−1, 1].
    Reference: as ``cls_patch_cosine``, with the latent in the place of CLS.
    Pitfalls: The head projects the values and adds an MLP, so that the latent need not be in the patches' basis.
    Tested against: every single cosine in NumPy.
    """

    title = "latent–patch cosine"
    unit = "cosine"

    def per_image(self, pooled: PooledTokens) -> Values:
        """Compute ``latent_patch_cosine``; NaN where the head changes the number of channels."""
        latent, patch = to_float64(pooled.latent_BLD), to_float64(pooled.layout.patches_of(pooled.tokens_BTD))
        if latent.shape[-1] != patch.shape[-1]:
            return {("cosine", "latent-patch"): patch.new_full((len(patch),), float("nan"))}
        return {("cosine", "latent-patch"): latent_patch_cosine(latent, patch)}
