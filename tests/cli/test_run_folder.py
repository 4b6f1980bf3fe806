"""The default run folder."""

from __future__ import annotations

import pytest
from tokenlens_cli._run_folder import default_folder


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("vit_base_patch16_224", "vit_base_patch16_224"),
        ("vit_base_patch16_224.mae", "vit_base_patch16_224.mae"),
        ("hf-hub:timm/vit_tiny", "hf-hub_timm_vit_tiny"),
        ("local-dir:../../etc/x", "local-dir_.._.._etc_x"),
        ("../../x", "_.._x"),
        ("..", "model"),
        ("/", "_"),
        ("", "model"),
        ("~/x\n", "_x_"),
        ("C:\\models\\vit", "C_models_vit"),
    ],
)
def test_the_default_folder_is_one_folder_in_reports(model, folder):
    assert default_folder(model).as_posix() == f"reports/{folder}"


def test_long_names_get_different_short_folders():
    one, two = default_folder("local-dir:" + "x" * 300), default_folder("local-dir:" + "x" * 301)
    assert one != two
    assert len(one.name) <= 100
