"""A first look, with the model that comes along

CLS–patch and patch–patch cosine before and after each norm, block by block, for the small model that comes with
tokenlens: no download, neither for weights nor for images.
"""

import tokenlens

analysis = tokenlens.analyze("tokenlens_tiny", limit=24, metrics=["cls_patch_cosine", "patch_patch_cosine"])
figure = analysis.plot("depth_profile")
