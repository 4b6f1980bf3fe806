"""The wheel, installed in a fresh environment that borrows the libraries of this one, so nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support.command_line import MODEL, REPOSITORY, TINY

pytest.importorskip("hatchling", reason="building a wheel needs hatchling, which the extra [dev] installs")


def ran(*command: object, cwd: Path, **env: str) -> str:
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env={**settings, "OMP_NUM_THREADS": "1", **env},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("tokenlens", "cli"):
        shutil.copytree(REPOSITORY / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        ".gitignore",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):  # git-ignored files are left out
        shutil.copy(REPOSITORY / name, folder / "source")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet")
    ran(sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", folder, folder / "source", cwd=folder)
    [built] = folder.glob("*.whl")
    return built


def test_it_holds_both_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = [Path(name) for name in content.namelist()]
    assert wheel.name.startswith("tokenlens_vit-")
    assert {name.parts[0] for name in names if ".dist-info" not in name.parts[0]} == {"tokenlens", "tokenlens_cli"}
    shipped = {str(name) for name in names}
    for package, folder in (("tokenlens", "tokenlens"), ("cli/tokenlens_cli", "tokenlens_cli")):
        for file in (REPOSITORY / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                assert str(Path(folder) / file.relative_to(REPOSITORY / package)) in shipped
    licences = [name.name for name in names if name.parts[0].endswith(".dist-info")]
    assert (licences.count("LICENSE"), licences.count("NOTICE")) == (1, 2), "that of the code, and of each model"


@pytest.mark.slow
def test_it_runs_from_a_fresh_environment(wheel, tmp_path):
    ran(sys.executable, "-m", "venv", "--without-pip", tmp_path / "fresh", cwd=tmp_path)
    scripts = tmp_path / "fresh" / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python")
    ran(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=tmp_path)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    installed = Path(ran(scripts / "python", "-c", where, cwd=tmp_path).strip())
    # The libraries of this environment without its .pth files, one of which may lead to an editable tokenlens.
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (installed / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n", encoding="utf-8")
    files = "import tokenlens, tokenlens_cli; print(tokenlens.__file__); print(tokenlens_cli.__file__)"
    for line in ran(scripts / "python", "-c", files, cwd=tmp_path).splitlines():
        assert Path(line).is_relative_to(installed)
    assert "analyze" in ran(scripts / "tokenlens", "--help", cwd=tmp_path)
    command = (scripts / "tokenlens", "analyze", MODEL, *TINY, "--metrics", "token_norm")
    out = ran(*command, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert out.splitlines()[-1] == f"report: {Path('reports', MODEL, 'report.html')}"
    assert (tmp_path / "reports" / MODEL / "report.html").stat().st_size > 10_000
