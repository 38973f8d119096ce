"""Where cells run: here by mode or for want of a token, else on Modal.

Tested with Modal's client against a local stand-in (standin.py).
"""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import modal
import modal.config
import pytest
from modal._image import SUPPORTED_PYTHON_SERIES
from standin import Standin

from utils import remote, tidewater
from utils.costs import prices as costs

pytestmark = pytest.mark.timeout(60)
TOKEN = ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET")
ARRAY = r"result\['losses'\]\[1\] is a numpy.ndarray"

# As in a notebook, the functions live in __main__, so that they travel pickled.
CELL = textwrap.dedent("""
    import time
    from pathlib import Path

    class Diverged(Exception):
        pass

    def double(config):
        config["x"] *= 2
        return config

    def slow_first(config):
        time.sleep(0.3 / (1 + config["x"]))
        return config["x"]

    def where(config):
        import os
        import utils.costs
        return {"pid": os.getpid(), "utils": utils.costs.__file__}

    def write(config):
        Path(config["folder"], "adapter.txt").write_text("weights")
        return {"wrote": "adapter.txt"}

    def diverge(config):
        raise Diverged(f"loss is {config}")

    def knows(config):
        raise KeyError("x")

    def nap(config):
        Path(config["folder"], f"began-{config['x']}").touch()
        time.sleep(config["seconds"])
        return config["x"]

    def fail_once(config):
        count = Path(config["folder"], "count")
        count.write_text(count.read_text() + "x" if count.exists() else "x")
        if count.read_text() == "x":
            raise ValueError("the first attempt")
        return len(count.read_text())

    def arrays(config):
        import numpy as np
        return {"losses": [1.0, np.ones(2)]}
""")


