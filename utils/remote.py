"""Where heavy cells run: here, or on Modal where there is a token.

A notebook shows plain Modal, an app and its functions, and leaves one choice to this
module:

    with remote.session(app, MODE) as run:
        result = run.run(train_sft, config)             # train_sft.remote, or .local
        results = run.map(train_sft, [config, other])   # all at once on Modal

What can go wrong after an hour on a GPU is checked before the first call.
"""

import contextlib
import copy
import difflib
import platform
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import modal
from modal.config import config

from utils import costs
from utils.course import check_mode

# What training needs, and what the utils import that it calls.
PACKAGES = tuple(
    "torch transformers trl peft datasets accelerate gguf numpy scipy statsmodels "  # noqa: SIM905
    "pandas jinja2 matplotlib ipython sqlglot rapidfuzz phonenumbers tqdm".split()
)
# Modal's names (modal.com/docs/guide/gpu); not all have a price in data/prices.json.
GPUS = tuple(
    "T4 L4 A10 L40S A100 A100-40GB A100-80GB RTX-PRO-6000 H100 H100! H200 B200 "  # noqa: SIM905
    "B200+".split()
)
PYTHONS = ("3.11", "3.12", "3.13", "3.14", "3.15")  # what Modal's images offer
LOCAL = ".".join(platform.python_version_tuple()[:2])
CONNECT = 4.0  # seconds; Modal's own client tries for a minute
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


