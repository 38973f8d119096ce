"""What notebooks will rent on Modal: told, and asked about, before the first of them.

    python -m utils.course.plan notebooks/04_train_sft.ipynb ...

It reads the calls of `remote.job` and `remote.Job` off the notebooks, and runs nothing.
"""

import ast
import os
import sys
from pathlib import Path
from typing import Any

import nbformat

from utils import remote


def read_jobs(path: Path) -> list[remote.Job]:
    """Return what a notebook rents, with its parameters as they stand in it.

    Raises ValueError where a number of calls or minutes cannot be read.
    """
    cells = nbformat.read(path, as_version=4).cells
    names, jobs = {}, []
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        nodes = list(ast.walk(ast.parse(cell.source)))
        for node in nodes:
            if isinstance(node, ast.Assign):
                names |= _read_names(node.targets[0], node.value)
        calls = [node for node in nodes if isinstance(node, ast.Call)]
        for call in calls:
            if ast.unparse(call.func) in ("remote.job", "remote.Job"):
                jobs.append(_read_job(call, names, path.stem))
    return jobs


def _read_names(target: ast.expr, value: ast.expr) -> dict[str, Any]:
    """Return what an assignment gives plain values: `a = 1`, or `a, b = 1, 2`."""
    targets, values = getattr(target, "elts", [target]), getattr(value, "elts", [value])
    pairs = zip(targets, values, strict=False)
    return {ast.unparse(t): v.value for t, v in pairs if isinstance(v, ast.Constant)}


def _read_job(call: ast.Call, names: dict, notebook: str) -> remote.Job:
    given = {word.arg: word.value for word in call.keywords}
    what, gpu = call.args[-2:]
    nodes = (gpu, given["calls"], given["minutes"])
    known = [n.value if isinstance(n, ast.Constant) else None for n in nodes]
    values = [names.get(ast.unparse(n), v) for n, v in zip(nodes, known, strict=True)]
    if not isinstance(values[0], str) or not all(values):
        raise ValueError(
            f"{notebook}: {ast.unparse(call)} needs a GPU, calls= and minutes= written "
            "out, or as names that a cell above gives a plain value"
        )
    name = ast.unparse(what).rpartition(".")[2].strip("'\"")
    return remote.Job(f"{notebook.partition('_')[0]} {name}", *values)


def main(paths: list[Path]) -> None:
    """Print the bill of notebooks; go on with YES=1, or where a yes is typed."""
    if not remote.on_modal("modal"):
        print(f"Nothing is rented: {remote.NO_TOKEN}.")
        return
    jobs = [job for path in paths for job in read_jobs(path)]
    print(
        f"{'Modal, at list prices':34} {'calls':>14} {'likely':>8} {'at most':>8} USD"
    )
    for one in jobs:
        calls = f"{one.calls} x {one.minutes:g} min"
        name = f"{one.name}, {one.gpu}"
        print(f"{name:34} {calls:>14} {one.likely:8.2f} {one.most:8.2f}")
    likely, most, rest = (
        sum(j.likely for j in jobs),
        sum(j.most for j in jobs),
        remote.left(),
    )
    print(f"{'together':49} {likely:8.2f} {most:8.2f}")
    print(f"{rest:.2f} USD are left of BUDGET_USD; no call starts that may cost more.")
    if not jobs or os.environ.get("YES") == "1":
        return
    asked = sys.stdin.isatty() and input("Type yes to go on: ").strip().lower()
    if asked != "yes":
        raise SystemExit("Nothing was started. To go on: make course MODE=modal YES=1")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
