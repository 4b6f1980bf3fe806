"""The widget in a real JupyterLab, light and dark: it is drawn, chosen, and leaves a picture in the saved notebook.

JupyterLab is taken from this environment, or from the command that TOKENLENS_JUPYTERLAB names (its environment needs
anywidget's extension); the kernel is always this Python.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command_line import REPOSITORY

LAB = os.environ.get("TOKENLENS_JUPYTERLAB") or shutil.which("jupyter-lab", path=str(Path(sys.executable).parent))
CELL = "import tokenlens\ntokenlens.explore('tokenlens_tiny', 'sample', limit=2)"

pytestmark = [pytest.mark.browser, pytest.mark.skipif(LAB is None, reason="JupyterLab is not installed")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A JupyterLab in an empty folder, in the dark theme; yields its address and its folder."""
    root = tmp_path_factory.mktemp("lab")
    kernel = root / "share" / "kernels" / "tokenlens"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "tokenlens", "env": environment}))
    settings = root / "settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"theme": "JupyterLab Dark"}')
    folder = root / "notebooks"
    folder.mkdir()
    cell = {"cell_type": "code", "id": "a", "execution_count": None, "metadata": {}, "outputs": [], "source": CELL}
    metadata = {"kernelspec": {"name": "tokenlens", "display_name": "tokenlens"}}
    notebook = {"cells": [cell], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    (folder / "view.ipynb").write_text(json.dumps(notebook))
    log = root / "log"
    with log.open("w") as stream:
        running = subprocess.Popen(
            [
                *(
                    LAB or "",
                    "--no-browser",
                    "--allow-root",
                    "--port=0",
                    "--IdentityProvider.token=",
                    "--ServerApp.password=",
                ),
                f"--ServerApp.root_dir={folder}",
            ],
            env={
                **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
                "JUPYTER_PATH": str(root / "share"),
                "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
                "JUPYTER_CONFIG_DIR": str(root / "config"),
                "JUPYTER_RUNTIME_DIR": str(root / "runtime"),
            },
            stdout=stream,
            stderr=stream,
        )
    try:
        address = None
        for _ in range(240):
            found = re.search(r"http://(?:localhost|127\.0\.0\.1):\d+", log.read_text())
            if found:
                address = found[0]
                break
            assert running.poll() is None, log.read_text()
            time.sleep(0.25)
        assert address, log.read_text()
        yield address, folder
    finally:
        running.terminate()
        running.wait(20)


def saved_pictures(file: Path) -> list[str]:
    cell = json.loads(file.read_text())["cells"][0]
    return [
        "".join(output["data"]["image/png"]).strip()
        for output in cell["outputs"]
        if "image/png" in output.get("data", {})
    ]


def save(page, file: Path, after: float) -> None:
    """Save the notebook, and wait until the file is written."""
    page.locator('[data-command="docmanager:save"]:visible').first.click()
    for _ in range(40):
        if file.stat().st_mtime > after:
            return
        page.wait_for_timeout(250)
    raise AssertionError("the notebook was not saved")


def test_in_jupyterlab(server, browser):
    address, folder = server
    file = folder / "view.ipynb"
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.goto(f"{address}/lab/tree/view.ipynb?reset")
    page.locator(".jp-Notebook .jp-InputArea-editor").first.click(timeout=60_000)
    page.wait_for_selector("text=tokenlens | Idle", timeout=60_000)
    page.keyboard.press("Shift+Enter")
    widget = page.locator(".tokenlens-explorer")
    widget.locator("[data-panel=cosine]").first.wait_for(timeout=90_000)

    assert page.evaluate("document.body.dataset.jpThemeLight") == "false"
    background, ink = (
        widget.evaluate("(root, name) => getComputedStyle(root)[name]", name) for name in ("backgroundColor", "color")
    )
    dark, light = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (background, ink))
    assert dark < 200 < 500 < light

    picture = page.locator('.jp-OutputArea-child img[width="1000"]')
    picture.wait_for(state="attached", timeout=30_000)
    assert picture.is_hidden(), "the live widget hides the still picture"
    before = time.time() - 1
    save(page, file, before)
    (first,) = saved_pictures(file)
    width, _ = Image.open(io.BytesIO(base64.b64decode(first))).size
    assert width == 1000

    canvas = widget.locator("[data-panel=cosine] canvas.map")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.4, "y": box["height"] * 0.6})
    widget.locator("[data-panel=match]").wait_for(timeout=20_000)
    page.keyboard.press("[")
    page.wait_for_function("document.querySelector('.tokenlens-explorer h4').textContent.includes('block 7')")
    old = picture.get_attribute("src")
    page.wait_for_function(
        "(old) => document.querySelector('img[width=\"1000\"]').src !== old", arg=old, timeout=30_000
    )
    assert widget.count() == 1
    if "TOKENLENS_SCREENSHOT" in os.environ:
        page.screenshot(path=os.environ["TOKENLENS_SCREENSHOT"])
    save(page, file, time.time() - 0.01)
    (last,) = saved_pictures(file)
    assert last != first
    page.close()