@pytest.fixture(autouse=True)
def no_token_of_the_developer(monkeypatch):
    for name in list(os.environ):
        if name.startswith("MODAL_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(modal.config, "_user_config", {})


@pytest.fixture
def token(monkeypatch):
    for name in TOKEN:
        monkeypatch.setenv(name, "t")


@pytest.fixture
def standin(no_token_of_the_developer):
    with Standin() as server:
        yield server
        assert not server.errors
        assert not server.unknown


@pytest.fixture
def cell():
    """The functions of a notebook's cell, on an app; name, options -> function."""
    space = {"__name__": "__main__"}
    exec(CELL, space)

    def function(name, app=None, **options):
        app = app or modal.App("beneath-the-api")
        image = remote.image()
        decorate = app.function(image=image, serialized=True, **options)
        return app, decorate(space[name])

    function.space = space
    return function


# The image


def test_a_pin_replaces_the_version_here_and_data_lies_beside_utils(monkeypatch):
    told, install, add = [], modal.Image.pip_install, modal.Image.add_local_dir

    def spy(image, *names, **more):
        told.extend(names)
        return install(image, *names, **more)

    def see(image, folder, there, **more):
        told.append((Path(folder).name, there))
        return add(image, folder, there, **more)

    monkeypatch.setattr(modal.Image, "pip_install", spy)
    monkeypatch.setattr(modal.Image, "add_local_dir", see)
    pins = ("vllm==0.31.0", "transformers==5.17.0")
    remote.image(pinned=pins, data=tidewater.DATA)
    assert {*pins} < {*told} and ("data", "/root/data") in told
    named = [pin.partition("==")[0] for pin in told if isinstance(pin, str)]
    assert len(named) == len({*named}) == len(remote.PACKAGES) + 1
    told.clear()
    remote.image()
    assert not {*pins} & {*told} and len(told) == len(remote.PACKAGES)


# Here


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_outside_modal_mode_a_function_runs_here(mode, token, cell, capsys):
    app, double = cell("double")
    with remote.session(app, mode) as run:
        assert not run.on_modal
        assert run.run(double, {"x": 2}) == {"x": 4}
        assert run.map(double, ({"x": x} for x in (1, 2))) == [{"x": 2}, {"x": 4}]
    assert capsys.readouterr().out == f'Runs here: MODE = "{mode}".\n'


def test_it_goes_to_modal_in_modal_mode_with_a_token(token):
    assert [remote.on_modal(mode) for mode in ("quick", "full", "modal")] == [0, 0, 1]


def test_without_a_token_it_does_not_go_to_modal():
    assert not remote.on_modal("modal")


def test_without_a_token_it_runs_here_and_says_how_to_get_one(cell, capsys):
    app, where = cell("where", gpu=remote.gpu("L40S"))
    with remote.session(app, "modal") as run:
        assert run.run(where, {})["pid"] == os.getpid()
    (line,) = capsys.readouterr().out.splitlines()
    for word in ("Runs here", "no Modal token", "modal setup", *TOKEN):
        assert word in line


def test_here_an_argument_stays_as_it_was_and_no_volume_is_missed(cell, recwarn):
    volume = modal.Volume.from_name("v", create_if_missing=True)
    app, double = cell("double", volumes={"/runs": volume})
    config = {"x": 1}
    with remote.session(app, "quick") as run:
        assert run.run(double, config) == {"x": 2}
    assert config == {"x": 1}  # on Modal the function could not change it either
    assert not recwarn.list


def test_an_unknown_mode_is_an_error():
    with pytest.raises(ValueError, match="'cloud' is not a mode"):
        remote.session(modal.App("a"), "cloud").__enter__()


@pytest.mark.parametrize("present", TOKEN)
@pytest.mark.parametrize("source", ["environment", "file"])
def test_half_a_token_is_an_error_that_names_the_other_half(
    present, source, monkeypatch
):
    (missing,) = set(TOKEN) - {present}
    if source == "environment":
        monkeypatch.setenv(present, "t")
    else:
        profile = {present.removeprefix("MODAL_").lower(): "t"}
        monkeypatch.setattr(modal.config, "_user_config", {"default": profile})
        monkeypatch.setattr(modal.config, "_profile", "default")
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        remote.session(modal.App("a"), "modal").__enter__()


@pytest.mark.parametrize(
    "value, place",
    [
        ({"a": [1, {2, 3}]}, r"result\['a'\]\[1\] is a builtins.set"),
        ({"a": {1: 2}}, r"a key of result\['a'\] is 1"),
        (object(), "result is a builtins.object"),
    ],
)
def test_a_result_that_is_no_plain_data_is_a_type_error(value, place):
    with pytest.raises(TypeError, match=place):
        remote.plain(value)


@pytest.mark.parametrize("value", [None, True, 1, 2.5, "a", [], {"a": [(1, "b")]}])
def test_plain_data_passes(value):
    assert remote.plain(value) is value
    json.dumps(value)


def test_arrays_fail_here_as_they_would_on_modal(cell):
    app, arrays = cell("arrays")
    with remote.session(app, "quick") as run, pytest.raises(TypeError, match=ARRAY):
        run.run(arrays, {})


# What is checked before anything starts


def test_an_unreachable_server_is_an_error_at_once(token, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("MODAL_SERVER_URL", f"{url},{url}")
        started = time.monotonic()
        with pytest.raises(ConnectionError, match=r"MODAL_SERVER_URL.*MODE"):
            remote.session(modal.App("a"), "modal").__enter__()
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("url, port", [("http://h", 80), ("https://h", 443)])
def test_the_port_follows_the_scheme(url, port, monkeypatch):
    asked = []

    def connect(address, timeout):
        asked.append(address)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ConnectionError):
        remote._check_reachable(f"{url},{url}:8000")
    assert asked == [("h", port), ("h", 8000)]


def test_behind_a_proxy_the_way_is_left_to_modals_client(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy")
    remote._check_reachable("https://unreachable.invalid")
    monkeypatch.setenv("MODAL_DISABLE_API_PROXY", "1")
    with pytest.raises(ConnectionError):
        remote._check_reachable("http://127.0.0.1:1")


@pytest.mark.parametrize(
    "name, given", [("L40S", "L40S"), ("h100:2", "H100:2"), ("H100!", "H100!")]
)
def test_a_gpu_that_modal_has(name, given):
    assert remote.gpu(name) == given


@pytest.mark.parametrize(
    "name, advice",
    [
        ("H1OO", "Did you mean 'H100'"),
        ("A10G", "Did you mean 'A10"),
        ("L40", "Did you mean 'L40S'"),
        ("", "only T4, L4"),
        ("H100:", "count, 1 to 8"),
        ("H100:two", "count, 1 to 8"),
        ("A10:8", "count, 1 to 4"),
        ("H100:0", "count, 1 to 8"),
    ],
)
def test_a_gpu_that_modal_lacks_is_an_error_at_once(name, advice):
    with pytest.raises(ValueError, match=advice):
        remote.gpu(name)


def test_pythons_that_modals_images_lack():
    assert set(remote.PYTHONS) <= set(SUPPORTED_PYTHON_SERIES["2025.06"])
    remote.check_python("3.12", "3.12")
    with pytest.raises(ValueError, match=r"not 3\.10"):
        remote.check_python("3.10", "3.10")
    with pytest.raises(ValueError, match=r"has Python 3\.12, and this is 3\.11"):
        remote.check_python("3.12", "3.11")


def test_a_python_without_images_still_runs_the_other_modes(token, cell, monkeypatch):
    app, double = cell("double")
    monkeypatch.setattr(remote, "PYTHONS", ("3.99",))
    with remote.session(app, "quick") as run:
        run.run(double, {"x": 1})
    with pytest.raises(ValueError, match=r"offer Python 3\.99"):
        remote.session(app, "modal").__enter__()


# The bill


def test_the_bill_is_price_times_limit_times_calls_times_attempts(cell):
    price = costs.load_prices().gpu("L40S")
    options = {"gpu": "L40S", "timeout": 1800, "max_containers": 2}
    _, once = cell("double", **options)
    line = remote.bill(once, 6)
    # The limit is per call: six calls on two containers cost as much as on six.
    assert f"at most ${price.price / 2 * 6:,.2f} of GPU time" in line
    assert "6 calls with 1 x L40S, at most 30 min each;" in line
    assert str(price.date) in line
    _, thrice = cell("double", retries=modal.Retries(max_retries=2), **options)
    line = remote.bill(thrice, 1)
    assert f"at most ${price.price / 2 * 3:,.2f} of GPU time" in line
    assert "1 call with 1 x L40S, 3 attempts of at most 30 min each;" in line


def test_the_bill_of_several_gpus_is_that_of_the_dearest(cell):
    prices = costs.load_prices()
    _, function = cell("double", gpu=["H100!:2", "A100-80GB"], timeout=3600)
    line = remote.bill(function, 1)
    assert f"${prices.gpu('H100').price * 2:,.2f}" in line
    assert "2 x H100! or 1 x A100-80GB" in line


@pytest.mark.parametrize("gpu", [None, "B200", ["L40S", "B200"]])
def test_without_a_known_price_there_is_no_number(gpu, cell):
    _, function = cell("double", gpu=gpu)
    line = remote.bill(function, 3)
    assert line.endswith("; no price known.")
    assert "$" not in line


def test_a_function_shows_what_it_was_given(cell):
    volume = modal.Volume.from_name("v", create_if_missing=True)
    given = {"gpu": remote.gpu("L40S"), "timeout": 3600, "volumes": {"/runs": volume}}
    info = cell("double", **given)[1].info()
    assert info.gpus == [("L40S", 1)]
    assert info.timeout == 3600
    assert list(info.volumes) == ["/runs"]


# On the stand-in


def test_on_modal_the_results_are_those_of_here_in_order(standin, cell, capsys):
    options = {"gpu": remote.gpu("L40S"), "timeout": 60}
    app, double = cell("double", **options)
    _, slow_first = cell("slow_first", app, **options)
    configs = [{"x": x} for x in range(3)]
    results = {}
    for mode in ("modal", "full"):
        with remote.session(app, mode) as run:
            assert run.on_modal == (mode == "modal")
            results[mode] = [
                run.run(double, {"x": 21}),
                run.run(double, {"x": 1}),
                run.map(slow_first, iter(configs)),
                run.map(slow_first, []),
            ]
    assert results["modal"] == results["full"] == [{"x": 42}, {"x": 2}, [0, 1, 2], []]
    bill, logs, second, here = capsys.readouterr().out.splitlines()
    assert bill.startswith("Function(double) runs on Modal: 1 call with 1 x L40S, ")
    assert "at most $0.03 of GPU time" in bill
    assert logs.startswith("Logs: https://modal.com/")
    assert second.startswith("Function(slow_first) runs on Modal: 3 calls")
    assert here == 'Runs here: MODE = "full".'
    assert standin.stopped == ["APP_DISCONNECT_REASON_ENTRYPOINT_COMPLETED"]


def test_a_function_runs_elsewhere_with_the_utils_of_its_image(standin, cell):
    app, where = cell("where")
    for _ in range(2):  # an app may have one session after the other
        with remote.session(app, "modal") as run:
            found = run.run(where, {})
        assert found["pid"] != os.getpid()
        assert Path(found["utils"]).is_relative_to(standin.folder)


def test_a_session_without_calls_starts_no_app(standin):
    with remote.session(modal.App("a"), "modal"):
        pass
    assert not standin.calls


def test_the_image_has_this_python_and_these_versions(standin, cell):
    app, double = cell("double")
    with remote.session(app, "modal") as run:
        run.run(double, {"x": 1})
    commands = " ".join(
        command
        for image in standin.images.values()
        for command in image.dockerfile_commands
    )
    assert f"FROM python:{remote.LOCAL}" in commands
    pins = dict(re.findall(r"([\w-]+)==([\w.+]+)", commands))
    assert set(pins) == set(remote.PACKAGES)
    assert "+" not in "".join(pins.values())
    assert pins["numpy"] == remote.version("numpy")


def test_a_function_writes_to_its_volume(standin, cell, tmp_path):
    folder = tmp_path / "runs"
    volume = modal.Volume.from_name("beneath-the-api", create_if_missing=True)
    app, write = cell("write", volumes={str(folder): volume})
    with remote.session(app, "modal") as run:
        assert run.run(write, {"folder": str(folder)}) == {"wrote": "adapter.txt"}
    kept = standin.volume("beneath-the-api") / "adapter.txt"
    assert kept.read_text() == "weights"


@pytest.mark.parametrize("mode", ["quick", "modal"])
def test_an_exception_keeps_its_type(mode, standin, cell):
    app, diverge = cell("diverge")
    _, knows = cell("knows", app)
    with remote.session(app, mode) as run:
        with pytest.raises(cell.space["Diverged"], match="loss is nan"):
            run.run(diverge, float("nan"))
        with pytest.raises(KeyError, match="x"):
            run.run(knows, {})


def test_arrays_are_a_type_error_on_modal(standin, cell):
    app, arrays = cell("arrays")
    with remote.session(app, "modal") as run, pytest.raises(TypeError, match=ARRAY):
        run.run(arrays, {})


def test_a_failed_attempt_is_tried_again(standin, cell, tmp_path):
    app, fail_once = cell("fail_once", retries=1)
    with remote.session(app, "modal") as run:
        assert run.run(fail_once, {"folder": str(tmp_path)}) == 2


def test_one_failure_cancels_the_other_calls(standin, cell, tmp_path):
    app, nap = cell("nap")
    begun = {"folder": str(tmp_path), "x": 0, "seconds": 0}
    with remote.session(app, "modal") as run:
        with pytest.raises(KeyError):
            run.map(nap, [{"folder": str(tmp_path)}, {**begun, "seconds": 50}])
        assert len(standin.cancelled) == 2
        assert run.run(nap, begun) == 0  # the app goes on


def test_past_its_time_limit_a_call_is_stopped(standin, cell, tmp_path):
    app, nap = cell("nap", timeout=1)
    late = pytest.raises(modal.exception.FunctionTimeoutError)
    with remote.session(app, "modal") as run, late:
        run.run(nap, {"folder": str(tmp_path), "x": 0, "seconds": 50})


@pytest.mark.timeout(30)  # well before the function would end of itself
def test_ctrl_c_stops_what_runs_on_modal(standin, cell, tmp_path):
    app, nap = cell("nap", timeout=3600)
    nights = [{"folder": str(tmp_path), "x": x, "seconds": 50} for x in range(2)]

    def interrupt():
        while not (tmp_path / "began-0").exists():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), remote.session(app, "modal") as run:
        threading.Thread(target=interrupt).start()
        run.map(nap, nights)
    assert len(standin.cancelled) == 2
    assert standin.stopped == ["APP_DISCONNECT_REASON_KEYBOARD_INTERRUPT"]
    while standin.containers:  # or the test's time limit ends it
        time.sleep(0.05)
    assert not (tmp_path / "began-1").exists()


def test_plain_modal_works_on_the_stand_in_too(standin, cell):
    app, slow_first = cell("slow_first")
    with app.run():
        assert slow_first.remote({"x": 7}) == 7
        assert list(slow_first.map([{"x": x} for x in range(3)])) == [0, 1, 2]


# In a notebook

NOTEBOOK = """
import modal
from utils import remote

MINUTES = 60
app = modal.App("beneath-the-api")
volume = modal.Volume.from_name("beneath-the-api", create_if_missing=True)

@app.function(
    image=remote.image(),
    gpu=remote.gpu("L40S"),
    volumes={FOLDER: volume},
    timeout=60 * MINUTES,
    max_containers=4,
    retries=modal.Retries(max_retries=1),
)
def train(config: dict) -> dict:
    from utils import costs

    with open(f"{FOLDER}/{config['x']}", "w") as file:
        file.write("weights")
    return {"x": config["x"], "per hour": costs.call_cost.__module__}
---
with remote.session(app, mode=MODE) as run:
    result = run.run(train, {"x": 0})
    results = run.map(train, [{"x": x} for x in range(1, 3)])
---
print(result, *results)
"""
TOLD = " ".join(str({"x": x, "per hour": "utils.costs"}) for x in range(3))


def test_in_a_notebook(standin, tmp_path, monkeypatch):
    """Where functions are pickled of themselves, and an event loop runs."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    private = {"KernelManager": {"transport": "ipc", "ip": str(tmp_path / "k")}}
    folder = tmp_path / "runs"
    setting = f'MODE, FOLDER = "modal", {str(folder)!r}\n'
    sources = [setting, *NOTEBOOK.split("---\n")]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(
        notebook, timeout=50, kernel_name="python3", config=Config(private)
    ).execute()
    outputs = list(itertools.chain(*(cell.outputs for cell in notebook.cells)))
    assert {output.get("name") for output in outputs} == {"stdout"}
    told = "".join(output.text for output in outputs)
    assert "at most $3.90 of GPU time" in told
    assert "at most $7.80 of GPU time" in told
    assert "\x1b" not in told
    assert told.endswith(f"{TOLD}\n")
    kept = standin.volume("beneath-the-api")
    assert sorted(path.name for path in kept.iterdir()) == ["0", "1", "2"]


def test_it_is_imported_without_torch_and_without_a_token(tmp_path):
    code = "import sys, utils.remote; print('torch' in sys.modules)"
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
