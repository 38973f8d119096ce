"""Where heavy functions run: here, or on a Modal GPU where there is a token.

    train_job = remote.job(app, cpu.train_sft, "L40S", calls=3, minutes=10)
    with remote.session(app, MODE) as jobs:
        result = jobs.run(train_job, config)            # on Modal, or here
        results = jobs.map(train_job, [config, other])  # all at once on Modal

A call that may cost more than is left of BUDGET_USD (in the environment; 5) is refused;
runs/modal/spent.jsonl keeps count. Close the notebook, and calls end; run them again,
and trainings go on from their last checkpoints. Nothing else of `utils` is imported.
"""

import contextlib
import copy
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import modal
from modal.config import config

# What training needs, and what the utils import that it calls.
PACKAGES = (
    *("torch", "transformers", "trl", "peft", "datasets", "accelerate", "gguf"),
    *("numpy", "scipy", "pandas", "jinja2", "pydantic", "tqdm", "sqlglot", "rapidfuzz"),
)
# For jobs with vLLM, which wants an older transformers, and numpy, than the laptop.
VLLM = ("vllm==0.31.0", "transformers==5.17.0", "numpy==2.3.5")
LOCAL = ".".join(platform.python_version_tuple()[:2])
ROOT = Path(__file__).resolve().parents[1]
PRICES, LEDGER = ROOT / "data" / "prices.json", ROOT / "runs" / "modal" / "spent.jsonl"
VOLUME = "beneath-the-api"  # at /runs in each container: checkpoints, adapters, weights
# Weights are downloaded once. No image has a compiler for FlashInfer's sampler.
ENV = {"HF_HOME": "/runs/huggingface", "BENEATH_CACHE": "/runs/weights"}
ENV |= {"VLLM_CACHE_ROOT": "/runs/vllm", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
CORES, GIB = 4, 32  # of a container
START = 60  # seconds in which a container starts, and costs: an estimate
NO_TOKEN = (
    "no Modal token; `modal setup` (in .venv/bin) gets one, or set MODAL_TOKEN_ID and "
    "MODAL_TOKEN_SECRET; then restart the kernel"
)


def image(*packages: str, pinned: Sequence[str] = ()) -> modal.Image:
    """Describe a container like this environment: its Python, packages, utils, data.

    All `packages` get the versions that they have here, for functions of a notebook
    travel pickled; `pinned` ("name==version") those that differ, or are not here.
    """
    other = {pin.partition("==")[0] for pin in pinned}
    names = [name for name in (*PACKAGES, *packages) if name not in other]
    # A build for one kind of machine ("+cpu") has no place on another.
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in names]
    plain = modal.Image.debian_slim(python_version=LOCAL)
    plain = plain.uv_pip_install(*pins, *pinned).env(ENV)
    plain = plain.add_local_python_source("utils")
    # Files of utils lie in /root/utils and look for their data beside that.
    return plain.add_local_dir(ROOT / "data", "/root/data", ignore=["runs/**"])


def price(gpu: str) -> float:
    """Return USD an hour of a container; ValueError for a GPU without a price."""
    known = json.loads(PRICES.read_text("utf-8"))["compute"]
    second = CORES * known["cpu_core_second"]["price"]
    second += GIB * known["memory_gib_second"]["price"]
    kind, _, count = gpu.replace("!", "").partition(":")
    listed = [name for name, one in known.items() if one["unit"] == "usd_per_hour"]
    if kind not in listed or not (count or "1").isdigit():
        listed = ", ".join(listed)
        raise ValueError(f"GPU {gpu!r} has no price: choose {listed}, two by 'L4:2'")
    return known[kind]["price"] * int(count or 1) + 3600 * second


def left() -> float:
    """Return what is left of BUDGET_USD, less all that the ledger counts."""
    budget = os.environ.get("BUDGET_USD", "5")
    if not budget.replace(".", "", 1).isdigit():
        raise ValueError(f"BUDGET_USD = {budget!r} is no number of dollars, such as 5")
    lines = LEDGER.read_text().splitlines() if LEDGER.exists() else []
    return float(budget) - sum(json.loads(line)["usd"] for line in lines)


def charge(what: str, usd: float) -> None:
    """Count in the ledger what something costs."""
    LEDGER.parent.mkdir(parents=True, exist_ok=True)
    with LEDGER.open("a") as ledger:
        print(json.dumps({"what": what, "usd": round(usd, 4)}), file=ledger)


@dataclass(frozen=True)
class Job:
    """What runs on Modal, and what its calls cost: `likely` and `most`, in USD."""

    name: str
    gpu: str
    calls: int
    minutes: float  # that a call probably takes; its limit is twice that
    app: modal.App | None = None
    function: modal.Function | None = None
    local: Callable | None = None  # the same function, to run here

    def usd(self, minutes: float) -> float:
        """Return the price of the calls if each takes so long, and its start."""
        return self.calls * price(self.gpu) * (60 * minutes + START) / 3600

    likely = property(lambda self: self.usd(self.minutes))
    most = property(lambda self: self.usd(2 * self.minutes))

    def __str__(self) -> str:
        calls = f"{self.name}: {self.calls} x {self.minutes:g} minutes of {self.gpu}"
        return f"{calls}, probably {self.likely:.2f} USD, at most {self.most:.2f}"

    def reserve(self) -> None:
        """Take what the calls may cost off the budget; RuntimeError if less is left."""
        print(self)
        if self.most > left():
            raise RuntimeError(
                f"{self}: BUDGET_USD, less what {LEDGER} counts, leaves {left():.2f}; "
                "set it to more to go on"
            )
        charge(self.name, self.most)


