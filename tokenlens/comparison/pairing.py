"""Which images two analyses have in common, by the images' hashes, and whether their numbers pair."""
# Shapes: N images.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Pairing:
    """How a model's numbers are set against the baseline's.

    Attributes:
        paired: image by image, or mean against mean.
        n: paired, the images that both saw; otherwise the images of this model.
        reason: a sentence that says so.
    """

    paired: bool
    n: int
    reason: str


@dataclass(frozen=True)
class Match:
    """A pairing, and the rows of the two sequences of images that belong together (empty when unpaired)."""

    pairing: Pairing
    rows: Rows
    baseline_rows: Rows


_NOTHING = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def match_images(analysis: Analysis, baseline: Analysis, pair: bool | None) -> Match:
    """Decide whether the numbers of two analyses pair by image, and say why or why not.

    ``pair`` None pairs where both saw the same images in the same order; True aligns the images that both have values
    of by their hash; False does not pair.
    """
    hashes, other = hashes_of(analysis), hashes_of(baseline)
    seen, of = len(hashes), f"{len(hashes)}" if len(hashes) == len(other) else f"{len(hashes)} and {len(other)}"
    kept, kept_other = hashes[: len(analysis.per_image)], other[: len(baseline.per_image)]
    same = hashes == other
    rows, baseline_rows = aligned(kept, kept_other) if pair or (same and pair is None) else _NOTHING
    if len(rows):
        over = "" if len(rows) == seen else f" over the {len(rows)} whose numbers were kept"
        reason = (
            f"the same {seen} images, paired by image{over}"
            if same
            else (f"{len(rows)} images in common (of {of}), paired by image")
        )
        sizes = [tuple(each.provenance.get("image_size", ())) for each in (analysis, baseline)]
        if sizes[0] != sizes[1]:
            reason += ", seen at {} and {} pixels".format(*("×".join(map(str, size)) for size in sizes))
        return Match(Pairing(True, len(rows), reason), rows, baseline_rows)
    common = sum((Counter(hashes) & Counter(other)).values())
    asked = " as asked" if pair is False else ""
    hint = "; pairing them has to be asked for (pair=True, --pair)" if common and pair is None and not same else ""
    if same:
        what = f"the same {seen} images" if pair is False else f"the same {seen} images, but no values by image"
    elif common == seen == len(other):
        what = f"the same {seen} images in another order"
    else:
        what = f"{common} of {of} images in common"
    return Match(Pairing(False, seen, f"{what}: compared unpaired{asked}{hint}"), *_NOTHING)


def hashes_of(analysis: Analysis) -> list[str]:
    """The hash of each image, in order."""
    return list(analysis.provenance["images"]["hashes"])


def aligned(hashes: Sequence[str], other: Sequence[str]) -> tuple[Rows, Rows]:
    """Positions in both of the images that both hold, in the order of ``hashes``; equal images pair in their order.

    >>> aligned(["a", "b", "b", "c"], ["b", "a", "b"])
    (array([0, 1, 2]), array([1, 0, 2]))
    """
    places: dict[str, list[int]] = {}
    for position, name in reversed(list(enumerate(other))):
        places.setdefault(name, []).append(position)
    pairs = [(i, places[name].pop()) for i, name in enumerate(hashes) if places.get(name)]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
