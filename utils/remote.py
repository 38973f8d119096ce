"""Where heavy cells run: here, or on a Modal GPU where there is a token.

A notebook shows plain Modal, an app and its functions, and leaves one choice to this
module, which imports nothing else of `utils`:

    with remote.session(app, MODE) as jobs:
        result = jobs.run(train_sft, config)            # train_sft.remote, or .local
        results = jobs.map(train_sft, [config, other])  # all at once on Modal
"""

import contextlib
import copy
import json
import platform
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import modal
from modal.config import config

# What training needs, and what the utils import that it calls.
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "gguf",
    "numpy",
    "scipy",
    "pandas",
    "jinja2",
    "pydantic",
    "tqdm",
)
LOCAL = ".".join(platform.python_version_tuple()[:2])
PRICES = Path(__file__).resolve().parents[1] / "data" / "prices.json"
NO_TOKEN = (
    "no Modal token; `modal setup` gets one, or set MODAL_TOKEN_ID and "
    "MODAL_TOKEN_SECRET"
)


def image(
    *packages: str, pinned: Sequence[str] = (), data: Path | None = None
) -> modal.Image:
    """Describe a container like this environment: its Python, packages and utils.

    Args:
        *packages: more of the packages installed here. All get the versions that they
            have here, for functions of a notebook travel pickled.
        pinned: "name==version" of what is not installed here, or must differ there.
        data: a folder that `utils` finds beside itself, less what runs left in it.

    """
    other = {pin.partition("==")[0] for pin in pinned}
    names = [name for name in (*PACKAGES, *packages) if name not in other]
    # A build for one kind of machine ("+cpu") has no place on another.
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in names]
    plain = modal.Image.debian_slim(python_version=LOCAL).pip_install(*pins, *pinned)
    plain = plain.add_local_python_source("utils")
    if data is None:
        return plain
    # Files of utils lie in /root/utils and look for their data beside that.
    return plain.add_local_dir(data, "/root/data", ignore=["runs/**"])


def estimate_cost(function: modal.Function, calls: int) -> str:
    """Say in one line what `calls` calls of a function cost at most on Modal.

    That is the GPU's price times the time limit, which is per call, times calls and
    attempts; however many run at once. Prices are those of data/prices.json.
    """
    info = function.info()
    attempts = 1 + (info.max_retries or 0)
    gpus = " or ".join(f"{n} x {kind}" for kind, n in info.gpus) or "no GPU"
    asked = f"{calls} call{'s' * (calls != 1)} with {gpus}, "
    asked += f"{attempts} attempts of " * (attempts > 1)
    asked += f"at most {info.timeout / 60:g} min each"
    known = json.loads(PRICES.read_text())["compute"] if PRICES.exists() else {}
    found = [(known.get(kind.strip("!+")), n) for kind, n in info.gpus]
    if not found or not info.timeout or not all(price for price, _ in found):
        return f"{function} runs on Modal: {asked}; no price known."
    per_hour = max(price["price"] * n for price, n in found)
    usd = per_hour * info.timeout / 3600 * calls * attempts
    return (
        f"{function} runs on Modal: {asked}; at most ${usd:,.2f} of GPU time at prices "
        f"of {found[0][0]['date']}. Start-up, idle time, CPU and memory come on top."
    )


class Session:
    """Runs an app's functions here, or on Modal if given a stack to start the app on.

    Either way a function gets a copy of its argument.
    """

    def __init__(
        self, app: modal.App, stack: contextlib.ExitStack | None = None
    ) -> None:
        self.on_modal = stack is not None
        self._app, self._stack = app, stack
        self._started = False

    def run(self, function: modal.Function, argument: Any) -> Any:
        """Call a function with one argument; what it raises is raised here."""
        return self.map(function, [argument])[0]

    def map(self, function: modal.Function, arguments: Iterable[Any]) -> list[Any]:
        """Call a function with each argument; results in the order of the arguments."""
        if not (arguments := list(arguments)):
            return []
        run = self._remote if self.on_modal else self._local
        return list(run(function, arguments))

    def _local(self, function: modal.Function, arguments: list[Any]) -> Iterator[Any]:
        call = getattr(function, "local", function)
        for argument in arguments:
            with warnings.catch_warnings():
                # That no Volume is mounted here is what running here means.
                warnings.filterwarnings("ignore", ".*is executing locally")
                yield call(copy.deepcopy(argument))

    def _remote(self, function: modal.Function, arguments: list[Any]) -> list[Any]:
        print(estimate_cost(function, len(arguments)))
        if not self._started:
            self._stack.enter_context(self._app.run())
            self._started = True
            print(f"Logs: {self._app.get_dashboard_url()}")
        calls = []
        try:
            # list(function.map(...)) fails in a notebook, where an event loop runs.
            for argument in arguments:
                calls.append(function.spawn(argument))
            return modal.FunctionCall.gather(*calls)
        except BaseException:
            # Ctrl-C, or one call failed: the others would go on, and cost.
            for call in calls:
                with contextlib.suppress(Exception):
                    call.cancel(terminate_containers=True)
            raise


def on_modal(mode: str) -> bool:
    """Say whether a mode's heavy work goes to Modal: in modal mode with a token.

    Raises:
        ValueError: half a token.

    """
    if mode != "modal":
        return False
    names = ("token_id", "token_secret")
    missing = [f"MODAL_{name.upper()}" for name in names if not config[name]]
    if len(missing) == 1:
        raise ValueError(
            f"half a Modal token: {missing[0]} is missing, in the environment and in "
            "~/.modal.toml. Set it, or let `modal setup` write both."
        )
    return not missing or bool(config["oauth_refresh_token"])


@contextlib.contextmanager
def session(app: modal.App, mode: str) -> Iterator[Session]:
    """Choose where a mode's heavy work runs, and say where that is.

    On Modal the app starts at the first call, once its cost is told, and stops with
    the block, whatever still runs.

    Raises:
        ValueError: half a token.

    """
    if not on_modal(mode):
        why = NO_TOKEN if mode == "modal" else f'MODE = "{mode}"'
        print(f"Runs here: {why}.")
        yield Session(app)
        return
    stack = contextlib.ExitStack()
    try:
        yield Session(app, stack)
    except BaseException:
        stack.__exit__(*sys.exc_info())  # which would swallow a KeyboardInterrupt
        raise
    stack.close()
