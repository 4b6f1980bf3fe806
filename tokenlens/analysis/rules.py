"""Claims, constants and rules of the findings F1 and F2; docs/findings.md has the reasons.

The constants were fixed before the code that applies them was run, except ``MIN_FALL`` and ``ABOUT_ZERO``, which an
earlier rule had set after looking at DINOv2 ViT-S/14.
"""

from __future__ import annotations

MIN_IMAGES = 8
"""The fewest distinct images that give a verdict."""

MIN_FALL = 0.05
"""The smallest fall that counts: the standard deviation of the cosine of random directions in 384 channels."""

ABOUT_ZERO = 0.1
"""The largest cosine that counts as about 0: two such standard deviations."""

KEPT = 0.5
"""The smallest part of the patch–patch cosine that counts as stable."""

MIN_SHARE_OF_BLOCKS = 1 / 3
"""With fewer applicable blocks a claim is not applicable."""

ABOVE_ROTATIONS = 0.1
"""The smallest distance of energy profiles above that of random rotations that counts."""

SITS_IN = 0.5
"""The smallest share of the fall that counts as sitting in the chosen channels."""

TITLES = {
    "F1(a)": "CLS–patch cosine falls across the norm before attention, to about 0 or below",
    "F1(b)": "Where it falls, patch–patch cosine stays positive",
    "F1(c)": "Where it falls, patch–patch cosine stays stable",
    "F2(a)": "CLS and patches have their energy in different channels",
    "F2(b)": "The fall sits in those channels",
}
"""The claims by name."""

_VERDICTS = (
    " Supported: all conditions hold in more than half of the applicable blocks. Not supported: a condition fails in "
    "at least half of them. Not applicable: fewer than a third of the blocks are applicable. "
)
_INTERVALS = "Conditions are judged by 95 % intervals over images."
_WHERE_IT_FALLS = f"in blocks in which γ and β lower the CLS–patch cosine by at least {MIN_FALL} across norm1"

RULES = {
    "F1(a)": (
        f"Judged in blocks whose CLS–patch cosine before norm1 is at least {ABOUT_ZERO}: in the others CLS and patches "
        f"are apart already. There it has to fall by at least {MIN_FALL} across norm1, to end at or below "
        f"{ABOUT_ZERO}, and γ and β together have to lower it by at least {MIN_FALL}: a fall by centring "
        f"alone is not learned by the norm.{_VERDICTS}{_INTERVALS} The trend with depth is reported and does not "
        "decide; its p is nominal because blocks are not independent."
    ),
    "F1(b)": (
        f"Judged {_WHERE_IT_FALLS} and the patch–patch cosine is above 0 before it. There that cosine has to be above "
        f"0 after norm1.{_VERDICTS}{_INTERVALS}"
    ),
    "F1(c)": (
        f"Judged {_WHERE_IT_FALLS} and the patch–patch cosine is above {ABOUT_ZERO} before it. There that cosine has "
        f"to be at least {KEPT} of what it was.{_VERDICTS}{_INTERVALS}"
    ),
    "F2(a)": (
        "The distance of the two groups' energy profiles at norm1's input (total variation, channels chosen on one "
        "half of the images and measured on the other) has to be at least the 95 % quantile of 200 random rotations of "
        f"the channels, and at least {ABOVE_ROTATIONS} above their mean.{_VERDICTS}Judged by the 95 % jackknife "
        "interval, over images, of the distance minus the mean of the rotations."
    ),
    "F2(b)": (
        f"Judged in blocks in which the CLS–patch cosine falls by at least {MIN_FALL} across norm1 and F2(a) holds. "
        "The chosen channels are 1 % of all, at least five: those whose shares of energy differ most between the "
        f"groups, chosen on one half of the images and measured on the other. Their share of the fall has to be at "
        f"least {SITS_IN}, and at least the 95 % quantile of as many random channels.{_VERDICTS}The share is "
        "judged by its 95 % jackknife interval over images."
    ),
}
"""The rule of each claim, as reports print it."""
