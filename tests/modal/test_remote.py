"""Where cells run: here by mode or for want of a token, else on Modal.

Tested with Modal's client against a local stand-in (standin.py).
"""

import os
import re
import signal
import textwrap
import threading
import time
from pathlib import Path

import modal
import modal.config
import nbformat
import pytest
from nbclient import NotebookClient
from standin import Standin

from utils import remote
from utils.costs import prices

pytestmark = [pytest.mark.modal, pytest.mark.timeout(600)]
TOKEN = ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET")

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

    def where(_):
        import os
        import utils.costs
        here = Path(utils.costs.__file__).parents[2]
        found = sorted(str(p.relative_to(here)) for p in (here / "data").rglob("*"))
        return {"pid": os.getpid(), "root": str(here), "data": found}

    def nap(config):
        if config["seconds"] is None:
            raise Diverged("loss is nan")
        Path(config["folder"], f"began-{config['x']}").touch()
        time.sleep(config["seconds"])
        return config["x"]
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

    def function(name, app=None, image=None, **options):
        app = app or modal.App("beneath-the-api")
        image = image or remote.image()
        return app, app.function(image=image, serialized=True, **options)(space[name])

    function.space = space
    return function


# Here


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_outside_modal_mode_a_function_runs_here(mode, token, cell, capsys, recwarn):
    volume = modal.Volume.from_name("v", create_if_missing=True)
    app, double = cell("double", volumes={"/runs": volume})
    config = {"x": 2}
    assert not remote.on_modal(mode)
    with remote.session(app, mode) as jobs:
        assert jobs.run(double, config) == {"x": 4}
        assert jobs.map(double, ({"x": x} for x in (1, 2))) == [{"x": 2}, {"x": 4}]
    assert config == {"x": 2}  # on Modal the function could not change it either
    assert capsys.readouterr().out == f'Runs here: MODE = "{mode}".\n'
    assert not [w for w in recwarn if "locally" in str(w.message)]  # or without Volume


def test_without_a_token_it_runs_here_and_says_how_to_get_one(cell, capsys):
    app, where = cell("where", gpu="L40S")
    assert not remote.on_modal("modal")
    with remote.session(app, "modal") as jobs:
        assert jobs.run(where, {})["pid"] == os.getpid()
    (line,) = capsys.readouterr().out.splitlines()
    for word in ("Runs here", "no Modal token", "modal setup", *TOKEN):
        assert word in line


@pytest.mark.parametrize("present", TOKEN)
def test_half_a_token_is_an_error_that_names_the_other_half(present, monkeypatch):
    (missing,) = set(TOKEN) - {present}
    monkeypatch.setenv(present, "t")
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        remote.session(modal.App("a"), "modal").__enter__()


# What it costs at most


def test_the_cost_is_price_times_limit_times_calls_times_attempts(cell, monkeypatch):
    price = prices.load_prices().gpu("L40S")
    options = {"gpu": "L40S", "timeout": 1800, "max_containers": 2}
    _, once = cell("double", **options)
    line = remote.estimate_cost(once, 6)
    # The limit is per call: six calls on two containers cost as much as on six.
    assert f"at most ${price.price / 2 * 6:,.2f} of GPU time" in line
    assert "6 calls with 1 x L40S, at most 30 min each;" in line
    assert str(price.date) in line
    _, thrice = cell("double", retries=modal.Retries(max_retries=2), **options)
    line = remote.estimate_cost(thrice, 1)
    assert f"at most ${price.price / 2 * 3:,.2f} of GPU time" in line
    assert "1 call with 1 x L40S, 3 attempts of at most 30 min each;" in line
    monkeypatch.setattr(remote, "PRICES", Path("nowhere"))  # remote.py copied alone
    assert remote.estimate_cost(once, 6).endswith("each; no price known.")


def test_the_cost_of_several_gpus_is_that_of_the_dearest_if_all_are_known(cell):
    price = prices.load_prices().gpu("H100").price
    _, function = cell("double", gpu=["H100!:2", "A100-80GB"], timeout=3600)
    line = remote.estimate_cost(function, 1)
    assert f"${price * 2:,.2f}" in line and "2 x H100! or 1 x A100-80GB" in line
    for gpu in (None, "B200", ["L40S", "B200"]):
        line = remote.estimate_cost(cell("double", gpu=gpu)[1], 3)
        assert line.endswith("; no price known.") and "$" not in line


# On the stand-in


