"""The head of a probe run, applied again to features of the images that the run was scored on."""

# Shapes: B images of a batch, S numbers that are summed over images.

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenlens.images.decoding import UnreadableImageError
from tokenlens.images.files import RawImage, printable_name
from tokenlens.images.labelled.masks import MaskedImages
from tokenlens.images.sources import ImageSource
from tokenlens.models.loading import LoadedModel
from tokenlens.probes._extraction import keeps_half
from tokenlens.probes._features import FrozenModel
from tokenlens.probes._probe import choose_images, open_splits
from tokenlens.probes._result import LARGEST_HEAD, ProbeResult
from tokenlens.probes.base import FittedHead, ImageFeatures, PatchFeatures, probes

MAY_DIFFER = ("model", "device", "torch", "timm")
"""Entries of a backbone's identity that may differ from the run's: names and versions, which change no feature."""


class FittedProbe:
    """A probe run's head with its backbone and its test images.

    Args:
        result: the probe run.
        loaded: the model, whose features must be those of the run.
        data: the labelled images or masks, if they are not where the run found them.
        amp: run the model in bfloat16, as the run did.

    Raises:
        ValueError: if the run keeps no head, the model is another one or gives other features, or the test images are
            not those of the run.
    """

    def __init__(self, result: ProbeResult, loaded: LoadedModel, data: Any = None, amp: bool = False) -> None:
        check_has_head(result)
        self.result = result
        self.probe = probes.get(result.task)()
        identity, provenance = result.provenance["identity"], result.provenance
        self.backbone = FrozenModel(loaded, self.probe.kind, identity["blocks"], amp)
        for name, value in self.backbone.identity.items():
            if name not in MAY_DIFFER and identity.get(name) != value:
                raise ValueError(
                    f"the probe was fitted on features of {identity['model']} with different {name.replace('_', ' ')} "
                    f"({_short(identity.get(name))}) than this {loaded.name} ({_short(value)}); give the model and the "
                    "options of the probe run"
                )
        given = data if data is not None else provenance["data_path"]
        if not given:
            raise ValueError("the probe run does not say where its images are; name the data set (data, --data)")
        _, self.images = open_splits(self.probe.kind, given)
        if self.images.description["sha256"] != provenance["data"][1]["sha256"]:
            raise ValueError(
                f"the test images of {given if isinstance(given, str | os.PathLike) else 'this data set'} are not "
                "those of the probe run: their names, labels or classes differ"
            )
        scored = set(result.per_image["image"])
        chosen = choose_images(len(self.images), provenance["limit"])
        self._number = {name: int(i) for i in chosen if (name := printable_name(self.images.names[i])) in scored}
        assert len(self._number) == result.n, "names identify the images of a split"
        self._head = FittedHead(result.head)
        self._mask = lru_cache(maxsize=64)(lambda number: self.images.read(number)[1])

    def open(self, limit: int | None = None, seed: int = 0) -> ImageSource:
        """Return the images that the run was scored on, or a random ``limit`` of them, with the run's transform."""
        count = len(self._number)
        chosen = np.arange(count)
        text = f"the {count} test images of the probe, {self.images.description['source']}"
        if limit is not None and limit < count:
            chosen = np.sort(np.random.RandomState(seed % 2**32).permutation(count)[:limit])
            text += f", a random {limit} of them (seed {seed})"
        content = _TestImages(self.images, list(self._number.items()))
        transform, size = self.backbone.transform, self.backbone.image_size
        return ImageSource(text, content, len(chosen), chosen, limit, transform, size)

    def count(self, features: Mapping[str, Tensor], names: Sequence[str]) -> np.ndarray:
        """Apply the head to features of images with these names, and return their numbers of ``Probe.count``, (B, S).

        Args:
            features: what ``backbone.forward`` returned for the images.
            names: of the images.
        """
        numbers, classes = [self._number[name] for name in names], tuple(self.images.classes)
        if self.probe.kind == "image":
            joined_BF = torch.cat([features[source] for source in self.result.provenance["sources"]], dim=1)
            return self.probe.count(self._head, ImageFeatures(joined_BF, self.images.labels[numbers], classes))
        patches_BPF = features["patches"].half() if keeps_half(self.backbone, "patches") else features["patches"]
        grid, device = self.backbone.grid, patches_BPF.device
        test = PatchFeatures(
            patches_BPF.cpu().numpy(), grid, lambda i: self._mask(numbers[i]), tuple(names), classes, device
        )
        return self.probe.count(self._head, test)


class _TestImages:
    """Images of a split by number, with their names."""

    def __init__(self, images: Any, numbers: Sequence[tuple[str, int]]) -> None:
        self.images, self.numbers = images, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> RawImage:
        name, number = self.numbers[index]
        try:
            image = self.images.read(number)
        except UnreadableImageError as error:
            return RawImage(name, reason=str(error))
        return RawImage(name, image[0] if isinstance(self.images, MaskedImages) else image)


def load_probe(run: str | os.PathLike[str] | ProbeResult) -> ProbeResult:
    """Return a probe run that keeps its head; see ``FittedProbe``."""
    result = run if isinstance(run, ProbeResult) else ProbeResult.load(Path(run))
    check_has_head(result)
    return result


def check_has_head(result: ProbeResult) -> None:
    """Raise ValueError if a probe run keeps no head that fits a model."""
    if "weights" not in result.provenance["identity"]:
        raise ValueError(f"the probe is one of {result.model}, which is no model; probe the model first")
    if not result.head:
        size = result.provenance.get("head_bytes")
        reason = "an earlier tokenlens wrote it"
        if size is not None:
            reason = f"its {size / 2**20:.0f} MiB are more than the {LARGEST_HEAD // 2**20} MiB that are kept"
        raise ValueError(f"the probe run of {result.model}, {result.task}, has no fitted head: {reason}; probe again")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
