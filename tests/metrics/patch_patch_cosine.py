"""Mean over i ≠ j of cos(patch_i, patch_j), from the whole P×P matrix."""

from tests.metrics._stored import Number, Stored, cosines, mean_off_diagonal

LEVEL = "image"


def reference_patch_patch_cosine(stored: Stored) -> dict[Number, object]:
    return {
        ("", block, site, "patch-patch", head): mean_off_diagonal(cosines(stored.of("patch", x), stored.of("patch", x)))
        for block, site, head, x in stored.cosine_sites()
    }
