"""Run the notebooks, each in a new kernel and an empty folder, and store their outputs.

    python notebooks/execute.py                      # all of them, in place
    python notebooks/execute.py 02 --out elsewhere   # those whose name begins with 02, into another folder

Needs the extra [dev]. For outputs to commit, set TOKENLENS_TEST_DATA to a folder with real weights.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).resolve().parent
WIDGET = "application/vnd.jupyter.widget-view+json"
SECONDS = 300
KEPT = ("tags", "jupyter")
"""Metadata of a cell that folds it in JupyterLab, and leaves it out of the documentation."""


def execute(path: Path) -> nbformat.NotebookNode:
    """Return the notebook with its outputs, without execution times and widgets.

    Raises:
        CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as empty:
        NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            resources={"metadata": {"path": empty}},
            record_timing=False,
            store_widget_state=False,
            extra_arguments=["--log-level=ERROR"],
        ).execute()
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({name: cell.metadata[name] for name in KEPT if name in cell.metadata})
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    return notebook


def main() -> int:
    """Run the chosen notebooks and return 0, or 1 if one failed; failed notebooks are not written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[""], help="prefixes of notebook names (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the results (default: in place)")
    arguments = parser.parse_args()
    failed = 0
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not path.name.startswith(tuple(arguments.names)):
            continue
        try:
            notebook = execute(path)
        except CellExecutionError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            failed = 1
            continue
        arguments.out.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, arguments.out / path.name)
        print(f"{path.name}: {(arguments.out / path.name).stat().st_size / 1000:.0f} kB")
    return failed


if __name__ == "__main__":
    sys.exit(main())
