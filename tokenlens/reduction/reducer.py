"""Reduce activations inside forward hooks, without storing them."""

# Shapes: B images, T tokens, D channels.

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenlens.families import NormParameters, norm_parameters
from tokenlens.recording.attention import AttentionCall, as_float
from tokenlens.recording.capture import NormCall
from tokenlens.recording.recorder import PooledTokens
from tokenlens.reduction.kernels import Reduced, ReductionKernels
from tokenlens.reduction.summaries import (
    AttentionSummary,
    BatchSummary,
    NormSummary,
    Reduction,
    Summary,
    SummaryType,
    TokenSummary,
    UpdateSummary,
)
from tokenlens.tokens import HEAD_SITES, RESIDUAL_SITES, Key, Site, TokenLayout

SAMPLED_PATCHES = 8
"""Number of patches of each image in ``NormSummary.patch_sample``."""

_LINEAR = {"unit_patch_sum", "patch_sum"}


class Reducer:
    """The ``Observer`` of ``analyze``: reduces each activation to a summary while its hook runs.

    Call ``start`` and ``end`` around each forward pass; ``collect`` returns the summaries of all passes since the last
    call.

    Args:
        layout: the model's tokens.
        wanted: the sums over patches to compute at each site.
        needs: what metrics request besides: ``norm_stages``, ``updates``, ``pattern``, ``patch_sample`` of
            ``Metric.needs``.
        raw: name, sites and function of each metric that is computed from the activation itself: tokens, the call of an
            attention (site ``pattern``) or pooled tokens. The function gets block and site, the indices of the images
            and the activation; it returns tensors (B, …) by name, or None if it sums over images itself.
        kernels: the implementation of the reductions; by default torch operations.
    """

    def __init__(
        self,
        layout: TokenLayout,
        wanted: Mapping[str, set[Reduction]],
        needs: Collection[str] = (),
        raw: Iterable[tuple[str, tuple[str, ...], Callable[[Key, list[int], Any], Any]]] = (),
        kernels: ReductionKernels | None = None,
    ) -> None:
        self.layout = layout
        self.wanted = wanted
        self.needs = needs
        self.raw = list(raw)
        # The same positions in every image, in an order of which any beginning is spread over the grid.
        positions = np.random.RandomState(0).permutation(layout.positions("patch"))[:SAMPLED_PATCHES]
        self._sampled = torch.from_numpy(positions) if "patch_sample" in needs else None
        self._kernels = ReductionKernels(layout) if kernels is None else kernels
        # The same sums at all token sites, so that their summaries have one shape.
        linear = {name for site, names in wanted.items() if site not in HEAD_SITES for name in names if name in _LINEAR}
        self._fields = {site: {*linear, *wanted.get(site, ())} for site in map(str, Site)}
        self._images = 0
        self._parameters: dict[int, NormParameters] = {}
        self._residual: Tensor | None = None
        self._residual_norms: Tensor | None = None
        # A residual is reduced together with the stages of the norm that reads it next.
        self._waiting: list[tuple[Tensor, int, Key]] = []
        self._forget()

    def _forget(self) -> None:
        self._indices: list[int] = []
        self._summaries: dict[SummaryType, dict[Key, list[Summary]]] = {}
        self._raw: dict[str, dict[Key, list[Mapping[tuple[str, str], Tensor]]]] = {}

    def start(self, indices: list[int]) -> None:
        """Begin a forward pass of the images with these indices."""
        self._images, self._residual, self._waiting = len(indices), None, []
        self._indices = self._indices + indices

    def end(self) -> None:
        """End a forward pass; nothing of the size of the tokens is held afterwards."""
        self._reduce_waiting()
        self._residual = None

    def collect(self) -> BatchSummary:
        """Return the summaries of all passes since the last call."""
        raw = {
            name: {
                key: {label: torch.cat([part[label] for part in parts]) for label in parts[0]}
                for key, parts in by_key.items()
            }
            for name, by_key in self._raw.items()
        }
        batch = BatchSummary(self.layout, self._indices, self._summaries, raw)
        self._forget()
        return batch

    # -- the Observer's methods

    def tokens(self, block: int | None, site: Site, x_BTD: Tensor) -> None:
        """Reduce the tokens of a site; those of an update together with its residual."""
        key = (block, str(site))
        self._check_images(x_BTD)
        self._compute_raw(key, x_BTD)
        self._passes(TokenSummary, key)  # sites stay in the order in which tokens pass them
        if self._waits(x_BTD):
            self._waiting.append((x_BTD, x_BTD._version, key))
        else:
            self._reduce_waiting()
        residual: Tensor | None = None
        if "updates" in self.needs and site in (Site.RESID_PRE, Site.RESID_MID):
            # Held until the branch's update arrives; the block itself holds it as long.
            self._residual, self._residual_norms = x_BTD, None
        elif "updates" in self.needs and site in (Site.ATTN_OUT, Site.MLP_OUT):
            residual, self._residual = self._residual, None
        if self._waiting:
            return
        if "norm_stages" in self.needs and site in RESIDUAL_SITES:
            self._waiting.append((x_BTD, x_BTD._version, key))
            return
        reduced = self._kernels.reduce_tokens(x_BTD, self._fields[site], residual)
        product = reduced.pop("product", None)
        summary = self._summarize(x_BTD, reduced, [key])
        if residual is not None and product is not None:
            if self._residual_norms is None:
                self._residual_norms = torch.linalg.vector_norm(as_float(residual), dim=-1)
            self._keep(key, UpdateSummary(self.layout, product, summary.norms, self._residual_norms))

    def norm(
        self,
        block: int | None,
        site: Site,
        module: nn.Module,
        x_BTD: Tensor,
        y_BTD: Tensor,
        call: NormCall | None = None,
    ) -> None:
        """Reduce a norm's output and, where wanted, its input and stages."""
        key = (block, str(site))
        self._check_images(y_BTD)
        self._compute_raw(key, y_BTD)
        if "norm_stages" not in self.needs:
            self._summarize(y_BTD, self._kernels.reduce_tokens(y_BTD, self._fields[site]), [key])
            return
        keys = [other for *_, other in self._waiting] if self._waits(x_BTD) else []
        if keys:
            self._waiting = []
        self._reduce_waiting()
        if id(module) not in self._parameters:
            self._parameters[id(module)] = norm_parameters(module)
        parameters = self._parameters[id(module)]
        if call is not None and (call.mean_BT is None) != (parameters.kind == "rms"):
            call = None
        wanted = self._fields[site].union(*(self._fields[read] for _, read in keys))
        before, after, stages = self._kernels.reduce_norm(x_BTD, y_BTD, parameters, call, wanted, self._fields[site])
        summaries = self._summarize(x_BTD, before, keys), self._summarize(y_BTD, after, [key])
        if self._sampled is not None and site == Site.NORM1:
            self._sampled = self._sampled.to(x_BTD.device)
            stages["patch_sample"] = as_float(x_BTD.index_select(1, self._sampled))
        fields: dict[str, Any] = {"parameters": [parameters], **stages}
        self._keep(key, NormSummary(self.layout, *summaries, **fields))

    def attention(self, block: int, call: AttentionCall) -> None:
        """Reduce q, k and v per head, and the attention pattern."""
        for site, x in zip(HEAD_SITES, (call.q_BHTd, call.k_BHTd, call.v_BHTd), strict=True):
            if site in self.wanted and x.shape[-2] == self.layout.tokens:  # where only CLS attends, q is shorter
                reduced = self._kernels.reduce_tokens(x, self.wanted[site] & _LINEAR)
                self._keep((block, site), TokenSummary(self.layout, **reduced))
        if "pattern" in self.needs:
            reduced = self._kernels.reduce_attention(call)
            if call.learned is not None:
                reduced["bias_mass"] = call.bias_mass()
            self._keep((block, "pattern"), AttentionSummary(self.layout, **reduced))
        self._compute_raw((block, "pattern"), call)

    def pooled(self, pooled: PooledTokens) -> None:
        """Compute the metrics of the latent that pools the tokens."""
        self._compute_raw((None, str(Site.POOL)), pooled)

    # -- what is kept

    def _check_images(self, x: Tensor) -> None:
        """Raise ValueError unless these are the tokens of the images of this forward pass."""
        if len(x) != self._images:
            raise ValueError(
                f"a site has {len(x)} images in a forward pass of {self._images}; every site must see each one once"
            )

    def _summarize(self, x: Tensor, reduced: Reduced, keys: list[Key]) -> TokenSummary:
        """Keep the summary of a tensor for all sites that it stands for."""
        summary = TokenSummary(self.layout, **reduced)
        for key in keys:
            self._keep(key, summary)
        if x is self._residual:
            self._residual_norms = summary.norms
        return summary

    def _keep(self, key: Key, summary: Summary) -> None:
        self._passes(type(summary), key).append(summary)

    def _passes(self, kind: SummaryType, key: Key) -> list[Summary]:
        return self._summaries.setdefault(kind, {}).setdefault(key, [])

    def _compute_raw(self, key: Key, activation: Any) -> None:
        for name, sites, function in self.raw:
            if key[1] in sites:
                values = function(key, self._indices[-self._images :], activation)
                if values is not None:
                    self._raw.setdefault(name, {}).setdefault(key, []).append(values)

    def _waits(self, x: Tensor) -> bool:
        return bool(self._waiting) and self._waiting[0][0] is x and self._waiting[0][1] == x._version

    def _reduce_waiting(self) -> None:
        """Reduce the residual that waits for its norm, if there is one: no norm has read it."""
        waiting, self._waiting = self._waiting, []
        for x, version, key in waiting:
            if x._version != version:
                raise ValueError("the model changed the residual stream in place where no norm had read it yet")
            self._summarize(x, self._kernels.reduce_tokens(x, self._fields[key[1]]), [key])
