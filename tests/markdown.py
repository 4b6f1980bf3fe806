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
