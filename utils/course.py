"""Run the course: modes, results files, run cards, and notebooks through papermill.

`python -m utils.course run` executes every notebook in order; `--help` tells the rest.
"""

import argparse
import ast
import hashlib
import json
import linecache
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SHIPPED = ROOT / "data" / "runs"
MODES = {
    "quick": "every cell for real, on small pieces; costly runs are replayed",
    "full": "everything is computed here, on the CPU",
    "modal": "the heavy cells run on Modal",
}
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def check_mode(mode: str) -> str:
    """Return `mode` if it is one. Raises ValueError that lists the modes."""
    if mode not in MODES:
        told = "; ".join(f"{name!r} ({what})" for name, what in MODES.items())
        raise ValueError(f"MODE = {mode!r} is not a mode. Choose {told}")
    return mode


@dataclass
class Run:
    """One execution of one notebook: where it writes and what it can read."""

    notebook: str
    mode: str
    started: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        """The folder of this mode's results; made when first asked for."""
        folder = ROOT / "runs" / self.mode
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def find(self, name: str) -> Path:
        """Find a file that an earlier notebook made: in runs/, else in data/runs/.

        Raises:
            FileNotFoundError: it is in neither; the message says what to run.

        """
        for path in (self.folder / name, SHIPPED / name):
            if path.exists():
                return path
        raise FileNotFoundError(
            f"{name} is neither in runs/{self.mode}/ nor in data/runs/. Run the "
            f"notebook that makes it: python -m utils.course run --mode {self.mode}"
        )

    def load(self, notebook: str) -> dict[str, Any]:
        """Return the results that another notebook saved."""
        return json.loads(self.find(f"{notebook}.json").read_text())["results"]

    def load_rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a JSON-lines file that another notebook saved."""
        lines = self.find(name).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def save_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as JSON lines to runs/<mode>/<name>.

        A name like 04_train.examples.jsonl, with the notebook's number, is shipped with
        a saved run.
        """
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / name).write_text(text, encoding="utf-8")

    def save(self, **results: Any) -> None:
        """Write this notebook's results and its run card to runs/<mode>/."""
        command = f"python -m utils.course run --mode {self.mode}"
        seconds = round(time.monotonic() - self.started, 1)
        card = run_card(f"{command} --only {self.notebook[:2]}", seconds)
        text = json.dumps({"card": card, "results": results}, indent=1)
        path = self.folder / f"{self.notebook}.json"
        path.write_text(text + "\n", encoding="utf-8")
        print(f"Saved {path.relative_to(ROOT)} after {seconds:.0f} s.")


def start(notebook: str, mode: str) -> Run:
    """Begin a notebook. Raises ValueError for an unknown mode."""
    return Run(notebook, check_mode(mode))


def run_card(command: str, seconds: float, **more: Any) -> dict[str, Any]:
    """Describe a run so that its numbers can be trusted: what, when, where, how long.

    `more` takes what this run has besides: seed, dollars, configuration.
    """
    where = {"machine": platform.machine(), "system": platform.system()}
    where |= {"cpu": _cpu(), "cores": os.cpu_count()}
    return {
        "command": command,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": where,
        "python": platform.python_version(),
        "seconds": seconds,
        **more,
    }


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or "unknown"


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20
        )
        done.check_returncode()
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "utils", "data", "notebooks")
        return git("rev-parse", "--short=12", "HEAD") + (
            " + changes" if changed else ""
        )
    except (OSError, subprocess.SubprocessError):
        return "not in a git checkout"


def fingerprint(notebook: "NotebookNode") -> str:
    """Hash the code behind a notebook's outputs: its cells and the utils it imports.

    The utils modules are hashed without comments, docstrings and layout, so that a
    better sentence in a docstring does not call for a new run.
    """
    code = [c.source for c in notebook.cells if c.cell_type == "code"]
    for words in re.findall(r"course\.borrow\(([\w\", ]+)", "\n".join(code)):
        code += cells_tagged(*re.findall(r'"(\w+)"', words))
    return hash_with_utils("\n\n".join(code), imported_utils("\n".join(code)))


def hash_with_utils(text: str, modules: set[str]) -> str:
    """Hash a text and the named utils modules, with all that these import in turn."""
    digest, waiting, seen = hashlib.sha256(text.encode()), set(modules), set()
    while waiting - seen:
        module = min(waiting - seen)
        seen.add(module)
        source = (ROOT / "utils" / f"{module}.py").read_text(encoding="utf-8")
        digest.update(f"{module}:{bare_source(source)}".encode())
        waiting |= imported_utils(source)
    return digest.hexdigest()


