"""The first photographs of an analysis: small pictures, maps of their patches across norm1, and attention of CLS."""

# Shapes: N images, L blocks, B images of a batch, T tokens, P patches, H heads, D channels; h, w the patch grid;
# S before and after the norm.

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from tokenlens.recording.attention import AttentionCall
from tokenlens.recording.capture import NormCall
from tokenlens.recording.recorder import Observer
from tokenlens.reduction.memory import HostCopy
from tokenlens.tokens import Site, TokenLayout, take

MOST_PHOTOGRAPHS = 4
"""Number of images whose maps are kept."""

SIDE, QUALITY = 224, 80
"""Longer side in pixels and quality of the JPEG of a photograph."""

PAIRED_PATCHES = 128
"""Patches of an image whose cosines to each other are counted."""

BINS = 80
"""Number of bins of cosines between −1 and 1."""

LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Photographs:
    """Maps over the patches of a few images, before and after norm1 in every block with a [CLS] token.

    Attributes:
        names: of the images.
        hashes: their SHA-256.
        blocks: the blocks.
        cosines: cosine of CLS to each patch before and after norm1, float16, (N, 2, L, h, w). If there are several
            class tokens, the mean of their cosines.
        norms: ‖x‖ of each patch before and after norm1, float16, (N, 2, L, h, w).
        pairs: histograms of the cosines between ``PAIRED_PATCHES`` patches of each image, ``BINS`` bins from −1 to 1,
            summed over images, (2, L, bins).
        jpegs: each photograph as the model saw it, ``SIDE`` pixels wide or high; empty if pixels are not kept.
        heads: attention of CLS to each patch in each head of the last block, mean over class tokens, float16,
            (N, H, h, w); None if attention was not observed.
    """

    names: tuple[str, ...]
    hashes: tuple[str, ...]
    blocks: tuple[int, ...]
    cosines: NDArray[np.float16]
    norms: NDArray[np.float16]
    pairs: NDArray[np.int64]
    jpegs: tuple[bytes, ...] = ()
    heads: NDArray[np.float16] | None = None

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return maps and JPEGs as arrays by name."""
        heads = {} if self.heads is None else {"heads": self.heads}
        return {"cosines": self.cosines, "norms": self.norms, "pairs": self.pairs, **heads, **pack_jpegs(self.jpegs)}

    @classmethod
    def from_arrays(cls, described: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Photographs:
        """Return what ``to_arrays`` wrote, with names, hashes and blocks from ``described``."""
        return cls(
            names=tuple(described["names"]),
            hashes=tuple(described["hashes"]),
            blocks=tuple(described["blocks"]),
            cosines=arrays["cosines"],
            norms=arrays["norms"],
            pairs=arrays["pairs"],
            jpegs=unpack_jpegs(arrays),
            heads=arrays.get("heads"),
        )


class PhotographObserver:
    """An ``Observer`` that passes everything on, and keeps maps of the first images at norm1 and in the last attention.

    Args:
        observers: receive everything of each block; None is the final norm.
        layouts: the tokens of each block.
    """

    def __init__(self, observers: Mapping[int | None, Observer], layouts: Mapping[int | None, TokenLayout]) -> None:
        self.observers = observers
        self._layouts = layouts
        self._last = max(block for block in layouts if block is not None)
        self._names: list[str] = []
        self._hashes: list[str] = []
        self._pixels: list[Tensor] = []
        self._maps: dict[int, list[HostCopy]] = {}
        self._pairs: dict[int, list[HostCopy]] = {}
        self._heads: list[HostCopy] = []
        self._room = 0

    def start(self, pixels_BCHW: Tensor, names: Sequence[str], hashes: Sequence[str]) -> None:
        """Begin a forward pass of these images."""
        self._room = min(MOST_PHOTOGRAPHS - len(self._names), len(names))
        self._names += names[: self._room]
        self._hashes += hashes[: self._room]
        self._pixels += [pixels.clone() for pixels in pixels_BCHW[: self._room]]

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Pass tokens on."""
        self.observers[block].tokens(block, site, x_BTD)

    def attention(self, block: int, call: AttentionCall) -> None:
        """Keep the attention of CLS in the last block, and pass the call on."""
        self.observers[block].attention(block, call)
        layout = self._layouts[block]
        if self._room and block == self._last and layout.has("cls"):
            row_BHP = layout.patches_of(call.rows(layout.positions("cls"))[: self._room].mean(-2), -1)
            self._heads.append(HostCopy(row_BHP.reshape(*row_BHP.shape[:2], *layout.grid).half()))

    def norm(
        self, block: int | None, site: Site, module: nn.Module, x_BTD: Tensor, y_BTD: Tensor, call: NormCall | None
    ) -> None:
        """Keep maps of the input and output of norm1, and pass both on."""
        if self._room and block is not None and site == Site.NORM1 and self._layouts[block].has("cls"):
            sides = [_maps(x_BTD[: self._room], self._layouts[block]) for x_BTD in (x_BTD, y_BTD)]
            self._maps.setdefault(block, []).append(HostCopy(torch.stack([maps for maps, _ in sides], 1).half()))
            self._pairs.setdefault(block, []).append(HostCopy(torch.stack([pairs for _, pairs in sides])))
        self.observers[block].norm(block, site, module, x_BTD, y_BTD, call)

    def photographs(self, mean: Sequence[float], std: Sequence[float], pixels: bool) -> Photographs | None:
        """Return what was kept; None if no norm1 with a class token was observed.

        Args:
            mean: of the normalization that the images went through.
            std: likewise.
            pixels: whether to keep the photographs themselves.
        """
        if not self._maps:
            return None
        blocks = tuple(sorted(self._maps))
        maps_NS2Lhw = np.stack([np.concatenate(_read(self._maps[block])) for block in blocks], 3)
        colour = pixels and all(image.shape[0] == 3 for image in self._pixels)
        return Photographs(
            names=tuple(self._names),
            hashes=tuple(self._hashes),
            blocks=blocks,
            cosines=np.ascontiguousarray(maps_NS2Lhw[:, :, 0]),
            norms=np.ascontiguousarray(maps_NS2Lhw[:, :, 1]),
            pairs=np.stack([_count(self._pairs[block]) for block in blocks], 1),
            jpegs=tuple(jpeg_of(image, mean, std) for image in self._pixels) if colour else (),
            heads=np.concatenate(_read(self._heads)) if self._heads else None,
        )


def _read(copies: Sequence[HostCopy]) -> list[NDArray[Any]]:
    return [copy.read().numpy() for copy in copies]


def _count(copies: Sequence[HostCopy]) -> NDArray[np.int64]:
    """Return histograms of cosines (S, B, pairs) over all images, (S, bins)."""
    cosines = torch.cat([copy.read() for copy in copies], 1).clamp(-1, 1)
    return np.stack([torch.histc(side, BINS, -1, 1).numpy() for side in cosines]).astype(np.int64)


def _maps(x_BTD: Tensor, layout: TokenLayout) -> tuple[Tensor, Tensor]:
    """Return cosine to CLS and norm of each patch, (B, 2, h, w), and cosines of pairs of patches (B, pairs)."""
    x_BTD = x_BTD.detach().float()
    unit_BTD = normalize(x_BTD, dim=-1)
    cls_BD = layout.mean_of(unit_BTD, "cls")
    unit_BPD = layout.patches_of(unit_BTD)
    cosines_BP = (unit_BPD @ cls_BD[:, :, None]).squeeze(-1)
    norms_BP = layout.patches_of(x_BTD).norm(dim=-1).clamp(max=LARGEST)
    step = -(-layout.patches // PAIRED_PATCHES)
    # An even stride would take whole columns of the grid.
    chosen_BMD = take(unit_BPD, tuple(range(0, layout.patches, step + 1 - step % 2 if step > 1 else 1)), 1)
    rows, columns = torch.triu_indices(chosen_BMD.shape[1], chosen_BMD.shape[1], 1, device=x_BTD.device)
    cosines = (chosen_BMD @ chosen_BMD.transpose(1, 2))[:, rows, columns]
    maps_B2P = torch.stack([cosines_BP, norms_BP], 1)
    return maps_B2P.reshape(len(x_BTD), 2, *layout.grid), cosines


def pack_jpegs(jpegs: Sequence[bytes]) -> dict[str, NDArray[np.uint8]]:
    """Return JPEGs as arrays by name, for a file of arrays."""
    return {f"jpeg_{index}": np.frombuffer(jpeg, dtype=np.uint8) for index, jpeg in enumerate(jpegs)}


def unpack_jpegs(arrays: Mapping[str, NDArray[Any]]) -> tuple[bytes, ...]:
    """Return the JPEGs of ``pack_jpegs`` among other arrays."""
    count = sum(name.startswith("jpeg_") for name in arrays)
    return tuple(arrays[f"jpeg_{index}"].tobytes() for index in range(count))


def jpeg_of(image_CHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> bytes:
    """Return a preprocessed image as a JPEG, with its normalization undone."""
    channels = (3, 1, 1)
    pixels = image_CHW.float().cpu() * torch.tensor(std).reshape(channels) + torch.tensor(mean).reshape(channels)
    values = (255 * pixels.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(np.ascontiguousarray(values))
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    picture.save(written, format="jpeg", quality=QUALITY, optimize=True)
    return written.getvalue()
