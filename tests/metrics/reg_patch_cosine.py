"""Mean over registers and patches of cos(register, patch)."""

from tests.metrics._stored import Number, Stored, cosines

LEVEL = "image"
NEEDS = ("reg",)


def reference_reg_patch_cosine(stored: Stored) -> dict[Number, object]:
    return {
        ("", block, site, "reg-patch", head): cosines(stored.of("reg", x), stored.of("patch", x)).mean((-1, -2))
        for block, site, head, x in stored.cosine_sites()
    }
