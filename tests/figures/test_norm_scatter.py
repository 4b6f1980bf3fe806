"""Norms of single patches: which of them are marked, in the scatter and in the histograms."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.figure_subjects import subject
from tokenlens.figures import draw, figures
from tokenlens.figures.norm_scatter import MOST_DOTS


def test_the_rules_of_token_norm_mark_single_patches():
    """Norms 10 and 20 with one patch of 50: it is a high-norm patch and an outlier in every image and block."""
    frame = figures.module("norm_scatter").frame(subject("standard"))
    kept = subject("standard").photographs
    norms = kept.norms[:, 0].astype(float)
    median = np.median(norms, axis=(2, 3), keepdims=True)
    spread = np.median(np.abs(norms - median), axis=(2, 3), keepdims=True)
    for column, threshold in (("high_norm", 3 * median), ("outlier", median + 4 * 1.4826 * spread)):
        marked = (norms > threshold).transpose(1, 0, 2, 3).ravel()
        assert (frame[column].to_numpy() != marked).sum() <= 2  # norms in half precision at a threshold
        assert marked.reshape(*norms.shape[1::-1], 256)[:, :, 0].all()
    np.testing.assert_allclose(frame["before"], norms.transpose(1, 0, 2, 3).ravel(), rtol=6e-3)
    bins = figures.module("norm_histograms").frame(subject("standard"))
    np.testing.assert_allclose(bins.groupby("block")["share"].sum(), 1)
    of_block = frame[frame["block"] == 1]
    assert bins.loc[bins["block"] == 1, "high_norm"].sum() == pytest.approx(of_block["high_norm"].mean())
    drawn = draw(subject("standard"), "norm_scatter").axes[0].get_lines()
    assert len(drawn[1].get_xdata()) == MOST_DOTS
    assert min(drawn[1].get_xdata()) > 3 * median.min()
