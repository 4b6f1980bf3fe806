"""Files that several test modules use."""

from __future__ import annotations

import os
from pathlib import Path

# Before huggingface_hub is imported: an unreachable hub costs 48 s a call.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest

CHROMIUM = Path("/usr/bin/chromium")


def pytest_configure(config: pytest.Config) -> None:
    """On a machine, or a share of one, with a single core torch warns of every process that reads images."""
    config.addinivalue_line("filterwarnings", "ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that asks nobody for anything."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    switches = [
        "--no-sandbox",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=switches)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint of timm's test_vit for images of 64 pixels, without a classifier."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit", img_size=64, num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """A folder of two photographs."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photographs")
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        Image.fromarray(np.asarray(pixels)).resize((96, 64)).save(folder / f"{name}.png")
    return folder
