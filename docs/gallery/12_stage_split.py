"""The stages of the norm, in several models

Contribution of centring, weight γ and bias β to the fall of the CLS–patch cosine, block by block. Above 0 a stage
separates CLS from the patches, below 0 it brings them together.
"""

import tokenlens

DINOV2 = {"model": "vit_small_patch14_dinov2", "img_size": 224}
models = {
    "DINOv2": {**DINOV2, "checkpoint": "dinov2_vits14.safetensors"},
    "fine-tuned for saliency": {**DINOV2, "checkpoint": "dinov2_vits14_saliency.safetensors"},
    "random weights": {**DINOV2, "pretrained": False},
}
metrics = ["norm_differentiation"]
analyses = [tokenlens.analyze(**model, images="sample", limit=24, metrics=metrics) for model in models.values()]
comparison = tokenlens.compare(*analyses, labels=list(models))
figure = comparison.plot("compare_stage_split", norms="norm1")
