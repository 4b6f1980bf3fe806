"""Mean over pairs of different images of the cosine of their mean patch tokens."""

from tests.metrics._stored import Number, Stored, cosines, mean_off_diagonal

LEVEL = "set"


def reference_patch_mean_cosine(stored: Stored) -> dict[Number, object]:
    numbers: dict[Number, object] = {}
    for (block, site), x in stored.tokens.items():
        mean = stored.of("patch", x).mean(1)
        numbers["", block, site, "patch-patch", None] = float(mean_off_diagonal(cosines(mean, mean)))
    return numbers
