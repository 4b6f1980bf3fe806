"""Pages as tests read them: their code blocks and links."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """A fenced block: its language, its text, and the path in backquotes that stands alone on the line before it."""

    language: str
    text: str
    path: str


def blocks(page: Path, language: str) -> list[Block]:
    found = re.finditer(r"(?:^`([^`\n]+)`\n\n)?^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    return [block for m in found if (block := Block(m[2], m[3], m[1] or "")).language == language]


def commands(page: Path) -> list[str]:
    """The commands in the page's bash blocks, a line each."""
    return [line for block in blocks(page, "bash") for line in block.text.splitlines() if line.strip()]


def links(page: Path) -> list[str]:
    """Links to other files, without anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [link.partition("#")[0] for link in found if not re.match(r"https?:|#", link)]


def places(page: Path) -> list[tuple[str, str]]:
    """Links inside the repository, as file (empty for the page itself) and anchor (empty for the whole file)."""
    found = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [(file, anchor) for link in found if ":" not in link for file, _, anchor in [link.partition("#")]]


def anchors(page: Path) -> list[str]:
    """The names of a page's headings, as GitHub makes them: small letters, no punctuation, - for spaces."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.+)$", text, re.M)]
    names = [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]
    return [name if (before := names[:i].count(name)) == 0 else f"{name}-{before}" for i, name in enumerate(names)]
