"""The documentation as a website: it builds without warnings, its links work, and it needs no network."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.command_line import REPOSITORY, finished, process
from tests.support.report_page import Page, asked_for, opened

pytest.importorskip("mkdocs", reason="mkdocs is not installed; the extra [docs] does it")

NOWHERE = "http://127.0.0.1:9"
ELSEWHERE = ("http:", "https:", "//")


def build(tree: Path, site: Path) -> tuple[int, str]:
    """Run a strict build without network and return its exit code and messages."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    exit_code, stdout, stderr = finished(
        process("-m", "mkdocs", "build", "--strict", "--site-dir", site, cwd=tree, NO_MKDOCS_2_WARNING="1", **proxies)
    )
    return exit_code, stdout + stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "site"
    exit_code, output = build(REPOSITORY, folder)
    assert exit_code == 0, output
    assert "WARNING" not in output
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_links_and_pictures_work(site, pages):
    names = {path: {found["id"] for _, found in page.elements if found.get("id")} for path, page in pages.items()}
    checked = 0
    for path, page in pages.items():
        if path == site / "404.html":  # a server shows it for any address, so its links start at the root
            continue
        linked = [*(found.get("href") for found in page.all("a")), *(found.get("src") for found in page.all("img"))]
        for link in filter(None, linked):
            if link.startswith((*ELSEWHERE, "data:", "mailto:")):
                continue
            file, _, anchor = unquote(link).partition("#")
            target = Path(os.path.normpath(path.parent / file)) if file else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            assert not anchor or target not in names or anchor in names[target] | {"__top"}, f"{path}: {link}"
            checked += 1
    assert checked > 1000


def test_nothing_comes_from_elsewhere(site, pages):
    for path, page in pages.items():
        for tag, where in (("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href")):
            for found in page.all(tag):
                assert not (found.get(where) or "").startswith(ELSEWHERE), f"{path.relative_to(site)}: {found}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_linked_files_outside_docs_are_part_of_the_site(site):
    notebooks = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        page = Page((site / "notebooks" / f"{notebook.stem}.html").read_text(encoding="utf-8"))
        assert [found for found in page.all("img") if "_files/" in (found.get("src") or "")], "stored pictures"
    for report in (REPOSITORY / "reports" / "committed").rglob("README.md"):
        assert (site / report.relative_to(REPOSITORY)).with_name("index.html").is_file()
    assert "<code>" in (site / "benchmarks" / "explore.py.html").read_text(encoding="utf-8")
    assert not list(site.rglob("making"))


def test_the_reference_has_signature_arguments_and_doctests(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in ("tokenlens.analyze", "tokenlens.Analysis.select", "tokenlens.plot.attention_overlay"):
        assert f'id="{name}"' in text, name
    assert "keep_images" in text
    assert "<blockquote>" not in text, "a doctest that was parsed as a quotation"
    assert "doctest: +" not in re.sub("<[^>]+>", "", text)


def test_a_broken_link_anchor_or_a_forgotten_page_is_an_error(tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(REPOSITORY / "docs", tree / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(REPOSITORY / name, tree)
    for name in ("tokenlens", "cli", "notebooks", "reports", "benchmarks"):
        (tree / name).symlink_to(REPOSITORY / name, target_is_directory=True)
    broken = "\n[a](nowhere.md) [b](glossary.md#nowhere) [c](../benchmarks/nowhere.py)\n"
    with (tree / "docs" / "error-messages.md").open("a", encoding="utf-8") as page:
        page.write(broken)
    (tree / "docs" / "forgotten.md").write_text("# Forgotten\n", encoding="utf-8")
    exit_code, output = build(tree, tmp_path / "site")
    assert exit_code != 0
    for sign in ("'nowhere.md'", "#nowhere'", "'../benchmarks/nowhere.py'", "forgotten.md"):
        assert [line for line in output.splitlines() if sign in line], f"{sign}\n{output}"


@pytest.mark.browser
def test_it_opens_from_disk_and_can_be_searched(browser, site):
    tab, complaints, requests = opened(browser, site / "index.html")
    tab.get_by_role("link", name="The numbers", exact=True).first.click()
    tab.wait_for_url("**/the-numbers.html")
    tab.locator(".md-search__input").fill("jackknife")
    tab.locator(".md-search-result__item").first.wait_for(timeout=20_000)
    found = tab.locator(".md-search-result__link").evaluate_all("links => links.map(link => link.href)")
    assert "the-numbers.html" in " ".join(found)
    assert not [url for url in asked_for(requests) if not url.startswith("file:")]
    assert not complaints
    tab.close()