def test_on_modal_the_results_are_those_of_here_in_order(standin, cell, capsys):
    app, double = cell("double", gpu="L40S", timeout=60)
    _, slow_first = cell("slow_first", app, gpu="L40S", timeout=60)
    configs = [{"x": x} for x in range(3)]
    with remote.session(app, "modal") as jobs:
        assert jobs.map(double, []) == [] and not standin.containers  # nor an app
        assert jobs.run(double, {"x": 21}) == {"x": 42}
        assert jobs.map(slow_first, configs) == [0, 1, 2]
    cost, logs, second = capsys.readouterr().out.splitlines()
    assert cost.startswith("Function(double) runs on Modal: 1 call with 1 x L40S, ")
    assert "at most $0.03 of GPU time" in cost
    assert logs.startswith("Logs: https://modal.com/")
    assert second.startswith("Function(slow_first) runs on Modal: 3 calls")
    assert standin.stopped == ["APP_DISCONNECT_REASON_ENTRYPOINT_COMPLETED"]


NOTEBOOK = """
import modal
from utils import remote

app = modal.App("beneath-the-api")

@app.function(image=remote.image(), gpu="L40S", timeout=3600)
def double(config):
    return {"x": 2 * config["x"]}
---
for _ in range(2):  # an app may have several sessions
    with remote.session(app, "modal") as jobs:
        results = jobs.map(double, [{"x": x} for x in range(3)])
print(results)
"""


def test_in_a_notebook(standin, monkeypatch):
    """Where functions are pickled of themselves, and an event loop runs."""
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    cells = [nbformat.v4.new_code_cell(source) for source in NOTEBOOK.split("---\n")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=500, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert {output.get("name") for output in outputs} == {"stdout"}  # no warnings
    told = "".join(output.text for output in outputs)
    assert told.count("at most $5.85 of GPU time") == 2 and "\x1b" not in told
    assert told.endswith(f"{[{'x': 0}, {'x': 2}, {'x': 4}]}\n")


def test_a_container_is_like_this_environment_but_for_pins(standin, cell, tmp_path):
    (tmp_path / "runs").mkdir()
    for name in ("a.json", "runs/left-over"):
        (tmp_path / name).touch()
    pins = ("vllm==0.31.0", "transformers==5.17.0")
    image = remote.image("simpy", pinned=pins, data=tmp_path)
    app, where = cell("where", image=image)
    with remote.session(app, "modal") as jobs:
        found = jobs.run(where, {})
    assert found["pid"] != os.getpid()
    assert Path(found["root"]).is_relative_to(standin.folder)
    assert found["data"] == ["data/a.json"]
    images = standin.images.values()
    commands = " ".join(line for one in images for line in one.dockerfile_commands)
    assert f"FROM python:{remote.LOCAL}" in commands
    pinned = dict(re.findall(r"([\w-]+)==([\w.+]+)", commands))
    assert set(pinned) == {*remote.PACKAGES, "simpy", "vllm"}
    assert (pinned["transformers"], pinned["vllm"]) == ("5.17.0", "0.31.0")
    assert pinned["numpy"] == remote.version("numpy")
    assert "+" not in "".join(pinned.values())


def test_one_failure_keeps_its_type_and_cancels_the_other_calls(
    standin, cell, tmp_path
):
    app, nap = cell("nap")
    begun = {"folder": str(tmp_path), "x": 0, "seconds": 0}
    diverged = pytest.raises(cell.space["Diverged"], match="loss is nan")
    with remote.session(app, "modal") as jobs:
        with diverged:
            jobs.map(nap, [begun | {"seconds": None}, begun | {"seconds": 5000}])
        assert len(standin.cancelled) == 2
        assert jobs.run(nap, begun) == 0  # the app goes on


def test_ctrl_c_stops_what_runs_on_modal(standin, cell, tmp_path):
    app, nap = cell("nap", timeout=3600)
    nights = [{"folder": str(tmp_path), "x": x, "seconds": 5000} for x in range(2)]

    def interrupt():
        while not (tmp_path / "began-0").exists():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt), remote.session(app, "modal") as jobs:
        threading.Thread(target=interrupt).start()
        jobs.map(nap, nights)
    assert len(standin.cancelled) == 2
    assert standin.stopped == ["APP_DISCONNECT_REASON_KEYBOARD_INTERRUPT"]
    assert not standin.containers and not (tmp_path / "began-1").exists()
