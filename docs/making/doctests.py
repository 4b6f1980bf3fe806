"""Doctests of docstrings as code: Markdown would take ``>>>`` for three quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
FLAG = re.compile(r" +# doctest: \+\w+")


class Doctests(griffe.Extension):
    """Fences every paragraph that begins with ``>>>``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each thing that was read."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = DOCTEST.sub(lambda test: f"```pycon\n{FLAG.sub('', test[0])}\n```", text)
