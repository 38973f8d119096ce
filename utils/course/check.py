"""Is this machine ready for the course? `make check` asks, line by line.

    python3 utils/course/check.py --setup    # before the set-up; any Python from 3.7
    .venv/bin/python utils/course/check.py   # all of it

A line is OK, SKIP or FAIL; what failed says what to do. Whatever is not in the standard
library is imported where it is used, for it may be missing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OLDEST, NEWEST = (3, 11), (3, 14)  # as pyproject.toml has it
# What a set-up puts on the disk, and what a course that is set up still writes: GB.
DISK = {"light": 1.0, "whole": 3.0, "set up": 0.5}
MEMORY = {"light": 1.0, "whole": 3.0}  # GB; below, the machine swaps or kills
PORTS = range(8888, 8893)  # JupyterLab takes the first that is free
AGAIN = "make clean, then make check, sets all up anew (with ENV: pip install -r "
AGAIN += "requirements.lock)"


class Problem(Exception):  # noqa: N818
    """What is wrong, and what to do."""


class Skipped(Exception):  # noqa: N818
    """Why something need not be checked."""


# --- before the set-up: the standard library alone ------------------------------------


def check_python(asked: argparse.Namespace) -> str:
    """Look at the version, and at the parts that some systems leave out."""
    here = f"{platform.python_version()} at {sys.executable}"
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        names = [f"python3.{n}" for n in range(NEWEST[1], OLDEST[1] - 1, -1)]
        there = next(filter(runs, names), None)
        low, high = ("{}.{}".format(*version) for version in (OLDEST, NEWEST))
        remedy = f"make check PYTHON={there or 'python' + low}"
        if not there:
            remedy = f"install one from https://www.python.org/downloads, then {remedy}"
        raise Problem(f"{here}: the course needs {low} to {high}; {remedy}")
    for name in ("ensurepip", "ssl", "sqlite3", "ctypes"):
        try:
            __import__(name)
        except ImportError:
            package = "python{}.{}-venv".format(*sys.version_info)
            raise Problem(
                f"{here} has no {name}: install another Python, or on Debian and "
                f"Ubuntu: sudo apt install {package}"
            ) from None
    return here


def runs(python: str) -> bool:
    """Say whether there is such a Python, and not only a name for one."""
    found = shutil.which(python)
    how = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return bool(found) and subprocess.call([found, "-c", ""], **how) == 0


def check_make(asked: argparse.Namespace) -> str:
    """Look for make, which has probably started this."""
    try:
        said = subprocess.check_output(["make", "--version"], universal_newlines=True)
    except OSError:
        raise Problem(
            "there is no make: xcode-select --install (macOS), sudo apt install make"
        ) from None
    return said.splitlines()[0]


def check_machine(asked: argparse.Namespace) -> str:
    """Name the system and its cores."""
    kind = f"{platform.system()} {platform.machine()}"
    if os.name != "posix":
        raise Problem(f"{kind}: the course needs Linux or macOS; on Windows use WSL")
    version = platform.mac_ver()[0]
    if version and not asked.light and int(version.split(".")[0]) < 14:
        raise Problem(f"macOS {version}: PyTorch needs 14; make check LIGHT=1")
    if kind == "Darwin x86_64" and not asked.light:
        raise Problem(
            f"{kind}: PyTorch has no build for Macs with Intel processors; make "
            "check LIGHT=1. On a newer Mac this is the wrong Python: take one for arm64"
        )
    return f"{kind}, {os.cpu_count()} cores"


def check_disk(asked: argparse.Namespace) -> str:
    """Find room, and leave to write, in the course's folder and for the weights."""
    need = DISK["set up"]
    if asked.setup:
        need = DISK["light" if asked.light else "whole"]
    weights = Path(os.environ.get("BENEATH_CACHE") or "~/.cache").expanduser()
    found = []
    for folder in (ROOT, weights):
        there = next(one for one in (folder, *folder.parents) if one.exists())
        free = shutil.disk_usage(there).free / 1e9
        found.append(free)
        if not os.access(there, os.W_OK):
            raise Problem(f"{there} cannot be written to: chmod it, or use another")
        if free < need:
            raise Problem(
                f"{free:.1f} GB free in {there}, and the course needs {need:g}: make "
                "room, or put it on another disk (its weights: BENEATH_CACHE=folder)"
            )
    return f"{min(found):.1f} GB free"