def imported_utils(source: str) -> set[str]:
    """Name the modules of utils that a source text imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "utils":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.removeprefix("utils."))
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("utils.") for alias in node.names}
    return {name for name in names if (ROOT / "utils" / f"{name}.py").exists()}


def bare_source(source: str) -> str:
    """Write code without comments, docstrings and layout: what changes what it does."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return repr(_shape(tree))


def _shape(node: Any) -> Any:
    """Give a syntax tree as plain lists, the same in every version of Python."""
    if isinstance(node, ast.JoinedStr):  # some versions end f-strings in an empty text
        node.values = [v for v in node.values if getattr(v, "value", None) != ""]
    if isinstance(node, ast.AST):
        fields = [(name, _shape(v)) for name, v in ast.iter_fields(node) if v]
        constant = [repr(node.value)] if isinstance(node, ast.Constant) else []
        return [type(node).__name__, *fields, *constant]
    return [_shape(one) for one in node] if isinstance(node, list) else repr(node)


def cells_tagged(notebook: str, *tags: str) -> list[str]:
    """Return the code of a notebook's cells that carry one of the tags, in order."""
    import nbformat

    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    return [c.source for c in cells if {*tags} & {*c.metadata.get("tags", [])}]


def borrow(notebook: str, *tags: str, **parameters: Any) -> SimpleNamespace:
    """Run another notebook's tagged cells and return the names that they define.

    So a recipe stands in one notebook and is used in two. `parameters` are those of the
    other notebook that the cells read. What the cells display is not shown.
    """
    scope = {"__name__": "__main__", **parameters}
    for number, source in enumerate(cells_tagged(notebook, *tags)):
        name = f"<{notebook}, cell {number} of {', '.join(tags)}>"
        # Where inspect looks for the code of a function that is in no file.
        lines = source.splitlines(keepends=True)
        linecache.cache[name] = (len(source), None, lines, name)
        exec(compile(source, name, "exec"), scope)
    return SimpleNamespace(**scope)


def find_notebooks(only: str | None = None) -> list[Path]:
    """List the notebooks in order, or those whose names begin with `only`."""
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    chosen = [path for path in found if path.stem.startswith(only or "")]
    if not chosen:
        names = ", ".join(path.stem for path in found)
        raise ValueError(f"no notebook begins with {only!r}; there are {names}")
    return chosen


