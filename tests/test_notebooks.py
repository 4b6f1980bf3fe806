"""The notebooks run anywhere, and their stored outputs are complete, current, small and free of local paths."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import REPOSITORY, finished, process

pytest.importorskip("nbclient", reason="running notebooks needs nbclient, which the extra [dev] installs")

FOLDER = REPOSITORY / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OF_DINOV2 = [path for path in NOTEBOOKS if path.name.startswith(("02", "05"))]
BYTES = 300_000
DRAWN = ("image/svg+xml", "image/png", "image/jpeg")

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs_of(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [output for cell in cells for output in cell.get("outputs", [])]


def text_of(outputs: list[dict[str, Any]], *kinds: str) -> str:
    """Return the printed text, and the results of some MIME types."""
    found = []
    for output in outputs:
        found.append("".join(output.get("text", [])))
        found += ["".join(output["data"][kind]) for kind in kinds if kind in output.get("data", {})]
    return "\n".join(found)


def figures_of(outputs: list[dict[str, Any]]) -> list[str]:
    """Return the SVG figures, which are all but those with photographs."""
    found = [output.get("data", {}).get("image/svg+xml") for output in outputs]
    return ["".join(svg) for svg in found if svg]


def executed(path: Path, out: Path, data: str) -> list[dict[str, Any]]:
    """Run a notebook in a new kernel and return its outputs."""
    command = (FOLDER / "execute.py", path.stem, "--out", out)
    exit_code, _, stderr = finished(process(*command, cwd=out, TOKENLENS_TEST_DATA=data), seconds=300)
    assert exit_code == 0, stderr
    return outputs_of(out / path.name)


def test_there_are_six_and_the_page_lists_them():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f"]({path.name})" in page


@pytest.mark.slow
@each
def test_it_runs_with_the_model_that_ships_and_says_so(path, tmp_path):
    outputs = executed(path, tmp_path, data="")
    assert not [output for output in outputs if output.get("name") == "stderr"], "warnings"
    assert figures_of(outputs)
    assert "tokenlens_tiny" in path.read_text(encoding="utf-8")
    if path in OF_DINOV2:
        assert text_of(outputs).startswith("tokenlens_tiny: all that follows is about it")


@pytest.mark.slow
@pytest.mark.pretrained
def test_what_is_stored_is_what_the_code_gives(tmp_path):
    """Checked for the notebook whose text quotes most numbers."""
    data = os.environ.get("TOKENLENS_TEST_DATA", "")
    if not Path(data, "weights", "dinov2_vits14.safetensors").is_file():
        pytest.skip("TOKENLENS_TEST_DATA names no folder with weights/dinov2_vits14.safetensors")
    path = OF_DINOV2[0]
    stored, now = (
        [float(number) for number in re.findall(r"-?\d+\.\d+", text_of(outputs, "text/plain"))]
        for outputs in (outputs_of(path), executed(path, tmp_path, data))
    )
    assert len(stored) > 100
    assert now == pytest.approx(stored, abs=0.011)


@each
def test_each_cell_was_run_once_from_top_to_bottom(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    counts = [cell["execution_count"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert "widgets" not in notebook["metadata"]


@each
def test_the_stored_outputs_are_of_the_model_that_the_text_is_about_without_error_or_warning(path):
    outputs = outputs_of(path)
    if path in OF_DINOV2:
        assert "with the weights dinov2_vits14.safetensors" in text_of(outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert [output for output in outputs if set(DRAWN) & set(output.get("data", {}))]


@each
def test_it_is_small(path):
    assert path.stat().st_size < BYTES


@each
def test_it_contains_no_local_path(path):
    text = re.sub(r'"[\w+/=\\\n]{200,}"', '""', path.read_text(encoding="utf-8"))  # pictures in base64
    assert not re.search(r"(?<![\w.:/])/(root|work|home|Users|tmp|var|private)/", text)
    assert not re.search(r"\b[A-Z]:\\\\", text)
    assert socket.gethostname() not in text or len(socket.gethostname()) < 5


@each
def test_two_figures_of_a_notebook_share_no_id(path):
    """All figures are on one page, where a repeated id would refer to the first of them."""
    ids = [found for figure in figures_of(outputs_of(path)) for found in re.findall(r'\sid="([^"]+)"', figure)]
    assert len(ids) == len(set(ids))


@each
def test_its_links_work(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        assert (FOLDER / link).exists(), link
