"""Where jobs run, and for how much: Modal's client against a local stand-in."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import modal
import modal.config
import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from repository import NOTEBOOKS, ROOT
from standin import Standin

from utils import remote
from utils.course import plan

pytestmark = [pytest.mark.modal, pytest.mark.timeout(600)]
TOKEN = ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET")

# As in a notebook, the functions live in __main__, so that they travel pickled.
CELL = """
import os, time
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
    import utils.costs
    here = Path(utils.costs.__file__).parents[2]
    data = [path.name for path in (here / "data").glob("*")]
    return {"root": str(here), "data": data}

def nap(config):
    if config["seconds"] is None:
        raise Diverged("loss is nan")
    Path(config["folder"], f"began-{config['x']}").touch()
    time.sleep(config["seconds"])
    return config["x"]
"""


@pytest.fixture(autouse=True)
def no_token_and_no_bill_of_the_developer(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith(("MODAL_", "BUDGET")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(modal.config, "_user_config", {})
    monkeypatch.setattr(remote, "LEDGER", tmp_path / "modal" / "spent.jsonl")


@pytest.fixture
def token(monkeypatch):
    monkeypatch.setenv(TOKEN[0], "t")
    monkeypatch.setenv(TOKEN[1], "t")


@pytest.fixture
def standin(no_token_and_no_bill_of_the_developer):
    with Standin() as server:
        yield server
        assert not server.errors and not server.unknown


@pytest.fixture
def cell():
    """The functions of a notebook's cell, on an app; name, options -> app, job."""
    space = {"__name__": "__main__"}
    exec(CELL, space)

    def make(name, app=None, **options):
        app = app or modal.App("beneath-the-api")
        options = {"calls": 1, "minutes": 10} | options
        return app, remote.job(app, space[name], "L40S", **options)

    make.space = space
    return make


@pytest.mark.parametrize("mode", ["quick", "full"])
def test_outside_modal_mode_a_function_runs_here(mode, token, cell, capsys):
    app, double = cell("double")
    config = {"x": 2}
    with remote.session(app, mode) as jobs:
        assert jobs.run(double, config) == {"x": 4}
        assert jobs.map(double, ({"x": x} for x in (1, 2))) == [{"x": 2}, {"x": 4}]
    assert config == {"x": 2}  # on Modal the function could not change it either
    assert capsys.readouterr().out == f'Runs here: MODE = "{mode}".\n'


def test_without_a_token_it_runs_here_and_says_how_to_get_one(cell, capsys):
    app, where = cell("where")
    with remote.session(app, "modal") as jobs:
        assert jobs.run(where, {})["root"] == str(ROOT)
    plan.main(NOTEBOOKS)
    for line in capsys.readouterr().out.splitlines():
        for word in ("no Modal token", "modal setup", "restart", *TOKEN):
            assert word in line


@pytest.mark.parametrize("present", TOKEN)
def test_half_a_token_is_an_error_that_names_the_other_half(present, monkeypatch):
    (missing,) = set(TOKEN) - {present}
    monkeypatch.setenv(present, "t")
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        remote.session(modal.App("a"), "modal")


def test_a_price_is_that_of_the_gpus_the_cores_and_the_memory():
    assert remote.price("L40S") == pytest.approx(1.95 + 4 * 0.04716 + 32 * 0.007992)
    both = remote.price("H100!:2") - remote.price("L40S")
    assert both == pytest.approx(2 * 3.95 - 1.95)
    for gpu in ("H1000", "H100:two", "", "unit"):
        with pytest.raises(ValueError, match=r"choose H100, H200, .*'L4:2'"):
            remote.price(gpu)


def test_a_call_that_may_cost_more_than_is_left_does_not_start(
    standin, cell, monkeypatch
):
    app, double = cell("double", minutes=9, calls=3)
    hour = remote.price("L40S")
    assert double.likely == pytest.approx(3 * hour / 6)  # with a minute to start
    assert double.most == pytest.approx(3 * hour * 19 / 60)
    monkeypatch.setenv("BUDGET_USD", "0.8")
    with remote.session(app, "modal") as jobs:
        assert jobs.run(double, {"x": 1}) == {"x": 2}
        # What counts in the end are its seconds and the minute, not the limit.
        assert 0.99 * hour / 60 < 0.8 - remote.left() < 2 * hour / 60
        remote.charge("another notebook", 0.3)
        with pytest.raises(RuntimeError, match=r"at most 0.76: .*leaves 0\.46; set"):
            jobs.run(double, {"x": 1})
        with pytest.raises(TypeError, match=r"make it by remote\.job"):
            jobs.run(double.function, {})
    monkeypatch.setenv("BUDGET_USD", "five")
    with pytest.raises(ValueError, match="BUDGET_USD = 'five' is no number"):
        remote.left()


def notebook(*sources):
    return new_notebook(cells=[new_code_cell(source) for source in sources])


def test_the_bill_is_read_off_the_notebooks_and_a_yes_asked_for(
    token, tmp_path, monkeypatch, capsys
):
    made = notebook(
        'GPU, MINUTES = "L40S", 12\nGPU = "L4:2"',
        "train_job = remote.job(app, cpu.train_sft, GPU, calls=3, minutes=MINUTES)",
        'remote.Job("a server", "L40S", calls=1, minutes=10).reserve()',
    )
    nbformat.write(made, path := tmp_path / "04_x.ipynb")
    one, two = bill = plan.read_jobs(path)
    assert (one.name, one.gpu, one.calls, one.minutes) == (
        "04 train_sft",
        "L4:2",
        3,
        12,
    )
    assert (two.name, two.gpu, two.calls, two.minutes) == ("04 a server", "L40S", 1, 10)
    with pytest.raises(SystemExit, match="YES=1"):  # nobody sits there
        plan.main([path])
    monkeypatch.setenv("YES", "1")
    plan.main([path, path])
    *_, together, left = capsys.readouterr().out.splitlines()
    whole = [2 * sum(getattr(job, name) for job in bill) for name in ("likely", "most")]
    assert together.split() == ["together", *(f"{usd:.2f}" for usd in whole)]
    assert left.startswith("5.00 USD are left")
    made.cells[1].source = made.cells[1].source.replace("MINUTES", "2 * MINUTES")
    nbformat.write(made, path)
    with pytest.raises(ValueError, match=r"04_x: remote.job\(.*2 \* MINUTES"):
        plan.read_jobs(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_that_may_rent_tells_what_it_costs(path):
    assert plan.read_jobs(path) or "remote.session(" not in path.read_text()


SESSIONS = """
for _ in range(2):  # an app may have several
    with remote.session(app, "modal") as jobs:
        assert jobs.map(job, []) == [] and not jobs.seconds
        found = jobs.map(job, [{"x": x} for x in range(3)])
        print(jobs.run(job, {"x": 9}), found, jobs.seconds > 0.5)
"""


def test_in_a_notebook_results_are_those_of_here_in_order(standin, monkeypatch):
    """Where functions are pickled of themselves, and an event loop runs."""
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")
    ledger = f"remote.LEDGER = Path({str(remote.LEDGER)!r})"
    made = notebook(
        f"import modal\nfrom utils import remote\n{CELL}\n{ledger}",
        'app = modal.App("a")\n'
        'job = remote.job(app, slow_first, "L40S", calls=4, minutes=10)',
        SESSIONS,
    )
    NotebookClient(made, timeout=500, kernel_name="python3").execute()
    outputs = [output for cell in made.cells for output in cell.outputs]
    assert {output.get("name") for output in outputs} == {"stdout"}  # no warnings
    whole, _, logs, *_, last = "".join(one.text for one in outputs).splitlines()
    job = remote.Job("slow_first", "L40S", 4, 10)
    assert whole == f"All jobs here: {str(job).partition(', ')[2]}"
    assert logs.startswith("Logs: https://modal.com/") and last == "9 [0, 1, 2] True"
    assert standin.stopped == ["APP_DISCONNECT_REASON_ENTRYPOINT_COMPLETED"] * 2


def test_a_container_is_like_this_environment_but_for_pins(standin, cell):
    image = remote.image("simpy", pinned=remote.VLLM)
    app, where = cell("where", container=image)
    with remote.session(app, "modal") as jobs:
        found = jobs.run(where, {})
    assert Path(found["root"]).is_relative_to(standin.folder)
    assert {"prices.json", "warehouse.sqlite"} < set(found["data"]) - {"runs"}
    ((function, *_),) = standin.functions.values()
    assert function.resources.memory_mb == 32768 and function.timeout_secs == 1200
    images = standin.images.values()
    commands = " ".join(line for one in images for line in one.dockerfile_commands)
    assert f"FROM python:{remote.LOCAL}" in commands
    assert "HF_HOME=/runs/huggingface" in commands
    pinned = dict(re.findall(r"([\w-]+)==([\w.+]+)", commands))
    assert set(pinned) == {*remote.PACKAGES, "simpy", "vllm"}
    assert (pinned["transformers"], pinned["vllm"]) == ("5.17.0", "0.31.0")
    assert pinned["torch"] == remote.version("torch").partition("+")[0]


def test_one_failure_keeps_its_type_and_cancels_the_other_calls(
    standin, cell, tmp_path
):
    app, nap = cell("nap", minutes=2)
    begun = {"folder": str(tmp_path), "x": 0, "seconds": 0}
    diverged = pytest.raises(cell.space["Diverged"], match="loss is nan")
    with remote.session(app, "modal") as jobs:
        with diverged:
            jobs.map(nap, [begun | {"seconds": None}, begun | {"seconds": 5000}])
        assert len(standin.cancelled) == 2
        assert jobs.run(nap, begun) == 0  # the app goes on
    assert 4.7 < remote.left() < 5  # and nothing is reserved any more


def test_ctrl_c_stops_what_runs_on_modal(standin, cell, tmp_path):
    app, nap = cell("nap")
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


def test_a_refused_commit_does_not_hide_what_a_function_raised(monkeypatch):
    class Busy:
        def reload(self):
            pass

        def commit(self):
            raise RuntimeError("there are open files preventing the operation")

    def diverge(_):
        raise FloatingPointError("loss is nan")

    monkeypatch.setattr(modal.Volume, "from_name", lambda name: Busy())
    with pytest.raises(FloatingPointError, match="loss is nan"):
        remote.run_there(diverge, {})
    # Without its files a run is not complete, so what it returned does not pass.
    with pytest.raises(RuntimeError, match="there are open files"):
        remote.run_there(len, "abc")
