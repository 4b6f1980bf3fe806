"""‖attn_out‖/‖resid_pre‖ and ‖mlp_out‖/‖resid_mid‖ token by token, and the cosine of the two."""

import numpy as np

from tests.metrics._stored import Number, Stored

LEVEL = "image"


def reference_update_ratio(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), update in stored.tokens.items():
        if site not in ("attn_out", "mlp_out"):
            continue
        residual = stored.tokens[block, "resid_pre" if site == "attn_out" else "resid_mid"]
        norms = np.linalg.norm(update, axis=-1), np.linalg.norm(residual, axis=-1)
        with np.errstate(invalid="ignore"):
            cosine = (update * residual).sum(-1) / (norms[0] * norms[1])
        for group in stored.groups:
            at = stored.positions(group)
            numbers["ratio", block, site, group, None] = (norms[0] / norms[1])[:, at].mean(-1)
            numbers["cosine", block, site, group, None] = cosine[:, at].mean(-1)
    return numbers
