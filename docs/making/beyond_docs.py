"""Add files outside docs/ to the site if a page links to them, at the same path.

mkdocs calls the functions ``on_…``. Linked Markdown files, notebooks (with their stored outputs) and Python files
become pages, whose own links are followed in turn; other files are copied. mkdocs reports broken links.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from traitlets.config import Config

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")

HIDDEN = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"hide-input"}}})
"""Cells of notebooks that only prepare something have this tag; the page has their output alone."""

sources: dict[str, Path] = {}
"""For each path in the site the file in the repository that it comes from."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages link to, directly or indirectly."""
    sources.clear()
    sources.update({file.src_uri: DOCS / file.src_uri for file in files})
    waiting = [path for file in files if file.is_documentation_page() for path in _linked_in(file)]
    while waiting:
        path = waiting.pop()
        if path.is_relative_to(DOCS) or site_path(path) in sources:
            continue
        for file in _convert(path, config):
            files.append(file)
            sources[file.src_uri] = path
            if file.is_documentation_page() and path.suffix != ".py":
                waiting += _linked_in(file)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite links to files of the repository as links within the site."""
    source = sources[page.file.src_uri]
    here = os.path.dirname(page.file.src_uri)

    def rewrite(link: re.Match[str]) -> str:
        path = _target(link[2], source)
        uri = site_path(path) if path else None
        return f"{link[1]}{os.path.relpath(uri, here or '.')}{link[3]}" if uri in sources else link[0]

    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(rewrite, part) for part in parts)


def site_path(path: Path) -> str:
    """Return the path in the site of a file of the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    uri = path.relative_to(REPOSITORY).as_posix()
    # mkdocs uses a README.md as the index of its folder, and the top folder has an index.md already.
    uri = {"README.md": "readme.md"}.get(uri, uri)
    return {".ipynb": f"{uri.removesuffix('.ipynb')}.md", ".py": f"{uri}.md"}.get(path.suffix, uri)


def _convert(path: Path, config: MkDocsConfig) -> list[File]:
    """Return the page or file for a file of the repository, and the pictures in it."""
    uri = site_path(path)
    if path.suffix == ".ipynb":
        text, resources = MarkdownExporter(config=HIDDEN).from_filename(str(path))
        text = f"---\nhide:\n  - toc\n---\n\n{text}"  # figures take the room of the contents
        folder = f"{Path(uri).stem}_files"
        text = re.sub(r"\]\((output_[\w.]+)\)", rf"]({folder}/\1)", text)
        pictures = [
            File.generated(config, f"{os.path.dirname(uri)}/{folder}/{name}", content=content)
            for name, content in resources["outputs"].items()
        ]
        return [File.generated(config, uri, content=text), *pictures]
    if path.suffix == ".py":
        code = path.read_text(encoding="utf-8")
        name = path.relative_to(REPOSITORY).as_posix()
        return [File.generated(config, uri, content=f"# {name}\n\n````python\n{code}````\n")]
    return [File.generated(config, uri, abs_src_path=str(path))]


def _linked_in(file: File) -> list[Path]:
    """Return the files of the repository that a page links to."""
    prose = (part for part in FENCED.split(file.content_string) if not part.startswith("```"))
    return [path for _, link, _ in LINK.findall("".join(prose)) if (path := _target(link, sources[file.src_uri]))]


def _target(link: str, source: Path) -> Path | None:
    """Return the file that a link refers to (for a folder its README), or None if it does not exist."""
    path = Path(os.path.normpath(source.parent / link))
    path = path / "README.md" if path.is_dir() else path
    return path if path.is_file() and path.is_relative_to(REPOSITORY) else None
