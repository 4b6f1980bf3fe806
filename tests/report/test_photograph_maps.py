"""Maps of norms and heads in the page of an analysis: what is marked, and the numbers under them."""

from __future__ import annotations

import base64
import dataclasses
import io

import numpy as np
from PIL import Image

from tests.support.synthetic_analysis import synthetic_analysis
from tests.support.synthetic_photographs import with_photographs
from tokenlens.report.analysis_page import content
from tokenlens.report.photograph_maps import photograph_maps

SMALL = {"blocks": 8, "heads": 2, "channels": 16, "grid": (4, 6)}


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"), dtype=int)


def test_high_norm_patches_are_orange_and_heads_have_their_share_of_attention():
    analysis = with_photographs(synthetic_analysis(**SMALL))
    norms, heads = photograph_maps(analysis)
    assert [one.title for one in norms.photographs[0]] == ["block 0", "1", "3", "4", "6", "7"]
    for one in norms.photographs[1]:
        assert one.number == "1"  # the patch at the top left has five times the norm of the others
        assert pixels(one.picture).shape == (4, 6, 3)
        assert pixels(one.picture)[0, 0].tolist() == [0xD5, 0x5E, 0x00]
        assert [0xD5, 0x5E, 0x00] not in pixels(one.picture).reshape(-1, 3)[1:].tolist()
    kept = analysis.photographs.heads[0].astype(float).sum((1, 2))
    assert [one.title for one in heads.photographs[0]] == ["mean", "head 0", "head 1"]
    assert [one.number for one in heads.photographs[0]] == [f"{100 * x:.0f} %" for x in (kept.mean(), *kept)]


def test_commands_for_more_maps_name_a_block_and_a_patch_of_this_model():
    commands = [text for _, text in content(with_photographs(synthetic_analysis(**SMALL)))["map_commands"]]
    assert sum(text.endswith("--map attention --block 7") for text in commands) == 1
    assert sum(text.endswith("--map correspondence --token 2,3") for text in commands) == 1


def test_what_was_not_kept_is_not_drawn():
    assert photograph_maps(synthetic_analysis(**SMALL)) == []
    analysis = with_photographs(synthetic_analysis(**SMALL))
    analysis.photographs = dataclasses.replace(analysis.photographs, heads=None)
    assert len(photograph_maps(analysis)) == 1