def execute(path: Path, mode: str, label: str = "") -> float:
    """Run one notebook; leave the executed copy and an HTML page in runs/<mode>/.

    Returns the seconds that it took.

    Raises:
        papermill.PapermillExecutionError: a cell failed; the executed copy is kept.

    """
    import papermill
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    # The kernel of this very environment, without the debugger's notes on stderr.
    if mode != "modal":
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no look-up may hang
    os.environ |= {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    copy = ROOT / "runs" / mode / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as sockets:
        # Files instead of TCP ports: no other user of the machine can listen in.
        private = {"transport": "ipc", "ip": f"{sockets}/k"}
        executed = papermill.execute_notebook(
            str(path),
            str(copy),
            parameters={"MODE": mode},
            cwd=str(NOTEBOOKS),
            kernel_name="python3",
            progress_bar={"desc": label or path.stem, "leave": True},
            config=Config({"KernelManager": private}) if os.name == "posix" else None,
        )
    seconds = time.monotonic() - started
    page, _ = HTMLExporter().from_notebook_node(executed)
    page = re.sub(r'(href="[0-9]{2}_\w+)\.ipynb', r"\1.html", page)
    copy.with_suffix(".html").write_text(page, encoding="utf-8")
    return seconds


def ship(path: Path, mode: str) -> None:
    """Put the outputs of an executed copy into the notebook, and its JSON in data/runs.

    Machine paths, terminal colours, progress bars and widget state stay behind. The
    notebook's metadata keeps the fingerprint of the code that made the outputs.
    """
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    executed = nbformat.read(ROOT / "runs" / mode / path.name, as_version=4)
    outputs = {cell.id: cell.get("outputs", []) for cell in executed.cells}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        kept = [o for o in outputs[cell.id] if not _is_progress(o)]
        cell.outputs = [_clean(output, number) for output in kept]
        cell.execution_count = number
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    if "language_info" in executed.metadata:  # or JupyterLab calls the file changed
        notebook.metadata["language_info"] = executed.metadata.language_info
    notebook.metadata["course"] = {"mode": mode, "sources": fingerprint(notebook)}
    nbformat.write(notebook, path)
    results = ROOT / "runs" / mode / f"{path.stem}.json"
    if results.exists():
        saved = json.loads(results.read_text())
        saved["card"]["sources"] = notebook.metadata["course"]["sources"]
        SHIPPED.mkdir(exist_ok=True)
        (SHIPPED / results.name).write_text(json.dumps(saved, indent=1) + "\n")
    for rows in sorted(results.parent.glob(f"{path.stem[:2]}_*.examples.jsonl")):
        shutil.copy(rows, SHIPPED / rows.name)
    cards = results.parent.glob(f"{path.stem[:2]}_*/card.json")
    # Of two runs of one name the newer one is shipped.
    for card in sorted(cards, key=lambda c: json.loads(c.read_text())["date"]):
        _ship_costly(card.parent, SHIPPED / json.loads(card.read_text())["name"])


def _ship_costly(run: Path, target: Path) -> None:
    """Copy what a costly run keeps (see `utils.recipes`); its checkpoints stay."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for kept in ("card.json", "log.jsonl", "result.json"):
        shutil.copy(run / kept, target)
    if (run / "adapter").is_dir():
        shutil.copytree(run / "adapter", target / "adapter")
        settings = target / "adapter" / "adapter_config.json"
        told = json.loads(settings.read_text(encoding="utf-8"))
        # The folder of the base model is this machine's; its name is enough.
        told["base_model_name_or_path"] = Path(told["base_model_name_or_path"]).name
        settings.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def _is_progress(output: "NotebookNode") -> bool:
    # A line of tqdm's is '40%|####  | 2/5'; whatever else is on stderr is kept.
    lines = re.split(r"[\r\n]+", output.text) if output.get("name") == "stderr" else []
    return bool(lines) and all("%|" in line or not line.strip() for line in lines)


def _clean(output: "NotebookNode", number: int) -> "NotebookNode":
    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return _ANSI.sub("", value).replace(f"{ROOT}{os.sep}", "")
        return [clean(v) for v in value] if isinstance(value, list) else value

    if "text" in output:
        output.text = clean(output.text)
    for kind in list(output.get("data", {})):
        if "widget" in kind:
            del output.data[kind]
        else:
            output.data[kind] = clean(output.data[kind])
    if "execution_count" in output:
        output.execution_count = number
    return output


def front() -> None:
    """Redraw the README's ladder and fill in its tables, all from data/runs."""
    from utils import plots

    saved = {p.stem: json.loads(p.read_text()) for p in sorted(SHIPPED.glob("*.json"))}
    told = saved.get("10_compare_costs", {"results": {}})["results"]
    drawing = plots.ladder(ladder_bars(saved), told.get("dollars")).figure
    drawing.savefig(SHIPPED / "ladder.png")
    tables = {"notebooks": table(saved), "minutes": minutes(saved)}
    for name, run in saved.items():
        if name.startswith("bench_"):
            tables[name] = run["results"]["table"]
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for name, rows in tables.items():
        # What stands between the two comments is replaced.
        frame = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- end -->)", re.DOTALL)
        before, after = frame.search(text).span()
        start, end = frame.search(text).groups()
        text = f"{text[:before]}{start}{rows}\n{end}{text[after:]}"
    readme.write_text(text, encoding="utf-8")


def ladder_bars(saved: dict[str, Any]) -> list[dict[str, Any]]:
    """List the ladder's bars in order; `saved` maps a notebook to its JSON.

    The untrained model, which notebook 10 adds, is the foot of the trained ones.
    """
    bars = [bar for run in saved.values() for bar in run["results"].get("ladder", ())]
    for run in saved.values():
        if foot := run["results"].get("untrained"):
            bars.insert([bar["name"] for bar in bars].index("SFT"), foot)
    return bars


