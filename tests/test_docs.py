"""The documentation: links work, everything is explained, and the worked examples run."""

from __future__ import annotations

import re
import shutil

import pytest
from tokenlens_cli.app import command_names

import tokenlens
from tests.support.command_line import REPOSITORY, finished, process
from tests.support.markdown import anchors, blocks, link_targets, links
from tokenlens.metrics import metrics
from tokenlens.tokens import GROUPS, Site

DOCS = REPOSITORY / "docs"
OTHERS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "notebooks/README.md", "reports/README.md")
REPORTS = sorted((REPOSITORY / "reports" / "committed").rglob("README.md"))
CARDS = sorted((REPOSITORY / "tokenlens").glob("models/shipped/*/MODEL_CARD.md"))
PAGES = sorted([*DOCS.rglob("*.md"), *(REPOSITORY / name for name in OTHERS), *REPORTS, *CARDS])


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_work(page):
    for file, anchor in link_targets(page):
        target = page.parent / file if file else page
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def test_the_index_links_every_page():
    linked = {link.rstrip("/") for link in links(DOCS / "index.md")}
    assert {page.name for page in DOCS.glob("*.md")} - {"index.md"} <= linked
    decisions = DOCS / "decisions"
    assert {page.name for page in decisions.glob("[0-9]*.md")} <= set(links(decisions / "index.md"))


def test_every_report_and_notebook_is_linked():
    page = DOCS / "results.md"
    assert set(REPORTS) <= {(page.parent / link).resolve() for link in links(page)}
    notebooks = REPOSITORY / "notebooks"
    assert {path.name for path in notebooks.glob("*.ipynb")} <= set(links(notebooks / "README.md"))


def test_every_public_name_is_in_the_reference():
    described = set(re.findall(r"^::: tokenlens\.(\w+)$", text("api.md"), re.MULTILINE))
    assert described == set(tokenlens.__all__) - {"__version__"}


def test_every_metric_is_explained():
    for name in metrics.names():
        assert f"`{name}`" in text("the-numbers.md"), name


def test_every_site_and_token_group_is_in_the_glossary():
    glossary = text("glossary.md")
    for word in [*Site, *GROUPS, "pattern"]:
        assert f"`{word}`" in glossary, word


def test_decisions_are_numbered_and_dated():
    pages = sorted((DOCS / "decisions").glob("[0-9]*.md"))
    for number, page in enumerate(pages, start=1):
        lines = page.read_text(encoding="utf-8").splitlines()
        assert page.name.startswith(f"{number:04d}-")
        assert lines[0].startswith(f"# {number}. ")
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", lines[2])
        most = 56 if number == 16 else 50  # the rules of five claims
        assert len(lines) <= most, "about half a page"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the source tree, with the example files of two pages added."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("tokenlens", "cli", "tests"):
        shutil.copytree(REPOSITORY / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tree)
    for page in ("add-a-metric.md", "add-a-command.md"):
        for block in blocks(DOCS / page, "python"):
            assert block.path, "each code block of these pages is a file"
            assert not (tree / block.path).exists()
            (tree / block.path).write_text(block.text, encoding="utf-8")
    return tree


ADDED = """
import json

from tests.support.command_line import tiny_analyze, tokenlens
from tokenlens.analysis import Analysis

NAME = "patch_norm_variation"


def test_it_is_in_the_list():
    assert tokenlens("list", "metrics", "patch_norm").stdout.startswith(NAME + "  ")


def test_it_is_in_the_table_and_the_command_works(tmp_path):
    assert tiny_analyze(tmp_path / "run", "--no-report").exit_code == 0
    rows = Analysis.load(tmp_path / "run").select(NAME)
    assert set(rows["site"]) == {"resid_pre", "resid_mid", "resid_post"}
    assert set(rows["unit"]) == {"sd / mean"}
    assert (rows["ci_low"] < rows["value"]).all()
    told = json.loads(tokenlens("headline", tmp_path / "run", "--site", "norm2", "--json").stdout)
    assert told["site"] == "norm2"
    assert "norm lowers" in tokenlens("--help").stdout
    assert tokenlens("headline", tmp_path / "nowhere").exit_code == 1
"""


@pytest.mark.slow
def test_a_metric_and_a_command_need_one_file_each(copy):
    assert "headline" not in command_names()
    (copy / "tests" / "test_added.py").write_text(ADDED, encoding="utf-8")
    laws = "patch_norm_variation and (layer or no_cls or says_what_it_is) or added or __init__"
    running = process(
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "tests/test_added.py",
        "tests/metrics/test_laws.py",
        "tokenlens/metrics/patch_norm_variation.py",
        "-k",
        f"{laws} or PatchNormVariation or patch_norm_variation.py",
        "-rA",
        cwd=copy,
        tree=copy,
    )
    exit_code, stdout, stderr = finished(running, 300)
    assert exit_code == 0, stdout + stderr
    passed = re.findall(r"^PASSED (\S+)", stdout, re.MULTILINE)
    for test in ("agrees_with_float64_numpy", "batches_do_not_matter", "two_merged_halves_are_the_whole"):
        assert [name for name in passed if test in name and "patch_norm_variation" in name], f"{test}\n{stdout}"
    assert [name for name in passed if name.startswith("tokenlens/metrics/patch_norm_variation.py")], "the doctest"
    assert len([name for name in passed if "test_added" in name]) == 2


def test_commands_in_the_pages_exist():
    used = {
        line.split()[1]
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.text.splitlines()
        if line.startswith("tokenlens ")
    }
    assert used <= set(command_names())


def test_pages_name_no_folder_of_a_machine():
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(root|work|home|Users)/", page.read_text(encoding="utf-8")), page


def test_the_tree_lists_every_package():
    page = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition("## The tree")[2].partition("\n## ")[0]
    listed = {
        path for row in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for path in re.findall(r"`([^`]+)`", row)
    }
    assert all((REPOSITORY / path).exists() for path in listed)
    packages = {f"tokenlens/{file.parent.name}/" for file in (REPOSITORY / "tokenlens").glob("*/__init__.py")}
    assert packages <= listed
