"""Mean over pairs of different images of the cosine of their CLS tokens."""

from tests.metrics._stored import FEATURES, Number, Stored, cosines, mean_off_diagonal

LEVEL = "set"
NEEDS = ("cls",)


def reference_cls_cls_cosine(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), x in stored.tokens.items():
        assert site in FEATURES
        cls = stored.of("cls", x)[:, 0]
        numbers["", block, site, "cls-cls", None] = float(mean_off_diagonal(cosines(cls, cls)))
    return numbers
