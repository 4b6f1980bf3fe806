"""Add the gallery to the site: a page per script in docs/gallery, in the order of their file names, and thumbnails.

A script's docstring is its title and text, its code is what the page shows, and draw_gallery.py draws its picture.
Adding an entry is adding a script.
"""

from __future__ import annotations

import ast
import hashlib
import html
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "docs" / "gallery"
SHIPPED = REPOSITORY / "tokenlens" / "models" / "shipped"
HERE = re.compile(r"<!-- thumbnails.*<!-- end -->", re.DOTALL)

log = logging.getLogger("mkdocs.hooks.gallery")


@dataclass(frozen=True)
class Entry:
    """One script of the gallery, ``NN_name.py``, and its picture in ``pictures/``."""

    script: Path
    pictures: Path

    @property
    def name(self) -> str:
        """The file name without its number, which only sets the order."""
        return self.script.stem.partition("_")[2]

    @property
    def title(self) -> str:
        """The first line of the docstring."""
        return self._docstring.partition("\n")[0]

    @property
    def text(self) -> str:
        """The rest of the docstring."""
        return self._docstring.partition("\n")[2].strip()

    @property
    def code(self) -> str:
        """The script without its docstring."""
        return re.sub(r'\A""".*?"""\n+', "", self.script.read_text(encoding="utf-8"), count=1, flags=re.DOTALL)

    @property
    def _docstring(self) -> str:
        return ast.get_docstring(ast.parse(self.script.read_text(encoding="utf-8"))) or ""

    def file(self, suffix: str) -> Path:
        """Return the path of the picture (``.webp``), the print version (``.pdf``) or the record (``.json``)."""
        return self.pictures / f"{self.name}{suffix}"

    def digest(self) -> str:
        """Return a hash of what is drawn: the code, and the weights of the models in it that come with tokenlens."""
        found = hashlib.sha256(self.code.encode())
        for weights in sorted(SHIPPED.glob("*/model.safetensors")):
            if f'"{weights.parent.name}"' in self.code:
                found.update(weights.read_bytes())
        return found.hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """Return what draw_gallery.py noted about the picture; empty if there is none."""
        path = self.file(".json")
        drawn = path.is_file() and self.file(".webp").is_file()
        return json.loads(path.read_text(encoding="utf-8")) if drawn else {}

    def is_current(self) -> bool:
        """Return whether the picture was drawn by this code, with these weights."""
        return self.record().get("digest") == self.digest()


def read_entries(folder: Path = FOLDER) -> list[Entry]:
    """Return the entries in the order of their numbers."""
    return [Entry(script, folder / "pictures") for script in sorted(folder.glob("[0-9][0-9]_*.py"))]


def page_of(entry: Entry) -> str:
    """Write the page of one entry in Markdown."""
    downloads = [f"[PDF, 170 mm wide](pictures/{entry.name}.pdf)"] if entry.file(".pdf").is_file() else []
    downloads.append(f"[script]({entry.script.name})")
    picture = f"pictures/{entry.name}.webp"
    return "\n\n".join(
        [
            f"# {entry.title}",
            entry.text,
            f"[![{entry.title}]({picture})]({picture})",
            f"*{entry.record().get('made', '')}* · {' · '.join(downloads)}",
            f"```python\n{entry.code}```",
            "[All of the gallery](../gallery.md)\n",
        ]
    )


def thumbnails_of(entries: list[Entry]) -> str:
    """Write the thumbnails, which lead to the pages, as HTML."""
    cards = [
        f'<a href="gallery/{entry.name}.html"><img src="gallery/pictures/{entry.name}.webp" alt="" loading="lazy">'
        f"<span>{html.escape(entry.title)}</span></a>"
        for entry in entries
    ]
    return '<div class="thumbnails">\n' + "\n".join(cards) + "\n</div>"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the entries below the gallery in the navigation."""
    for part in config.nav or []:
        if part.get("Gallery") == "gallery.md":
            part["Gallery"] = ["gallery.md", *(f"gallery/{entry.name}.md" for entry in read_entries())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the site, with a warning for each picture that is not the one its code draws."""
    from mkdocs.structure.files import File

    for entry in read_entries():
        if not entry.is_current():
            log.warning("docs/gallery/%s has changed since its picture was drawn: run make gallery", entry.script.name)
        files.append(File.generated(config, f"gallery/{entry.name}.md", content=page_of(entry)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the thumbnails into the page of the gallery, and give its pages the whole width."""
    if page.file.src_uri.startswith("gallery"):
        page.meta["hide"] = ["toc"]  # pictures take the room of the contents
    if page.file.src_uri != "gallery.md":
        return markdown
    return HERE.sub(lambda _: thumbnails_of(read_entries()), markdown)
