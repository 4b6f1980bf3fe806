"""The code blocks, links and headings of a Markdown page, and packages with the files that a page adds."""

import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.command_line import REPOSITORY


class Block(NamedTuple):
    """A fenced code block: its language, its text, and the path in backquotes on the line before it."""

    language: str
    text: str
    path: str


def blocks(page: Path, language: str) -> list[Block]:
    """Return the fenced blocks of one language."""
    found = re.finditer(r"(?:^`([^`\n]+)`\n\n)?^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [block for m in found if (block := Block(m[2], m[3], m[1] or "")).language == language]


def commands(page: Path) -> list[str]:
    """Return the lines of all bash blocks."""
    return [line for block in blocks(page, "bash") for line in block.text.splitlines() if line.strip()]


def links(page: Path) -> list[str]:
    """Return the linked files of the repository."""
    return [file for file, _ in link_targets(page) if file]


def link_targets(page: Path) -> list[tuple[str, str]]:
    """Return the links inside the repository as (file, anchor); the file is empty for a link within the page."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [(file, anchor) for link in found if ":" not in link for file, _, anchor in [link.partition("#")]]


def anchors(page: Path) -> list[str]:
    """Return the anchors of a page's headings as GitHub forms them: lower case, no punctuation, - for spaces."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.+)$", text, re.M)]
    names = [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
    return [name if (before := names[:i].count(name)) == 0 else f"{name}-{before}" for i, name in enumerate(names)]


def add_files(blocks: Iterable[Block], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write code blocks to a folder, and let Python find each of them in the package that its path names."""
    for block in blocks:
        assert not (REPOSITORY / block.path).exists()
        file = folder / block.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
        package = importlib.import_module(Path(block.path).parent.as_posix().replace("/", "."))
        assert package.__spec__ is not None
        path = [*package.__path__, str(file.parent)]
        monkeypatch.setattr(package, "__path__", path)
        monkeypatch.setattr(package.__spec__, "submodule_search_locations", path)