def check_memory(asked: argparse.Namespace) -> str:
    """Count the machine's memory, or what a container may have of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else ""
    total = min(total, int(text)) if text.isdigit() else total
    need = MEMORY["light" if asked.light else "whole"]
    if total / 1e9 < need:
        remedy = "give this machine or container more"
        if not asked.light:
            remedy += ", or take what needs no PyTorch: make check LIGHT=1"
        raise Problem(f"{total / 1e9:.1f} GB, and the course needs {need:g}: {remedy}")
    return f"{total / 1e9:.1f} GB"


def check_bundle(asked: argparse.Namespace) -> str:
    """See whether a bundle is for this system and Python."""
    if not asked.bundle:
        raise Skipped("BUNDLE is not set: packages come from the network")
    python = "{}.{}".format(*sys.version_info)
    mine = f"{platform.system()}-{platform.machine()}-{python}"
    lists = sorted(path.stem for path in Path(asked.bundle).glob("*-*-3.*.txt"))
    if mine not in lists and not (asked.light and f"{mine}-light" in lists):
        raise Problem(
            f"{asked.bundle} is for {', '.join(lists) or 'nothing'}, and this is {mine}"
            ": choose a Python (PYTHON=python3.11), the light part (LIGHT=1), or "
            "another bundle (make bundle BUNDLE=folder writes one)"
        )
    return f"{asked.bundle} is for {', '.join(lists)}"


# --- with the packages ----------------------------------------------------------------


def check_packages(asked: argparse.Namespace) -> str:
    """Compare with the lock what pyproject.toml asks for, and all that this needs."""
    try:
        rows = list(needed(asked.light))
    except ImportError as error:  # what reads requirements is itself a package
        raise Problem(f"{sys.prefix} is not set up ({error}): {AGAIN}") from None
    wrong = [f"{name} {here or 'is missing'}" for name, here, ok in rows if not ok]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise Problem(
            f"not as requirements.lock has it: {', '.join(wrong[:5])}{more}. {AGAIN}"
        )
    return f"{len(rows)}, as {'the light part of ' * asked.light}requirements.lock"


def needed(light: bool) -> Iterator[tuple[str, str, bool]]:
    """Yield each package: name, version here ("": none), whether that is as locked."""
    import re
    import tomllib
    from importlib import metadata

    from packaging.requirements import Requirement

    lock: dict[str, set[str]] = {}
    pins = re.findall(r"^([a-z].*?)==([^\s;]+)", read("requirements.lock"), re.M)
    for name, version in pins:
        lock.setdefault(name, set()).add(version)
    project = tomllib.loads(read("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    todo = [*project["dependencies"], *([] if light else extras["train"])]
    seen = set()
    while todo:
        wanted = Requirement(todo.pop())
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        marked = wanted.marker
        if marked and not any(
            marked.evaluate({"extra": e}) for e in ("", *wanted.extras)
        ):
            continue
        if (name, *wanted.extras) in seen:
            continue
        seen.add((name, *wanted.extras))
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "", False
            continue
        newest = "-latest" in sys.prefix  # LATEST=1: not the locked ones
        yield name, here, newest or here.partition("+")[0] in lock.get(name, {here})
        todo += metadata.requires(name) or []


def read(name: str) -> str:
    """Read a file of the course."""
    return (ROOT / name).read_text("utf-8")


def check_sandbox(asked: argparse.Namespace) -> str:
    """Send a query through the confined processes that run a model's SQL."""
    from utils import tidewater

    with tidewater.open_pool(workers=1) as pool:
        jobs = [(name, "SELECT COUNT(*) FROM tickets") for name in pool.databases]
        results = list(pool.map(jobs))
    for result in results:
        if result.error:
            raise Problem(f"{result.error}, {result.message}: git checkout data")
    return f"a query counts {results[0].rows[0][0]:,} tickets"


def check_weights(asked: argparse.Namespace) -> str:
    """Take the laptop's model, downloaded if need be, and its SHA-256."""
    if asked.light:
        raise Skipped("LIGHT=1: no model is needed in notebooks 00 to 03 and 10")
    import hashlib

    from utils.training import weights

    try:
        path = Path(weights.fetch(), "model.safetensors")
    except (OSError, ValueError) as error:
        raise Problem(str(error)) from None
    found = "no file"
    if path.exists():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != weights.CONVERTED:
        raise Problem(
            f"{path} is damaged, or other versions made it (SHA-256 {found[:12]}, not "
            f"{weights.CONVERTED[:12]}): rm -r {path.parent}, then make check"
        )
    return f"{path.parent}, SHA-256 {found[:12]}"


def check_reply(asked: argparse.Namespace) -> str:
    """Let the model reply once, with the best adapter."""
    from utils.training.engine import Engine
    from utils.training.weights import fetch

    adapter = ROOT / "data/runs/06b_average/adapter"
    chat = [{"role": "user", "content": "How many tickets are there?"}]
    try:
        return repr(Engine(adapter=adapter, max_new_tokens=40).replies([chat])[0].text)
    except Exception as error:  # whatever a damaged file leads to
        raise Problem(
            f"{type(error).__name__}: {error}. If a file is damaged: rm -r {fetch()}, "
            "git checkout data/runs, then make check"
        ) from error