def table(saved: dict[str, Any]) -> str:
    """Write the README's table of notebooks; `saved` maps a notebook to its JSON."""
    import nbformat

    rows = [
        "| notebook | what you do | minutes | dollars |",
        "| --- | --- | --- | --- |",
    ]
    for path in find_notebooks():
        first = nbformat.read(path, as_version=4).cells[0].source
        title = re.search(r"^# (.+)$", first, re.M)[1]
        dollars = re.search(r"^\| Dollars \| (\d+)", first, re.M)[1]
        minutes = saved[path.stem]["card"]["seconds"] / 60
        told = f"{minutes:.0f}" if minutes >= 1 else "under 1"
        link = f"[{path.stem}](notebooks/{path.name})"
        rows.append(f"| {link} | {title} | {told} | {dollars} |")
    return "\n".join(rows)


def minutes(saved: dict[str, Any]) -> str:
    """Say how long the course takes; `saved` maps a run to its JSON.

    A full run from nothing takes the minutes of the notebooks and those of the costly
    runs that they replay, which have cards of their own.
    """
    cards = [json.loads(p.read_text()) for p in SHIPPED.glob("[0-9][0-9]_*/card.json")]
    on_gpu = [card for card in cards if "H200" in card["hardware"]["cpu"]]
    costly = sum(card["seconds"] for card in cards if card not in on_gpu)
    lent = sum(card["seconds"] for card in on_gpu)
    full = sum(saved[path.stem]["card"]["seconds"] for path in find_notebooks())
    lines = []
    if "course_quick" in saved:
        card = saved["course_quick"]["card"]
        lines.append(
            f"All notebooks in quick mode: {card['seconds'] / 60:.1f} minutes on "
            f"{card['hardware']['cores']} cores, after set-up."
        )
    lines.append(
        f"A full run from nothing: {(full + costly) / 3600:.1f} hours on 2 cores, of "
        f"which {costly / 3600:.1f} in {len(cards) - len(on_gpu)} costly runs that "
        f"full mode replays while their recipes are unchanged. {len(on_gpu)} more ran "
        f"on an H200, in {lent / 60:.0f} minutes; on 2 cores they take longer, and are "
        "not in the sum."
    )
    return "\n".join(textwrap.wrap(" ".join(lines), 88))


def main(arguments: list[str] | None = None) -> int:
    """Command line of the course; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m utils.course")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute the notebooks in order")
    run.add_argument("--mode", default="quick", help=f"{', '.join(MODES)}")
    run.add_argument("--only", help="the notebooks that begin with this, as 02")
    run.add_argument(
        "--save",
        action="store_true",
        help="put the outputs of full mode into notebooks/, and each mode's minutes "
        "into data/runs/ (authors)",
    )
    commands.add_parser("front", help="redraw the README's figure and table (authors)")
    chosen = parser.parse_args(arguments)
    if chosen.command == "front":
        front()
        return 0
    try:
        mode, notebooks = check_mode(chosen.mode), find_notebooks(chosen.only)
    except ValueError as error:
        parser.error(str(error))
    return _run(notebooks, mode, chosen.save)


def _run(notebooks: list[Path], mode: str, save: bool) -> int:
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    took = {}
    for number, path in enumerate(notebooks, start=1):
        label = f"[{number}/{len(notebooks)}] {path.stem}"
        try:
            took[path.stem] = execute(path, mode, label)
        except PapermillExecutionError as error:
            lines = _ANSI.sub("", "\n".join(error.traceback)).splitlines()
            print(f"\n{path.stem} stopped at this cell:\n\n{error.source}\n")
            print("\n".join(lines[-12:]))
            print(f"\nThe executed copy is runs/{mode}/{path.name}.", file=sys.stderr)
            return 1
        except DeadKernelError:
            print(f"\n{path.stem}: its Python died, often for want of memory.")
            print(f"The cells before are in runs/{mode}/{path.name}.")
            return 1
        except OSError as error:
            print(f"\n{path.stem}: cannot write the results: {error}")
            return 1
        except KeyboardInterrupt:
            print(f"\nInterrupted in {path.stem}; what ran before is in runs/{mode}/.")
            return 130
    # At the end: until then the run cards name a commit without changes.
    for path in notebooks if save and mode == "full" else ():
        ship(path, mode)
    if save and len(notebooks) == len(find_notebooks()):
        card = run_card(f"python -m utils.course run --mode {mode}", sum(took.values()))
        told = {"card": card, "results": {"seconds": took}}
        path = SHIPPED / f"course_{mode}.json"
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    width = max(map(len, took))
    print("\n".join(f"{name:<{width}}  {took[name]:6.1f} s" for name in took))
    print(f"{'together':<{width}}  {sum(took.values()):6.1f} s, in runs/{mode}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
