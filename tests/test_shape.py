"""Imports point one way: read from the source of every module, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.command_line import REPOSITORY, finished, process

LEVELS = (
    {"cache", "catalog", "tokens", "moments", "hub", "checkpoint", "decoding", "names", "shipped", "timm_names"},
    {"attention", "differences", "model_names", "recipe", "sample", "seeds", "stopping"},
    {"recording", "records", "places"},
    {"families", "batch", "splits", "streams"},
    {"specialization", "data", "shards"},
    {"models", "image_trees", "labelled_rows"},
    {"summaries", "sums", "labelled"},
    {"cells", "compiled_sums", "masked_images", "whole_pattern"},
    {"summarizer"},
    {"metrics"},
    {"analysis", "token_maps"},
    {"run_folder", "headlines", "pairing"},
    {"series", "similarity"},
    {"comparison"},
    {"objectives", "probes"},
    {"backbone", "diagnosing", "optimization", "parallel", "training_checkpoint", "training_data", "training_words"},
    {"training_run"},
    {"training_loop"},
    {"training"},
    {"recipes"},
    {"findings", "seed_effects", "variants"},
    {"paired_numbers", "regimes", "start_weights"},
    {"paired_findings", "stage_effects", "verification_data", "verification_runs"},
    {"verification_plan", "verification_result"},
    {"verification"},
    {"figures"},
    {"report", "plot"},
    {"widgets"},
)
"""A module imports from the lines above its own only, a folder also from itself."""

UPWARD = {
    ("analysis", "Analysis.plot", "figures"),
    ("analysis", "Analysis.save", "run_folder"),
    ("analysis", "Analysis.load", "run_folder"),
    ("analysis", "Analysis._repr_html_", "report"),
    ("comparison", "Comparison.plot", "figures"),
    ("comparison", "Comparison.save", "report"),
    ("comparison", "Comparison._repr_html_", "report"),
    ("training_run", "TrainedRun.draw", "figures"),
    ("training_run", "TrainedRun.plot", "figures"),
    ("verification_result", "Verification.save", "report"),
}
"""The one allowance: what an Analysis, a Comparison, a TrainedRun or a Verification does for its user when asked,
imported at that moment."""

DRAWING = {"figures", "plot", "report", "widgets"}
DRAWING_LIBRARIES = {"matplotlib", "seaborn", "mpl_toolkits"}


class Import(NamedTuple):
    """``what`` (a dotted path) is imported in the module ``of``, inside ``where`` (a function; empty on top)."""

    file: str
    of: str
    where: str
    what: str


def source_files(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """All imports that happen at run time; those under ``if TYPE_CHECKING`` do not."""
    parts = path.relative_to(root).with_suffix("").parts
    of = parts[1] if len(parts) > 1 else parts[0]
    package = list(parts[:-1])

    def visit(node: ast.AST, where: tuple[str, ...]) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                continue
            inside = where
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inside = (*where, child.name)
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(
                    [*package[: len(package) - child.level + 1], child.module or ""]
                    if child.level
                    else [child.module or ""]
                ).strip(".")
                # ``from tokenlens import data`` imports a module, too.
                names = [f"{base}.{alias.name}" for alias in child.names]
            yield from (Import(str(path.relative_to(root)), of, ".".join(where), name) for name in names)
            yield from visit(child, inside)

    return visit(ast.parse(path.read_text(encoding="utf-8")), ())


LIBRARY = [found for path in source_files("tokenlens") for found in imports_of(path, REPOSITORY)]
COMMANDS = [found for path in source_files("cli") for found in imports_of(path, REPOSITORY / "cli")]


MODULES = set().union(*LEVELS)


def level_of(module: str) -> int:
    return next(number for number, names in enumerate(LEVELS) if module in names)


def inner(found: Import) -> str | None:
    """The module or folder of tokenlens that is imported."""
    parts = found.what.split(".")
    return parts[1] if parts[0] == "tokenlens" and len(parts) > 1 else None


def test_every_module_has_its_level():
    package = REPOSITORY / "tokenlens"
    modules = {path.relative_to(package).parts[0].removesuffix(".py") for path in source_files("tokenlens")}
    assert modules - {"__init__"} <= MODULES, "a new module of tokenlens needs its place in LEVELS"


def test_imports_point_one_way():
    wrong = []
    for found in LIBRARY:
        target = inner(found)
        if target not in MODULES or found.of in (target, "__init__"):  # __init__: names of the package itself
            continue
        if (found.of, found.where, target) in UPWARD or level_of(target) < level_of(found.of):
            continue
        wrong.append(f"{found.file} {found.where}: {found.what}")
    assert not wrong


def test_the_allowance_is_used():
    used = {(found.of, found.where, inner(found)) for found in LIBRARY}
    assert used >= UPWARD


def test_the_package_itself_imports_nothing():
    outside = {found.what for found in LIBRARY if found.file == str(Path("tokenlens", "__init__.py"))}
    assert all(name.startswith(("__future__", "importlib", "typing")) for name in outside)


def test_only_drawing_modules_import_drawing_libraries():
    wrong = [
        found
        for found in LIBRARY + COMMANDS
        if found.what.partition(".")[0] in DRAWING_LIBRARIES and found.of not in DRAWING
    ]
    assert not wrong
    assert any(found.what.partition(".")[0] in DRAWING_LIBRARIES for found in LIBRARY)


def test_the_library_knows_nothing_of_the_command_line():
    foreign = {"tokenlens_cli", "typer", "rich", "click"}
    assert not [found for found in LIBRARY if found.what.partition(".")[0] in foreign]


def test_commands_import_heavy_things_only_when_they_run():
    light = {"__future__", "typer", "tokenlens_cli"}
    top = {found.what.partition(".")[0] for found in COMMANDS if not found.where} - light
    from sys import stdlib_module_names

    assert not top - set(stdlib_module_names)


def test_only_families_name_the_modules_of_other_libraries():
    """Import paths of somebody's model classes stand in families/ and specialization/ alone."""
    wrong = []
    for path in source_files("tokenlens"):
        if path.relative_to(REPOSITORY / "tokenlens").parts[0] in ("families", "specialization"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if text.startswith(("timm.models.vision", "timm.models.eva", "timm.models.beit", "transformers.models")):
                wrong.append(f"{path.name}:{node.lineno}")
    assert not wrong


@pytest.mark.parametrize("name", ["analyze", "TokenLayout"])
def test_public_names_come_when_they_are_used(name, tmp_path):
    loaded = "'torch' in sys.modules"
    code = f"import sys, tokenlens; before = {loaded}; tokenlens.{name}; print(before, {loaded})"
    exit_code, stdout, stderr = finished(process("-c", code, cwd=tmp_path))
    assert exit_code == 0, stderr
    assert stdout.split() == ["False", "True"]