def gpu(name: str) -> str:
    """Return the name of a GPU that Modal has: "L40S", or "H100:2" for two.

    Raises:
        ValueError: Modal lacks it, which its client would only tell at the first call.

    """
    kind, colon, count = name.upper().partition(":")
    if kind not in GPUS:
        close = difflib.get_close_matches(kind, GPUS, n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Modal has no GPU {name!r}, only {', '.join(GPUS)}.{hint}")
    most = 4 if kind == "A10" else 8
    if colon and not (count.isdecimal() and 1 <= int(count) <= most):
        raise ValueError(f"{name!r}: after the colon comes a count, 1 to {most}")
    return name.upper()


def check_python(image: str = LOCAL, here: str = LOCAL) -> None:
    """Check that an image can have this Python; raises ValueError."""
    if image not in PYTHONS:
        raise ValueError(
            f"Modal's images offer Python {', '.join(PYTHONS)}, not {image}. Set the "
            'course up with one of them, or run it here: MODE = "full".'
        )
    if image != here:
        raise ValueError(
            f"the image has Python {image}, and this is {here}: a notebook's functions "
            "travel pickled, so both need the same. remote.image() sees to that."
        )


def bill(function: modal.Function, calls: int) -> str:
    """Say in one line what `calls` calls of a function cost at most on Modal.

    That is the GPU's price times the time limit, which is per call, times calls and
    attempts; however many run at once.
    """
    info, prices = function.info(), costs.load_prices()
    attempts = 1 + (info.max_retries or 0)
    gpus = " or ".join(f"{n} x {kind}" for kind, n in info.gpus) or "no GPU"
    asked = f"{calls} call{'s' * (calls != 1)} with {gpus}, "
    asked += f"{attempts} attempts of " * (attempts > 1)
    asked += f"at most {info.timeout / 60:g} min each"
    try:
        found = [(prices.gpu(kind.strip("!+")), n) for kind, n in info.gpus]
    except costs.UnknownPrice:
        found = []
    if not found or not info.timeout:
        return f"{function} runs on Modal: {asked}; no price known."
    per_hour = max(price.price * n for price, n in found)
    usd = per_hour * info.timeout / 3600 * calls * attempts
    return (
        f"{function} runs on Modal: {asked}; at most ${usd:,.2f} of GPU time at prices "
        f"of {found[0][0].date}. Start-up, idle time, CPU and memory come on top."
    )


class Session:
    """Runs an app's functions here, or on Modal if given a stack to start the app on.

    Either way a function gets a copy of its argument and returns plain data.
    """

    def __init__(
        self, app: modal.App, stack: contextlib.ExitStack | None = None
    ) -> None:
        self.on_modal = stack is not None
        self._app, self._stack = app, stack
        self._started, self._told = False, set()

    def run(self, function: modal.Function, argument: Any) -> Any:
        """Call a function with one argument; what it raises is raised here."""
        return self.map(function, [argument])[0]

    def map(self, function: modal.Function, arguments: Iterable[Any]) -> list[Any]:
        """Call a function with each argument; results in the order of the arguments.

        Raises:
            TypeError: a result holds more than plain data; the message says where.

        """
        if arguments := list(arguments):
            run = self._remote if self.on_modal else self._local
            return [plain(result) for result in run(function, arguments)]
        return []

    def _local(self, function: modal.Function, arguments: list[Any]) -> Iterator[Any]:
        for argument in arguments:
            with warnings.catch_warnings():
                # That no Volume is mounted here is what running here means.
                warnings.filterwarnings("ignore", ".*is executing locally")
                result = function.local(copy.deepcopy(argument))
            yield result

    def _remote(self, function: modal.Function, arguments: list[Any]) -> list[Any]:
        case = (function, len(arguments))
        if case not in self._told:
            print(bill(*case))
            self._told.add(case)
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
    """Say whether a mode's heavy work would go to Modal: in modal mode with a token.

    Raises:
        ValueError: an unknown mode, or half a token.

    """
    return check_mode(mode) == "modal" and _has_token()


@contextlib.contextmanager
def session(app: modal.App, mode: str) -> Iterator[Session]:
    """Choose where a mode's heavy work runs, and say where that is.

    On Modal the app starts at the first call, once its bill is told, and stops with
    the block, whatever still runs.

    Raises:
        ValueError: an unknown mode, half a token, or a Python that Modal lacks.
        ConnectionError: Modal cannot be reached.

    """
    if not on_modal(mode):
        why = NO_TOKEN if mode == "modal" else f'MODE = "{mode}"'
        print(f"Runs here: {why}.")
        yield Session(app)
        return
    check_python()
    _check_reachable(config["server_url"])
    stack = contextlib.ExitStack()
    try:
        yield Session(app, stack)
    except BaseException:
        stack.__exit__(*sys.exc_info())  # which would swallow a KeyboardInterrupt
        raise
    stack.close()


def _has_token() -> bool:
    names = ("token_id", "token_secret")
    missing = [f"MODAL_{name.upper()}" for name in names if not config[name]]
    if len(missing) == 1:
        raise ValueError(
            f"half a Modal token: {missing[0]} is missing, in the environment and in "
            "~/.modal.toml. Set it, or let `modal setup` write both."
        )
    return not missing or bool(config["oauth_refresh_token"])


def _check_reachable(urls: str) -> None:
    if not config["disable_api_proxy"] and {"https", "all"} & {
        *getproxies_environment()
    }:
        return  # the way is for Modal's client to find, which knows proxies
    for url in map(urlsplit, urls.split(",")):
        port = url.port or {"http": 80}.get(url.scheme, 443)
        with contextlib.suppress(OSError):
            socket.create_connection((url.hostname, port), CONNECT).close()
            return
    raise ConnectionError(
        f"cannot reach Modal at {urls}. Check the network, a firewall, or "
        'MODAL_SERVER_URL if you set it. MODE = "full" runs everything here.'
    )


def plain(value: Any, where: str = "result") -> Any:
    """Return the value if JSON can hold it as it is; TypeError says where it cannot."""
    if isinstance(value, dict):
        for key, one in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of {where} is {key!r}; keys must be text")
            plain(one, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            plain(one, f"{where}[{number}]")
    elif not isinstance(value, str | int | float | None):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(
            f"{where} is a {kind}. Return plain data: dictionaries, lists, text and "
            "numbers; files belong on the Volume."
        )
    return value