def check_step(asked: argparse.Namespace) -> str:
    """Train for one step: the last layer, on two examples."""
    from utils.training import cpu, examples, weights

    rows = [
        examples.example("How many tickets?", "select count(*) from tickets"),
        examples.example("How many customers?", "select count(*) from customers"),
    ]
    one = {"max_steps": 1, "save_steps": 1, "logging_steps": 1, "seed": 0}
    one |= {"per_device_train_batch_size": 2, "layers_to_transform": [29], "lora_r": 4}
    one |= {"model_name_or_path": weights.LAPTOP, "data": rows, "validation": rows}
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet:
        done = cpu.train_sft(one | {"output_dir": folder})
    loss = done["validation_loss"]
    if not math.isfinite(loss):
        raise Problem(f"the loss is {loss} after one step: {AGAIN}")
    return f"a loss of {loss:.2f} nats after one step"


# --- what is outside ------------------------------------------------------------------


def check_port(asked: argparse.Namespace) -> str:
    """Find a free port for JupyterLab, which tries the next ones by itself."""
    for port in PORTS:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                server.bind(("127.0.0.1", port))
                busy = "" if port == PORTS[0] else f", for {PORTS[0]} is busy"
                return f"JupyterLab will take {port}{busy}"
    raise Problem(
        f"ports {PORTS[0]} to {PORTS[-1]} are busy: end an old JupyterLab, or choose "
        "another: make lab LAB=--port=9100"
    )


def check_modal(asked: argparse.Namespace) -> str:
    """Look at the form of a Modal token; nobody is asked whether it is valid."""
    from utils import remote

    try:
        if not remote.on_modal("modal"):
            raise Skipped("no token; MODE=modal alone needs one")
    except ValueError as error:
        raise Problem(str(error)) from None
    for name, start in (("token_id", "ak-"), ("token_secret", "as-")):
        text = remote.config[name]
        if text and not text.startswith(start):
            raise Problem(
                f"MODAL_{name.upper()} does not begin with {start}: .venv/bin/modal "
                "setup gets a new token"
            )
    return "a token is set, and was not tried"


def check_key(asked: argparse.Namespace) -> str:
    """Look at the form of an API key; nobody is asked whether it is valid."""
    names = ("OPENAI_API_KEY", "MODEL", "OPENAI_BASE_URL")
    key, model, url = (os.environ.get(name, "") for name in names)
    if not model or not (key or url):
        raise Skipped("OPENAI_API_KEY and MODEL are not both set: replies are recorded")
    if not key:
        raise Problem("OPENAI_API_KEY is not set: any text will do for a local server")
    if not key.isascii() or set(key) & set(" \t\r\n'\""):
        raise Problem("OPENAI_API_KEY has a blank, a quote or the like: copy it anew")
    if url and not url.startswith(("http://", "https://")):
        raise Problem(f"OPENAI_BASE_URL={url} does not begin with http:// or https://")
    if not url and not key.startswith("sk-"):
        raise Problem(
            "OPENAI_API_KEY does not begin with sk-: copy it anew, or set "
            "OPENAI_BASE_URL if it is another server's"
        )
    return f"set, for {model}, and was not tried"


SETUP = [
    check_python,
    check_make,
    check_machine,
    check_disk,
    check_memory,
    check_bundle,
]
MODEL = [check_reply, check_step]
ALL = [*SETUP, check_packages, check_sandbox, check_weights, *MODEL]
ALL += [check_port, check_modal, check_key]


def run(check: Callable[[argparse.Namespace], str], asked: argparse.Namespace) -> str:
    """Do one check and print its line; return its first word."""
    try:
        word, text = "OK", check(asked)
    except Skipped as why:
        word, text = "SKIP", str(why)
    except Problem as problem:
        word, text = "FAIL", str(problem)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        word, text = "FAIL", f"{type(error).__name__}: {first}. {AGAIN}"
    print(f"{word:5}{check.__name__[6:]:9} {text}", flush=True)
    return word


def main(words: list[str]) -> int:
    """Check the machine; return 1 if something failed."""
    parser = argparse.ArgumentParser(description="Checks a machine for the course.")
    parser.add_argument("--setup", action="store_true", help="what a set-up needs")
    parser.add_argument("--light", action="store_true", help="without PyTorch")
    parser.add_argument("--bundle", default="", help="a folder of wheels")
    asked, started, failed = parser.parse_args(words), time.monotonic(), []
    for check in SETUP if asked.setup else ALL:
        if check in MODEL and (asked.light or failed):
            why = "LIGHT=1" if asked.light else f"first mend {failed[0]}"
            print(f"SKIP {check.__name__[6:]:9} {why}")
        elif run(check, asked) == "FAIL":
            failed.append(check.__name__[6:])
    if failed:
        print(f"Failed: {', '.join(failed)}. Mend the first, then make check again.")
    elif not asked.setup:
        print(f"Ready, checked in {time.monotonic() - started:.0f} s. Next: make lab")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
