"""The course's files, its notebooks, and copies of it such as a stranger has."""

import re
import subprocess
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


def shipped_files():
    """Files of the repository that git does not ignore, tracked or not yet."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(listing, cwd=ROOT, text=True).split("\0")
    return sorted(ROOT / name for name in names if name and (ROOT / name).is_file())


def clone(folder):
    """Copy the shipped files into an empty folder."""
    for path in shipped_files():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder


def load(path):
    return nbformat.read(path, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose_of(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def said(notebook):
    """Return all that a notebook's outputs say in words."""
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    words = [one.get("text", "") for one in outputs]
    for data in (one.get("data", {}) for one in outputs):
        words += [text for kind, text in data.items() if kind.startswith("text/")]
    return "\n".join(words)


def on_screen():
    """Return what the workshop's notes promise on every screen, by notebook."""
    notes = (ROOT / "notebooks/workshop/notes.md").read_text(encoding="utf-8")
    promise = r"^## (\w+) (?:.|\n)*?^\*\*On every .*: `([^`]+)`$"
    return dict(re.findall(promise, notes, re.M))


def run_cells(name, scope, *parts):
    """Run the first cell of a notebook that has each part; return the names they leave.

    Raises StopIteration where no cell has it.
    """
    sources = [cell.source for cell in code_of(load(ROOT / f"notebooks/{name}.ipynb"))]
    for part in parts:
        exec(next(source for source in sources if part in source), scope)
    return scope