_made: dict[tuple[modal.App, str], Job] = {}  # a cell may be run twice


def job(
    app: modal.App,
    function: Callable[[Any], Any],
    gpu: str,
    *,
    calls: int,
    minutes: float,
    container: modal.Image | None = None,
) -> Job:
    """Put a function of one argument on an app, with a GPU and the Volume at /runs.

    A notebook expects so many calls, of so many minutes; twice that is their limit.
    """
    price(gpu)  # raises where there is none
    there = app.function(
        name=function.__name__,
        image=container or image(),
        gpu=gpu,
        cpu=CORES,
        memory=1024 * GIB,
        volumes={"/runs": modal.Volume.from_name(VOLUME, create_if_missing=True)},
        timeout=int(120 * minutes),
        # No retries: what Modal itself interrupts it starts again without.
        single_use_containers=True,  # or a job inherits what another left on a GPU
        serialized=True,
    )(lambda argument: run_there(function, argument))
    made = Job(function.__name__, gpu, calls, minutes, app, there, function)
    _made[app, made.name] = made
    return made


def run_there(function: Callable[[Any], Any], argument: Any) -> tuple[Any, float, dict]:
    """Call a function in a container: its result, its seconds, and the machine."""
    volume, started = modal.Volume.from_name(VOLUME), time.monotonic()
    volume.reload()
    try:
        result = function(argument)
    except BaseException:
        # A commit that is refused, for open files say, must not hide what went wrong.
        with contextlib.suppress(Exception):
            volume.commit()
        raise
    volume.commit()
    torch = sys.modules.get("torch")  # imported by the function, if at all
    gpu = torch and torch.cuda.is_available() and torch.cuda.get_device_name()
    where = {"cpu": "a container on Modal", "cores": CORES, "gpu": gpu or None}
    return result, time.monotonic() - started, where


def on_modal(mode: str) -> bool:
    """Say whether work goes to Modal: in modal mode, with a token (not half of one)."""
    if mode != "modal":
        return False
    names = ("token_id", "token_secret")
    missing = [f"MODAL_{name.upper()}" for name in names if not config[name]]
    if len(missing) == 1:
        why = f"{missing[0]} is missing, in the environment and in ~/.modal.toml"
        raise ValueError(f"half a Modal token: {why}; `modal setup` writes both")
    return not missing or bool(config["oauth_refresh_token"])


class Session:
    """Runs an app's jobs where a mode says: here or, given a token, on Modal.

    Either way with a copy of its argument. On Modal the app starts at the first call
    and stops with the block. `seconds` and `machine` tell how long, and where, it ran.
    """

    def __init__(self, app: modal.App, mode: str) -> None:
        self.on_modal, self.seconds, self.machine = on_modal(mode), 0.0, {}
        self._app, self._stack, self._started = app, contextlib.ExitStack(), False
        why = NO_TOKEN if mode == "modal" else f'MODE = "{mode}"'
        print("" if self.on_modal else f"Runs here: {why}.\n", end="")

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def run(self, job: Job, argument: Any) -> Any:
        """Call a function with one argument; what it raises is raised here."""
        return self.map(job, [argument])[0]

    def map(self, job: Job, arguments: Iterable[Any]) -> list[Any]:
        """Call a function with each argument; results in the order of the arguments."""
        if not (arguments := list(arguments)):
            return []
        if self.on_modal:
            return self._remote(job, arguments)
        local = getattr(job, "local", job)
        return [local(copy.deepcopy(argument)) for argument in arguments]

    def _remote(self, job: Job, arguments: list[Any]) -> list[Any]:
        if not isinstance(job, Job):
            raise TypeError(f"{job} is no job: make it by remote.job(app, function)")
        if not self._started:
            costs = [(b.likely, b.most) for b in _made.values() if b.app is self._app]
            likely, most = map(sum, zip(*costs, strict=True))
            print(f"All jobs here: probably {likely:.2f} USD, at most {most:.2f}")
        job = replace(job, calls=len(arguments))
        job.reserve()  # all of it, until its end is known: this process may be killed
        calls, done, started = [], [], time.monotonic()
        try:
            if not self._started:
                self._stack.enter_context(self._app.run())
                self._started = True
                print(f"Logs: {self._app.get_dashboard_url()}; keep this machine awake")
            # list(function.map(...)) fails in a notebook, where an event loop runs.
            for argument in arguments:
                calls.append(job.function.spawn(argument))
            done = modal.FunctionCall.gather(*calls)
        except BaseException:
            # Ctrl-C, or one call failed: the others would go on, and cost.
            for call in calls:
                with contextlib.suppress(Exception):
                    call.cancel(terminate_containers=True)
            raise
        finally:
            waited = len(calls) * (time.monotonic() - started)
            took = sum(seconds for _, seconds, _ in done) or waited
            self.seconds += took
            spent = job.usd(took / 60 / job.calls) if calls else 0
            charge(f"{job.name}: {took:.0f} s", spent - job.most)
            print(f"{job.name}: {took / 60:.1f} minutes, about {spent:.2f} USD")
        self.machine = done[-1][2]
        return [result for result, _, _ in done]


session = Session
