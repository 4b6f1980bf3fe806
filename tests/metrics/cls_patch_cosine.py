"""Mean over patches of cos(CLS, patch), from every single cosine."""

from tests.metrics._stored import Number, Stored, cosines

LEVEL = "image"
NEEDS = ("cls",)


def reference_cls_patch_cosine(stored: Stored) -> dict[Number, object]:
    return {
        ("", block, site, "cls-patch", head): cosines(stored.of("cls", x), stored.of("patch", x)).mean((-1, -2))
        for block, site, head, x in stored.cosine_sites()
    }
