"""Show doctests as code; Markdown would parse ``>>>`` as nested quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
FLAG = re.compile(r" +# doctest: \+\w+")


class Doctests(griffe.Extension):
    """A griffe extension that puts a code fence around every paragraph that begins with ``>>>``."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = DOCTEST.sub(lambda test: f"```pycon\n{FLAG.sub('', test[0])}\n```", text)
