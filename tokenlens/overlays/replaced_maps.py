"""Maps of a photograph's final patches, untouched and under the conditions of an intervention."""

# Shapes: N maps; h, w the patch grid.

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from tokenlens.interventions import Intervention
from tokenlens.overlays.map_grid import MapGrid
from tokenlens.overlays.selection import evenly_spaced


def replaced_maps(
    intervention: Intervention,
    image: int = 0,
    replace: str | None = None,
    by: Sequence[str] | None = None,
    blocks: Sequence[int] | None = None,
    show: Literal["components", "cosine"] = "components",
) -> MapGrid:
    """Return a row of maps for each replacement: untouched, then with the replacement in one block after another.

    Args:
        intervention: the result of ``intervene``.
        image: one of its photographs.
        replace: the replaced group; by default the first one.
        by: only these replacements.
        blocks: where tokens are replaced; by default up to five blocks, evenly spaced.
        show: the first three principal components of the photograph's untouched patches as colours, or the cosine of
            each patch to itself in the untouched model. Captions have the mean cosine in both cases.

    Raises:
        LookupError: if there is no such photograph or condition, or pixels were not kept.
    """
    kept = intervention.photographs
    count = 0 if kept is None else len(kept.jpegs)
    if kept is None or not 0 <= image < count:
        raise LookupError(f"the intervention keeps {count} photographs, got image {image}; pixels may be left out")
    replace = kept.conditions[0].replace if replace is None else replace
    site = kept.conditions[0].site
    places = {
        (each.by, each.block): k
        for k, each in enumerate(kept.conditions)
        if (each.replace, each.site) == (replace, site)
    }
    names = list(dict.fromkeys(name for name, _ in places)) if by is None else list(by)
    every = sorted({block for _, block in places})
    chosen = evenly_spaced(every, 5) if blocks is None and every else list(blocks or ())
    wanted = [(name, block) for name in names for block in chosen]
    if not wanted or (missing := [each for each in wanted if each not in places]):
        have: list[Any] = sorted(places) or [each.replace for each in kept.conditions]
        raise LookupError(f"no replacement of {replace} by {missing if wanted else names}; there are {have}")
    maps, captions = [], []
    for name in names:
        at = [places[name, block] for block in chosen]
        cosines = kept.cosines[image, at].astype(float)
        colours = np.concatenate([kept.untouched[image][None], kept.components[image, at]]) / 255
        opaque = np.concatenate([colours, np.ones((*colours.shape[:3], 1))], axis=-1)
        maps += list(opaque if show == "components" else np.concatenate([np.ones((1, *cosines.shape[1:])), cosines]))
        captions += ["", *(f"{value:.2f}" for value in cosines.mean((1, 2)))]
    return MapGrid(
        image=kept.names[image],
        model=f"{intervention.model} (untrained)" if intervention.untrained else intervention.model,
        photograph=np.asarray(Image.open(io.BytesIO(kept.jpegs[image])).convert("RGB")) / 255,
        maps=np.stack(maps),
        titles=tuple(["untouched", *(f"block {block}" for block in chosen)] * len(names)),
        columns=1 + len(chosen),
        rows=tuple(names),
        quantity="" if show == "components" else "cosine of each final patch to itself",
        captions=tuple(captions),
        note=f"{replace} replaced at {site} · under each map the mean cosine of the final patches to themselves"
        + (" · colours: principal components of the untouched patches" if show == "components" else ""),
    )
