"""Record the activations of a few images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenlens.analysis.run import check_channels, no_usable_image, open_for_model, to_model
from tokenlens.families.base import Family
from tokenlens.images.batches import iterate_batches
from tokenlens.models.loading import load_model
from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import NormCall
from tokenlens.recording.recorder import Recorder, evaluating
from tokenlens.recording.recording import Recording
from tokenlens.storage.seeds import check_seed
from tokenlens.tokens import HEAD_SITES, Site


class RecordingObserver:
    """The ``Observer`` that fills a ``Recording``, and raises before it would exceed its memory budget."""

    def __init__(self, recording: Recording, sites: set[Site], patterns: bool | None, max_bytes: int) -> None:
        self.recording = recording
        self.sites = sites
        self.patterns = patterns
        self.max_bytes = max_bytes

    def _copy(self, x: Tensor) -> Tensor:
        self.require(x.numel() * x.element_size())
        return x.to("cpu", copy=True)

    def require(self, nbytes: int) -> None:
        """Raise ValueError if this many more bytes would exceed the budget."""
        total = self.recording.nbytes + nbytes
        if total > self.max_bytes:
            raise ValueError(
                f"the recording would exceed its budget of {self.max_bytes / 2**20:.0f} MiB (needs at least "
                f"{total / 2**20:.0f} MiB); record fewer images, blocks or sites, or raise max_bytes"
            )

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Keep a copy of the tokens."""
        self.recording.tensors[block, str(site)] = self._copy(x_BTD)

    def norm(
        self, block: int | None, site: Site, module: nn.Module, x_BTD: Tensor, y_BTD: Tensor, call: NormCall | None
    ) -> None:
        """Keep a copy of the output."""
        self.tokens(block, site, y_BTD)

    def attention(self, block: int, call: AttentionCall) -> None:
        """Keep copies of q, k and v, and of the pattern if asked for."""
        for site, x in zip(HEAD_SITES, (call.q_BHTd, call.k_BHTd, call.v_BHTd), strict=True):
            if site in self.sites:
                self.recording.tensors[block, str(site)] = self._copy(x)
        if call.pattern_BHTT is None and {Site.Q, Site.K} <= self.sites:
            self.recording.scores[block] = call.scale, None if call.bias is None else self._copy(call.bias)
            if call.learned is not None:
                self.recording.learned_keys[block] = self._copy(call.learned[0][0])
        if self.patterns or (self.patterns is None and call.pattern_BHTT is not None):
            self.require(call.q_BHTd.shape[0] * call.q_BHTd.shape[1] * call.q_BHTd.shape[2] ** 2 * 4)
            self.recording.patterns[block] = self._copy(call.pattern())


def record(
    model: str | nn.Module,
    images: Any = "sample",
    *,
    sites: Iterable[str] | None = None,
    blocks: Iterable[int] | None = None,
    patterns: bool | None = False,
    max_bytes: int = 2**30,
    limit: int | None = None,
    device: str = "auto",
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = True,
    img_size: int | tuple[int, int] | None = None,
    model_args: Mapping[str, Any] | None = None,
    family: Family | None = None,
) -> Recording:
    """Record the activations of a few images at chosen sites and blocks.

    Args:
        model, images, device, seed, checkpoint, pretrained, img_size, model_args, family: as in ``analyze``.
        sites: sites to record (default all).
        blocks: blocks to record (default all); negative ones count from the end.
        patterns: True keeps the attention patterns, (B, H, T, T) per block; None only those that cannot be computed
            from q and k, because the model computes softmax(QKᵀ) itself.
        max_bytes: memory budget.
        limit: maximum number of images; by default 4 from a named source, all of a tensor or data set.

    Raises:
        ValueError: before the recording would exceed ``max_bytes``.
    """
    check_seed(seed)
    loaded = load_model(
        model,
        pretrained=pretrained,
        checkpoint=checkpoint,
        img_size=img_size,
        model_args=model_args,
        device=device,
        seed=seed,
        family=family,
    )
    if limit is None and isinstance(images, str | os.PathLike):
        limit = 4
    source = open_for_model(images, loaded, limit, seed)
    parts, names = [], []
    for batch in iterate_batches(source, 8):
        parts.append(batch.images)
        names += batch.names
    if not parts:
        raise no_usable_image(source.description, source.skipped)
    pixels_BCHW = torch.cat(parts)
    check_channels(pixels_BCHW, loaded)
    height, width = pixels_BCHW.shape[-2:]
    layout = loaded.family.layout(loaded.module, (height, width))
    block_layouts = {
        number: own
        for number, block in enumerate(loaded.family.blocks(loaded.module))
        if (own := loaded.family.block_layout(block, layout)) != layout
    }
    wanted = {Site(site) for site in (Site if sites is None else sites)}
    mean, std = (tuple(loaded.data_config[key]) for key in ("mean", "std"))
    recording = Recording(
        layout,
        model=loaded.name,
        images=pixels_BCHW,
        names=names,
        mean=mean,
        std=std,
        untrained=loaded.untrained,
        block_layouts=block_layouts,
        source=source.description,
        notes=[note for note in (layout.border_note((height, width)), *loaded.family.notes(loaded.module)) if note],
        skipped=list(source.skipped),
        weights=dict(loaded.weights),
    )
    keeper = RecordingObserver(recording, wanted, patterns, max_bytes)
    watched = wanted | (set() if patterns is False else {Site.Q})
    with (
        evaluating(loaded.module),
        Recorder(loaded.module, loaded.family, layout, keeper, sites=watched, blocks=blocks) as recorder,
    ):
        recorder.run(to_model(pixels_BCHW, loaded.module))
    return recording
