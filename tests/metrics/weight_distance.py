"""‖w_cls − w_patch‖ over the root mean square of the two norms, and their cosine, per specialized parameter."""

import numpy as np

from tests.metrics._stored import Number, Stored, numpy64

LEVEL = "weights"
NEEDS = ("twins",)


def reference_weight_distance(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    parameters = dict(stored.model.named_parameters())
    for name, tensor in parameters.items():
        twin = name.replace(".cls.", ".patch.")
        if twin == name or twin not in parameters:
            continue
        cls, patch = numpy64(tensor).ravel(), numpy64(parameters[twin]).ravel()
        block = int(name.split(".")[1]) if name.startswith("blocks.") else None
        inside = name if block is None else name.split(".", 2)[2]
        site = "LayerNorm/" + inside.replace(".cls.", ".").replace("cls.", "")
        scale = np.sqrt((np.dot(cls, cls) + np.dot(patch, patch)) / 2)
        numbers["relative_distance", block, site, "cls-patch", None] = float(np.linalg.norm(cls - patch) / scale)
        cosine = np.dot(cls, patch) / np.sqrt(np.dot(cls, cls) * np.dot(patch, patch))
        numbers["cosine", block, site, "cls-patch", None] = float(cosine)
    return numbers
