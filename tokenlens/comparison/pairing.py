"""Match the images of two analyses by their hashes, and decide whether their numbers pair."""
# Shapes: N images.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenlens.analysis.analysis import Analysis
from tokenlens.storage.wording import counted

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Pairing:
    """Whether a model's numbers are compared with the baseline's image by image.

    Attributes:
        paired: True for image by image, False for mean against mean.
        n: if paired, the number of images that both saw; otherwise of this model's images.
        reason: the reason, as a sentence.
    """

    paired: bool
    n: int
    reason: str


@dataclass(frozen=True)
class Match:
    """A pairing, and the positions of the matching images in both analyses (empty if unpaired)."""

    pairing: Pairing
    rows: Rows
    baseline_rows: Rows


_NO_MATCH = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def match_images(analysis: Analysis, baseline: Analysis, pair: bool | None) -> Match:
    """Decide whether the numbers of two analyses pair by image, and why.

    Args:
        analysis, baseline: the two analyses.
        pair: None pairs if both saw the same images in the same order; True matches the images that both have values
            of, by hash; False never pairs.
    """
    hashes, other = hashes_of(analysis), hashes_of(baseline)
    seen = len(hashes)
    total = f"{seen}" if seen == len(other) else f"{seen} and {len(other)}"
    kept, kept_other = hashes[: len(analysis.per_image)], other[: len(baseline.per_image)]
    same = hashes == other
    rows, baseline_rows = matching_positions(kept, kept_other) if pair or (same and pair is None) else _NO_MATCH
    if len(rows):
        over = "" if len(rows) == seen else f" over the {len(rows)} whose numbers were kept"
        reason = (
            f"the same {counted(seen, 'image')}, paired by image{over}"
            if same
            else (f"{counted(len(rows), 'image')} in common (of {total}), paired by image")
        )
        sizes = [tuple(each.provenance.get("image_size", ())) for each in (analysis, baseline)]
        if sizes[0] != sizes[1]:
            reason += ", at input sizes of {} and {} pixels".format(*("×".join(map(str, size)) for size in sizes))
        return Match(Pairing(True, len(rows), reason), rows, baseline_rows)
    common = sum((Counter(hashes) & Counter(other)).values())
    requested = " as requested" if pair is False else ""
    hint = "; pass pair=True (--pair) to pair them" if common and pair is None and not same else ""
    if same:
        what = f"the same {counted(seen, 'image')}" + ("" if pair is False else ", but no values by image")
    elif common == seen == len(other):
        what = f"the same {seen} images in another order"
    else:
        what = f"{common} of {total} images in common"
    return Match(Pairing(False, seen, f"{what}: compared unpaired{requested}{hint}"), *_NO_MATCH)


def hashes_of(analysis: Analysis) -> list[str]:
    """Return the hash of each image, in order."""
    return list(analysis.provenance["images"]["hashes"])


def matching_positions(hashes: Sequence[str], other: Sequence[str]) -> tuple[Rows, Rows]:
    """Return the positions in both sequences of the images that both contain, in the order of ``hashes``.

    Copies of an image are matched in their order.

    >>> matching_positions(["a", "b", "b", "c"], ["b", "a", "b"])
    (array([0, 1, 2]), array([1, 0, 2]))
    """
    remaining: dict[str, list[int]] = {}
    for position, name in reversed(list(enumerate(other))):
        remaining.setdefault(name, []).append(position)
    matches = [(i, remaining[name].pop()) for i, name in enumerate(hashes) if remaining.get(name)]
    both = np.array(matches, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
