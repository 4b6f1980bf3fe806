"""The order of tasks, and the seeds of probes."""

from __future__ import annotations

from pathlib import Path

from tests.support.tiny_verification import tiny_scale
from tokenlens.verification import ScaleProbe
from tokenlens.verification.tasks import probe_seed, tasks_of

PROBES = (ScaleProbe("segmentation", 32), ScaleProbe("segmentation", 32, draw=1))


def test_pairs_come_before_ablations_which_have_fewer_seeds():
    scale = tiny_scale(probes=PROBES, ablation_seeds=2)
    tasks = tasks_of(scale, Path("out"), ["norms", "standard", "twin", "paper"], [0, 1, 2], masks=True)
    trained = [(task.variant, task.seed) for task in tasks if task.what == "train"]
    assert trained == [
        *((variant, seed) for seed in range(3) for variant in ("standard", "paper")),
        *((variant, seed) for seed in range(2) for variant in ("norms", "twin")),
    ]


def test_draws_of_a_probe_have_seeds_and_folders_of_their_own():
    tasks = [
        task for task in tasks_of(tiny_scale(probes=PROBES), Path("out"), ["standard"], [0, 1], True) if task.probe
    ]
    assert len({(task.seed, probe_seed(task)) for task in tasks}) == len({task.folder for task in tasks}) == 4
    assert {probe_seed(task) for task in tasks if not task.probe.draw} == {0, 1}
