"""Two processes with half of the images each compute the losses, gradients, teachers and centres of one process."""

from __future__ import annotations

import json

import pytest
import torch

from tests.support.command_line import finished, process
from tests.support.self_distillation import backbone, objective, two_steps

CASES = {
    "dino": {"name": "dino"},
    "dino, specialized": {"name": "dino", "preset": "paper"},
    "dino, fsdp2": {"name": "dino", "strategy": "fsdp2"},
    "dinov2": {"name": "dinov2", "koleo": 1.0},
    "dinov2, specialized": {"name": "dinov2", "preset": "paper"},
    "dinov2, tied heads": {"name": "dinov2", "tie_heads": True},
    "dinov2, centre": {"name": "dinov2", "centring": "centre"},
    # One of the processes has no masked patch, or neither has.
    "dinov2, one masked crop": {"name": "dinov2", "masked_crops": 1 / 16},
    "dinov2, one masked crop, centre": {"name": "dinov2", "masked_crops": 1 / 16, "centring": "centre"},
    "dinov2, no masked crop": {"name": "dinov2", "masked_crops": 0.0},
    "dinov2, fsdp2": {"name": "dinov2", "strategy": "fsdp2"},
}


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    """The results of two gloo processes together, for each case."""
    folder = tmp_path_factory.mktemp("two")
    out = folder / "found.pt"
    running = [
        process("-m", "tests.support.self_distillation", json.dumps(CASES), folder / "store", out, rank, cwd=folder)
        for rank in range(2)
    ]
    for one in running:
        exit_code, _, stderr = finished(one)
        assert exit_code == 0, stderr
    return torch.load(out, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does(case, of_two):
    settings = {**CASES[case]}
    settings.pop("strategy", None)
    made = objective(settings.pop("name"), backbone(settings.pop("preset", None)), **settings)
    expected = two_steps(made, made)
    assert of_two[case].keys() == expected.keys()
    for name, tensor in expected.items():
        # All is float64 but timm's resampling of the position embedding for local crops.
        torch.testing.assert_close(
            of_two[case][name], tensor, rtol=1e-5, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )
