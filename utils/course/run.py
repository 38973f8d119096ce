"""Modes, results files and run cards: what every notebook starts and ends with."""

import json
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "data" / "runs"
MODES = {
    "quick": "every cell for real, on small pieces; costly runs are replayed",
    "full": "everything is computed here, on the CPU",
    "modal": "the heavy cells run on Modal",
}


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

    @property
    def command(self) -> str:
        """The command that repeats this execution."""
        return f"make course MODE={self.mode} ONLY={self.notebook[:2]}"

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
            f"notebook that makes it: make course MODE={self.mode} "
            f"ONLY={name.partition('_')[0]}"
        )

    def load(self, notebook: str) -> dict[str, Any]:
        """Return the results that another notebook saved."""
        return json.loads(self.find(f"{notebook}.json").read_text())["results"]

    def load_full(self, notebook: str) -> dict[str, Any]:
        """Return another notebook's results on all cases: in quick mode the shipped."""
        name = f"{notebook}.json"
        path = SHIPPED / name if self.mode == "quick" else self.find(name)
        return json.loads(path.read_text())["results"]

    def load_rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a JSON-lines file that another notebook saved."""
        return read_rows(self.find(name))

    def save_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write rows as JSON lines to runs/<mode>/<name>."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / name).write_text(text, encoding="utf-8")

    def save(self, **results: Any) -> None:
        """Write this notebook's results and its run card to runs/<mode>/."""
        seconds = round(time.monotonic() - self.started, 1)
        card = run_card(self.command, seconds)
        text = json.dumps({"card": card, "results": results}, indent=1)
        path = self.folder / f"{self.notebook}.json"
        path.write_text(text + "\n", encoding="utf-8")
        print(f"Saved {path.relative_to(ROOT)} after {seconds:.0f} s.")


_current: Run | None = None


def start(notebook: str, mode: str) -> Run:
    """Begin a notebook, and keep it as the `current` one of this process.

    Raises:
        ValueError: an unknown mode.
        RuntimeError: the notebook lies in one copy of the course, `utils` in another.

    """
    global _current
    if mode not in MODES:
        known = "; ".join(f"{name!r} ({what})" for name, what in MODES.items())
        raise ValueError(f"MODE = {mode!r} is not a mode. Choose {known}")
    check_root(Path.cwd())
    _current = Run(notebook, mode)
    return _current


def current() -> Run:
    """Return what `start` began. Raises RuntimeError where nothing was begun."""
    if _current is None:
        raise RuntimeError("first call course.start(notebook, mode)")
    return _current


def check_root(here: Path) -> None:
    """Check that a notebook in `here` gets the `utils` of its own copy of the course.

    An environment that another copy was installed into would serve that copy's code
    and data without a word. Raises RuntimeError that says what to do.
    """
    for folder in (here, *here.parents):
        if (folder / "utils/course/run.py").is_file():
            if folder.resolve() != ROOT:
                raise RuntimeError(
                    f"this notebook lies in {folder}, and its utils come from {ROOT}. "
                    f"Start Jupyter by `make lab` in {folder}, or choose the kernel of "
                    f"{folder}/.venv"
                )
            return


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file."""
    # No splitlines(): it also splits at U+2028, which JSON leaves as it is.
    lines = path.read_text("utf-8-sig").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


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
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.check_output(
            command, stderr=subprocess.DEVNULL, text=True, timeout=20
        ).strip()

    try:
        changed = git("status", "--porcelain", "--", "utils", "data", "notebooks")
        commit = git("rev-parse", "--short=12", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return "not in a git checkout"
    return f"{commit} + changes" if changed else commit
