"""Costly runs: done once, kept with log and run card, replayed only if unchanged.

A run is known by the hash of its recipe: the code of its functions, the utils modules
that they import, and its configuration with all data. A changed recipe finds no old
result. An interrupted run keeps its folder, so that the function can resume in it.
"""

import ast
import hashlib
import inspect
import json
import linecache
import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import ismodule
from pathlib import Path
from typing import Any

import modal

from utils.course import (
    SHIPPED,
    Run,
    bare_source,
    hash_with_utils,
    imported_utils,
    run_card,
)
from utils.remote import Session, plain


@dataclass(frozen=True)
class Done:
    """A finished run: what its function returned, its log's rows, its card.

    `folder` is here; `remote` is where the function saw it, on Modal's Volume.
    """

    folder: Path
    result: dict[str, Any]
    log: list[dict[str, Any]]
    card: dict[str, Any]
    replayed: bool
    remote: str | None = None

    @property
    def adapter(self) -> str:
        """The folder of the adapter, for a function of the same session."""
        return f"{self.remote or self.folder}/adapter"

    def told(self) -> str:
        """Say in one line whose numbers these are."""
        card, hardware = self.card, self.card["hardware"]
        how = "Replayed, not run now:" if self.replayed else "Run now:"
        return (
            f"{how} {card['name']}, recipe {card['recipe'][:12]}, "
            f"{card['seconds'] / 60:.1f} minutes on {hardware['cores']} cores of "
            f"{hardware['cpu']}, {card['date'][:10]}, commit {card['commit']}."
        )


@dataclass(frozen=True)
class Recipe:
    """A function and a configuration, known by their hash.

    Args:
        name: of the run and its folder; begins with the notebook's number.
        function: takes the configuration and returns a dictionary of plain data. Its
            "log", a list of rows, goes to a file of its own.
        config: plain data; "folder" is set here, to where the function may write.
        parts: other functions and classes of the notebook that `function` uses.

    """

    name: str
    function: Callable
    config: dict[str, Any]
    parts: Sequence[Callable] = field(default=())

    @property
    def key(self) -> str:
        """SHA-256 over code, utils and configuration; folder and comments aside."""
        sources = [_source(one) for one in (self.function, *self.parts)]
        config = {k: v for k, v in self.config.items() if k not in ("folder", "live")}
        text = json.dumps(config, sort_keys=True) + "".join(map(bare_source, sources))
        modules = set().union(*map(imported_utils, sources))
        for one, source in zip((self.function, *self.parts), sources, strict=True):
            modules |= _modules_used(
                one if inspect.isroutine(one) else self.function, source
            )
        return hash_with_utils(text, modules)

    def find(self, *places: Path) -> Done | None:
        """Return a finished run of this very recipe, or None."""
        for place in places:
            path = place / "card.json"
            if path.exists():
                card = json.loads(path.read_text(encoding="utf-8"))
                if card["recipe"] == self.key:
                    return _read(place, card, replayed=True)
        return None


def replay(recipe: Recipe) -> Done:
    """Return the shipped run of a recipe.

    Raises:
        LookupError: none is shipped, or the recipe has changed since.

    """
    if done := recipe.find(SHIPPED / recipe.name):
        print(done.told())
        return done
    raise LookupError(
        f"data/runs/{recipe.name} is not a run of this recipe: its code, its "
        'configuration or its data has changed. MODE = "full" runs it anew.'
    )


def run(
    course: Run,
    jobs: Session,
    recipe: Recipe,
    job: modal.Function | Callable[[dict], dict],
    live: bool = False,
) -> Done:
    """Run a recipe in a session, unless a run of it is at hand.

    `job` is the recipe's function as the app knows it, `app.function(...)(function)`. A
    plain function runs here and may call the session itself.

    Looked for in runs/<mode>/ and, unless it is for Modal, in data/runs/. The log, the
    result and the run card are written to runs/<mode>/<name>-<hash>/, where the
    function may keep its checkpoints; an interrupted run finds them there. On Modal the
    function's folder is on the Volume at /runs. `live` asks a function that can to draw
    while it runs.
    """
    key = recipe.key
    name = f"{recipe.name}-{key[:8]}"
    folder = course.folder / name
    remote = f"/runs/{name}" if jobs.on_modal else None
    places = [folder] if jobs.on_modal else [folder, SHIPPED / recipe.name]
    if course.mode == "quick":  # for real, each time
        shutil.rmtree(folder, ignore_errors=True)
    elif done := recipe.find(*places):
        print(done.told())
        return replace(done, remote=remote)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    clock = folder / "seconds.txt"  # spent by attempts that were interrupted
    spent = float(clock.read_text()) if clock.exists() else 0.0
    config = {**recipe.config, "folder": remote or str(folder)}
    config["live"] = live and not jobs.on_modal
    try:
        on_app = isinstance(job, modal.Function)
        result = dict(jobs.run(job, config) if on_app else plain(job(config)))
    finally:
        spent += time.monotonic() - started
        clock.write_text(f"{spent:.1f}")
    rows = "".join(json.dumps(row) + "\n" for row in result.pop("log", []))
    (folder / "log.jsonl").write_text(rows, encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    command = f"python -m utils.course run --mode {course.mode}"
    card = run_card(f"{command} --only {course.notebook[:2]}", round(spent, 1))
    card |= {"name": recipe.name, "recipe": key, "on_modal": jobs.on_modal}
    card["config"] = {k: _short(v) for k, v in recipe.config.items()}
    # Last, for it says that the run is complete.
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    done = _read(folder, card, replayed=False)
    print(done.told())
    return replace(done, remote=remote)


def _source(one: Callable) -> str:
    """Return the code of a function or class, a notebook's too, without decorators."""
    if isinstance(one, type):
        # inspect finds no class of a notebook, but the cell that a method is of.
        methods = filter(inspect.isfunction, vars(one).values())
        cells = ("".join(linecache.getlines(m.__code__.co_filename)) for m in methods)
        nodes = (n for cell in cells for n in ast.walk(ast.parse(cell)))
        found = (n for n in nodes if getattr(n, "name", "") == one.__name__)
        node = next(found, None)
        if node is None:
            raise TypeError(f"{one.__name__} has no method, so its code is not found")
    else:
        node = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
    node.decorator_list = []
    return ast.unparse(node)


def _modules_used(function: Callable, source: str) -> set[str]:
    """Name the utils modules that a notebook's function finds among its globals."""
    known, names = getattr(inspect.unwrap(function), "__globals__", {}), set()
    nodes = ast.walk(ast.parse(source))
    for word in {n.id for n in nodes if isinstance(n, ast.Name)} & known.keys():
        value = known[word]
        if ismodule(value):
            names.add(value.__name__)
        elif isinstance(value, type) or inspect.isroutine(value):
            names.add(value.__module__)
    names = {n.removeprefix("utils.") for n in names if str(n).startswith("utils.")}
    return names - {"plots"}  # a curve drawn in another way is no other training


def _short(value: Any) -> Any:
    """Leave data out of a run card; its size and hash stay."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict | str | list):
        digest = hashlib.sha256(json.dumps(value).encode()).hexdigest()
        return f"{len(value)} items, sha256 {digest[:16]}"
    return value


def _read(folder: Path, card: dict[str, Any], replayed: bool) -> Done:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return Done(folder, result, [json.loads(row) for row in lines], card, replayed)
