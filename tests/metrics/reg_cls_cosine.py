"""Mean over registers of cos(register, CLS)."""

from tests.metrics._stored import Number, Stored, cosines

LEVEL = "image"
NEEDS = ("cls", "reg")


def reference_reg_cls_cosine(stored: Stored) -> dict[Number, object]:
    return {
        ("", block, site, "reg-cls", head): cosines(stored.of("reg", x), stored.of("cls", x)).mean((-1, -2))
        for block, site, head, x in stored.cosine_sites()
    }
