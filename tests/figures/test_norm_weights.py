"""Weights of norms: of both sides where they are specialized, and of ordinary ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.support.figure_subjects import subject
from tokenlens.figures import NothingToDraw, figures


def test_norm_weights_are_those_of_both_sides():
    analysis = subject("usual")
    frame = figures.module("norm_weights").frame(analysis, norms="norm2", parameters="beta")
    wide = frame.pivot(index="block", columns="channel", values="difference").to_numpy()
    cls, patch = (analysis.arrays[f"norm_differentiation/{side}_beta_norm2"].values for side in ("cls", "patch"))
    np.testing.assert_allclose(wide, cls - patch)
    np.testing.assert_array_equal(frame["cls"], cls.ravel())
    ordinary = figures.module("norm_weights").frame(subject("standard"), norms=["norm1"])
    wide = ordinary[ordinary["parameter"] == "gamma"].pivot(index="block", columns="channel", values="value")
    np.testing.assert_array_equal(wide, subject("standard").arrays["norm_differentiation/gamma_norm1"].values)
    bare = dataclasses.replace(subject("standard"), arrays={})
    with pytest.raises(NothingToDraw, match="has no weights of a norm among norm1, norm2, final_norm"):
        figures.module("norm_weights").frame(bare)
