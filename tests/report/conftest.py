"""A result of each kind, and its report, which is written once for all tests."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import pandas as pd
import pytest

from tests.support.synthetic_analysis import synthetic_analysis
from tests.support.synthetic_comparison import synthetic_comparison, with_values
from tests.support.synthetic_photographs import with_photographs
from tests.support.synthetic_training import trained
from tokenlens.analysis.findings import Finding
from tokenlens.comparison.compare import compare
from tokenlens.probes import ProbeResult
from tokenlens.report import write_report
from tokenlens.verification import Verification

EVIL = "<script>alert('model')</script>"
IMAGE = "<img src=x onerror=alert(1)>"


def only(analysis, *metrics):
    """Keep only a few metrics of an analysis, so that few figures are drawn."""
    analysis.table = analysis.table[analysis.table["metric"].isin(metrics)]
    return analysis


def evil_analysis():
    """Return an untrained model with names that contain markup, and with skipped images."""
    skipped = {"name": f"{IMAGE}.jpg", "reason": "truncated </script><b>"}
    options = {"source": "/data/<script>alert(0)</script>", "skipped": (skipped,), "untrained": True}
    analysis = synthetic_analysis(model=EVIL, blocks=2, heads=2, channels=16, **options)
    return only(analysis, "norm_differentiation", "token_norm")


def evil_comparison():
    models = ({"model": EVIL}, {"model": "</script><b>", "untrained": True})
    analyses = [only(synthetic_analysis(blocks=2, heads=2, channels=16, **model), "token_norm") for model in models]
    return compare(*map(with_values, analyses), labels=[EVIL, IMAGE])


def probe():
    scores = {"quantity": ["IoU", "IoU"], "of": ["sky", "ground"], "value": [0.7, float("nan")]}
    return ProbeResult(
        value=0.6514,
        ci_low=0.61,
        ci_high=0.69,
        n=40,
        unit="mean IoU",
        protocol={"features": "patches", "learning rates": [0.01, 0.1]},
        per_image=pd.DataFrame({"image": ["a.png", "b.png"], "correct": [True, False]}),
        table=pd.DataFrame(scores).assign(ci_low=0.6, ci_high=0.8, n=pd.array([40, 40], dtype="Int64"), unit="share"),
        model=EVIL,
        task="segmentation",
        untrained=True,
        provenance={"command": "tokenlens probe vit --task segmentation", "seed": 0},
    )


def verification():
    sentence = "Specialization gains 2.1 points < 3."
    finding = Finding("F3", "mIoU rises", "supported", sentence, 40, 2.1, (1.2, 3.0), "the rule", "paper", seeds=3)
    seeds = pd.MultiIndex.from_product([("standard", "paper"), range(3)], names=["variant", "seed"])
    rows = seeds.to_frame(index=False).assign(setting=EVIL, task="segmentation", source="patches")
    rows = rows.assign(resolution=64, measure="mIoU")
    rows["value"] = 50.0 + rows["seed"] + 2 * (rows["variant"] == "paper")
    states, minutes = ["done", "planned"], [4.0, 2.4]
    plan = pd.DataFrame({"task": ["train", "probe"], "state": states, "minutes": minutes, "command": ""})
    settings = {"name": "tiny", "command": "tokenlens verify --scale tiny", "scale": {}}
    return Verification(Path("runs/tiny"), [finding], rows, plan=plan, settings=settings)


RESULTS = {
    "analysis": lambda: with_photographs(synthetic_analysis(blocks=4, heads=3, channels=64, specialized=True)),
    "comparison": partial(synthetic_comparison, models=3, blocks=(4, 4, 3), heads=3, channels=32),
    "evil analysis": evil_analysis,
    "evil comparison": evil_comparison,
    "probe": probe,
    "training": partial(trained, blocks=2, steps=(0, 50, 100), state="stopped", specialization="paper", model=EVIL),
    "verification": verification,
}


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """Return a function that writes a report once, and returns the result, the path of the page and its text."""

    @cache
    def written(kind):
        result = RESULTS[kind]()
        path = write_report(result, tmp_path_factory.mktemp("report"))
        return result, path, path.read_text(encoding="utf-8")

    return written


@pytest.fixture
def without_figures(monkeypatch):
    """Write pages without their figures, which take most of the time."""
    monkeypatch.setattr("tokenlens.report.build.draw_all", lambda *_: ([], []))
