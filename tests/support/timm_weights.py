"""Random weights of a small timm model, and the marks of tests that need real ones."""

import os

import pytest
import timm
import torch

NAME = "test_vit"  # timm's own model for tests: 365,096 parameters, images of 160×160, patches of 16
TEST_DATA = os.environ.get("TOKENLENS_TEST_DATA")

pretrained = [
    pytest.mark.pretrained,
    pytest.mark.skipif(not TEST_DATA, reason="TOKENLENS_TEST_DATA does not point to the real weights"),
]


def timm_state(name: str = NAME, **options: object) -> dict[str, torch.Tensor]:
    """Return random weights of a timm model, as copies that a file can store."""
    torch.manual_seed(7)
    return {key: value.clone() for key, value in timm.create_model(name, **options).state_dict().items()}
