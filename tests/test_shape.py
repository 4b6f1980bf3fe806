"""The layout of the package: one direction of imports, no cycles, unique names, tests beside their modules.

Imports are read from the source of every module, those inside functions and under ``TYPE_CHECKING`` included.
"""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from sys import stdlib_module_names

from tests.support.command_line import REPOSITORY, finished, process

ORDER = [
    *("tokens", "catalog", "statistics", "storage", "images", "families", "recording", "specialization", "models"),
    *("reduction", "metrics", "analysis", "comparison", "training", "probes", "interventions", "verification"),
    *("overlays", "figures", "report", "explorer"),
]
"""A package imports only from those before it."""

PATHS = [path for folder in ("tokenlens", "cli") for path in sorted((REPOSITORY / folder).rglob("*.py"))]
NAMES = {".".join(p.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): p for p in PATHS}
FILES = {name: path for name, path in NAMES.items() if not name.startswith("cli")}
PACKAGES = [name for name, path in FILES.items() if path.name == "__init__.py"]
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in NAMES.items()}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what a piece of source imports: modules of ours by their full name, others by their dotted path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in FILES or node.module not in FILES else str(node.module) for name in names)


def on_top(name: str) -> set[str]:
    """Return the top-level packages that a module imports when it is imported."""
    body = [node for node in TREES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
    return {found.partition(".")[0] for found in imports(ast.Module(body, []))}


OURS = {name: set(imports(tree)) & FILES.keys() - {name} for name, tree in TREES.items() if name != "tokenlens"}


def test_packages_import_only_from_packages_before_them():
    room = {name: ORDER.index(name.split(".")[1]) for name in FILES if name != "tokenlens"}
    assert not [(name, other) for name in room for other in OURS[name] if room.get(other, len(ORDER)) > room[name]]
    assert {path.name for path in (REPOSITORY / "tokenlens").glob("*.py")} == {"__init__.py", "tokens.py", "catalog.py"}
    private = [(name, other) for name, found in OURS.items() for other in found if "._" in other]
    assert not [(name, other) for name, other in private if not name.startswith(other.partition("._")[0])]
    TopologicalSorter(OURS).prepare()  # raises CycleError


def test_public_classes_have_unique_names():
    classes = [node.name for name in FILES for node in TREES[name].body if isinstance(node, ast.ClassDef)]
    assert not [name for name, count in Counter(classes).items() if count > 1 and not name.startswith("_")]


def test_an_init_file_only_re_exports_names_that_can_be_imported():
    for name in PACKAGES:
        kinds = {type(node) for node in TREES[name].body}
        assert name == "tokenlens" or kinds <= {ast.ImportFrom, ast.Expr, ast.Assign}, name
        module = importlib.import_module(name)
        assert all(hasattr(module, public) for public in getattr(module, "__all__", ())), name


def test_tests_sit_where_their_modules_sit():
    tests = REPOSITORY / "tests"
    folders = {path.parent.relative_to(tests).parts for path in tests.rglob("test_*.py")} - {("cli",), ("shipping",)}
    assert {".".join(("tokenlens", *folder)) for folder in folders} <= set(PACKAGES)


def test_libraries_are_imported_where_they_belong():
    for name in FILES:
        assert not {found.partition(".")[0] for found in imports(TREES[name])} & {"tokenlens_cli", "typer", "rich"}
        drawing = name.split(".")[1:2] in (["overlays"], ["figures"], ["report"], ["explorer"])
        assert drawing or not on_top(name) & {"matplotlib", "seaborn", "mpl_toolkits"}, name
        if not name.startswith(("tokenlens.families", "tokenlens.specialization")):
            texts = [node.value for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant)]
            theirs = ("timm.models.vision", "timm.models.eva", "timm.models.beit", "transformers.models")
            assert not [text for text in texts if isinstance(text, str) and text.startswith(theirs)], name
    for name in NAMES.keys() - FILES.keys():  # --help must start at once
        assert on_top(name) <= {"__future__", "typer", "tokenlens_cli", *stdlib_module_names}, name
    statistics = [on_top(name) for name in FILES if name.startswith("tokenlens.statistics.")]
    assert set().union(*statistics) <= {"__future__", "numpy", "scipy", "tokenlens", *stdlib_module_names}


def test_importing_tokenlens_imports_no_torch(tmp_path):
    loaded = "'torch' in sys.modules"
    code = f"import sys, tokenlens; before = {loaded}; tokenlens.analyze; print(before, {loaded})"
    exit_code, stdout, stderr = finished(process("-c", code, cwd=tmp_path))
    assert (exit_code, stdout.split()) == (0, ["False", "True"]), stderr
