"""Stages of a norm: they add up, agree with an independent computation, and claim nothing where there is nothing."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.verification.conftest import SEEDS
from tokenlens.figures import draw
from tokenlens.verification import Verification, verify
from tokenlens.verification.stage_effects import (
    ALL,
    STAGES,
    STAGES_BY_SEED,
    THIRDS,
    block_ranges,
    describe_stages,
    dominant_stage,
    moved_stages,
    tabulate_stage_effects,
)


def made_up(parts, variants=("standard", "paper"), norms=("norm1", "norm2"), seeds=SEEDS):
    """A table by seed of any numbers, with their total."""
    rows = []
    for variant, norm, seed in itertools.product(variants, norms, range(seeds)):
        values = {part: parts(variant, norm, part) for part in STAGES}
        for part, value in (values | {"total": sum(values.values())}).items():
            rows.append(("a setting", variant, seed, norm, ALL, part, value, 9))
    return pd.DataFrame(rows, columns=list(STAGES_BY_SEED))


# -- real models


def test_parts_add_up_to_the_total(found):
    for table, keys in (
        (found.stages_by_seed, ["setting", "variant", "seed", "norm", "blocks"]),
        (found.stages, ["setting", "variant", "against", "norm", "blocks"]),
    ):
        wide = table.pivot_table(index=keys, columns="part", values="value")
        assert len(wide)
        np.testing.assert_allclose(wide[[*STAGES]].sum(axis=1), wide["total"], atol=1e-6)
        own = wide.dropna()
        assert len(own)
        for stage in ("gamma", "beta"):
            np.testing.assert_allclose(own[f"{stage}_shared"] + own[f"{stage}_own"], own[stage], atol=1e-6)
        np.testing.assert_allclose(own["gamma_own"] + own["beta_own"], own["total_own"], atol=1e-6)


def test_all_of_it_follows_from_the_analyses(found):
    """With pandas alone, from the tables of the run folders and what the folder has written."""
    mine: dict[tuple[str, str, str], list[float]] = {}
    for variant, seed in itertools.product(("standard", "paper"), range(SEEDS)):
        file = found.path / "analyses" / f"{variant}_seed{seed}" / "table.csv"
        table = pd.read_csv(file, keep_default_na=False)
        rows = table[(table["metric"] == "norm_differentiation") & (table["group"] == "cls-patch")]
        for norm, part in itertools.product(("norm1", "norm2"), (*STAGES, "total")):
            some = rows[(rows["site"] == norm) & (rows["part"] == part)].sort_values("block")["value"].astype(float)
            assert len(some) == 3
            for name, value in {ALL: some.mean(), **dict(zip(THIRDS, some, strict=True))}.items():
                mine.setdefault((variant, norm, part, name), []).append(value)
    table = pd.read_csv(found.path / "stages.csv", keep_default_na=False)
    told = table.set_index(["variant", "against", "norm", "part", "blocks"])
    for (variant, norm, part, name), values in mine.items():
        compared = {"": values}
        if variant != "standard":
            compared["standard"] = np.subtract(values, mine["standard", norm, part, name])
        for against, numbers in compared.items():
            row = told.loc[(variant, against, norm, part, name)]
            interval = stats.ttest_1samp(numbers, 0).confidence_interval()
            assert float(row["value"]) == pytest.approx(np.mean(numbers), abs=1e-6)
            assert float(row["ci_low"]) == pytest.approx(interval.low, abs=1e-5)
            assert float(row["ci_high"]) == pytest.approx(interval.high, abs=1e-5)
            assert int(row["seeds"]) == SEEDS
    asked = table[(table["against"] == "standard") & (table["blocks"] == ALL) & table["part"].isin(STAGES)]
    assert len(asked) == 6
    np.testing.assert_allclose(
        asked["q"].astype(float), stats.false_discovery_control(asked["p"].astype(float)), rtol=1e-9
    )
    assert (table.drop(asked.index)["q"] == "").all(), "nothing else is claimed, so nothing else is corrected"


def test_the_folder_and_the_page_have_it(found):
    loaded = Verification.load(found.path)
    pd.testing.assert_frame_equal(loaded.stages, found.stages, check_dtype=False)
    pd.testing.assert_frame_equal(loaded.stages_by_seed, found.stages_by_seed, check_dtype=False)
    assert loaded.stage_sentences == found.stage_sentences
    page = (found.path / "report.html").read_text(encoding="utf-8")
    assert "Which stage of the norm separates CLS from patches" in page
    for name in ("verify_scores", "verify_stages", "verify_stage_changes"):
        assert f'<figure id="{name}"' in page


def test_a_folder_of_an_earlier_version_is_read_and_judged_again(found, copy, tmp_path):
    for name in ("stages.csv", "stages_by_seed.csv", "continued.csv"):
        (copy / name).unlink()
    settings = json.loads((copy / "verify.json").read_text())
    settings["regime"] = settings.pop("scale")
    (copy / "verify.json").write_text(json.dumps(settings))
    loaded = Verification.load(copy)
    assert loaded.stages.empty
    assert loaded.settings["scale"] == settings["regime"]
    again = verify(runs=[copy], out=tmp_path / "again", report=False)
    pd.testing.assert_frame_equal(again.stages, found.stages)


def test_figures_have_the_numbers_of_the_tables(found):
    from tokenlens.figures import verify_scores, verify_stage_changes

    changes = verify_stage_changes.frame(found)
    for (_, part), rows in changes.groupby(["norm", "part"]):
        assert rows["seed"].notna().sum() == SEEDS, part
        by_seed, mean = rows[rows["seed"].notna()]["value"].mean(), rows[rows["seed"].isna()]["value"].item()
        assert by_seed == pytest.approx(mean, abs=1e-9)
    scores = verify_scores.frame(found)
    assert {"standard", "paper"} <= set(scores["variant"])
    for width in ("single", "double"):
        draw(found, "verify_stages", width=width)


# -- what is said


def test_a_null_is_given_no_claim():
    """Three seeds of nothing: now and then something comes out of it, no more often than it may."""
    draw = np.random.default_rng(0)
    claims = 0
    for _ in range(40):
        by_seed = made_up(lambda *_: draw.normal(0, 0.05))
        effects = tabulate_stage_effects(by_seed)
        text = describe_stages(by_seed, effects)[0]
        found = len(moved_stages(effects)) > 0
        assert found == ("paper against standard changes" in text)
        claims += found or "mostly" in text
    assert claims <= 7, "5 % of 40 are expected; more than 7 come up once in 1,000 times"


def test_what_is_there_is_said():
    draw = np.random.default_rng(0)

    def parts(variant, norm, part):
        level = {"centring": 0.02, "gamma": 0.3, "beta": 0.05}[part]
        return level + (0.1 if (variant, norm, part) == ("paper", "norm1", "beta") else 0) + draw.normal(0, 0.002)

    by_seed = made_up(parts)
    effects = tabulate_stage_effects(by_seed)
    text = describe_stages(by_seed, effects)[0]
    assert text.count("mostly γ") == 4
    moved = moved_stages(effects)
    assert ("norm1", "beta") in set(zip(moved["norm"], moved["part"], strict=True))
    assert "paper against standard changes β at norm1 by +0.099 (" in text
    few = made_up(parts, seeds=2)
    said = describe_stages(few, tabulate_stage_effects(few))[0]
    assert "mostly" not in said
    assert "2 matched seeds; at least 3 are needed" in said


def test_the_leading_stage_is_larger_than_both_others():
    clear = {
        "centring": {0: 0.01, 1: 0.02, 2: 0.01},
        "gamma": {0: 0.4, 1: 0.42, 2: 0.41},
        "beta": {0: 0.1, 1: 0.1, 2: 0.12},
    }
    assert dominant_stage(clear) == "gamma"
    assert dominant_stage(clear | {"beta": {0: 0.3, 1: 0.5, 2: 0.4}}) is None
    assert dominant_stage({stage: {0: values[0], 1: values[1]} for stage, values in clear.items()}) is None


def test_a_start_and_single_models_stand_beside_and_are_not_compared():
    by_seed = made_up(lambda *_: 0.1, variants=("standard", "start"), seeds=1)
    alone = by_seed[by_seed["variant"] == "start"].assign(setting="", variant="vit_x", seed=-1)
    effects = tabulate_stage_effects(pd.concat([by_seed, alone]))
    assert (effects["against"] == "").all()
    assert effects["ci_low"].isna().all()
    assert "1 model; at least 3 are needed" in describe_stages(alone, effects[effects["setting"] == ""])[0]


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 6, 12])
def test_thirds_cover_the_blocks_as_specialization_counts_them(depth):
    from tokenlens.specialization._specialization import blocks_of

    found = block_ranges(depth)
    assert found["first third"] == list(blocks_of("first_third", depth))
    assert found["last third"] == list(blocks_of("last_third", depth))
    assert sorted(set().union(*(found[name] for name in THIRDS if name in found))) == found[ALL] == list(range(depth))
    assert json.loads(json.dumps(found))
