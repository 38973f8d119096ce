"""What the notebooks send to a GPU comes back as if it had run here.

Their own cells make the jobs, Modal's client sends them to the stand-in, and a tiny
model takes the larger one's place. (08 sends a pool: test_modal_sandbox.py; 09 a web
server: tests/training/test_serving.py.)
"""

import importlib.metadata
import math
import re
import shutil
from types import SimpleNamespace

import modal
import pytest
import torch
from repository import run_cells
from safetensors.torch import load_file
from standin import Standin
from standin_sandboxes import SandboxStandin
from tiny import EXAMPLES, PAIRS, furthest, losses, tiny_model

from utils import remote, tidewater
from utils.serving.modal_sandbox import ModalPool
from utils.tidewater.reward import Reward, rows_correct, sample_and_grade
from utils.training import cpu, engine, examples, sft

pytestmark = [pytest.mark.modal, pytest.mark.timeout(1800)]
QUESTIONS = [question for question, _ in PAIRS[:3]]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def tiny(home):
    return tiny_model(home / "tiny")


@pytest.fixture(autouse=True)
def one_thread_and_a_cache_of_its_own(home, monkeypatch):
    """As in the stand-in's containers."""
    monkeypatch.setenv("BENEATH_CACHE", str(home / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(tiny):
    return {
        "model_name_or_path": tiny,
        "data": EXAMPLES,
        "validation": EXAMPLES[:4],
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "layers_to_transform": [2, 3],
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": "none",
        "bf16": False,
        "seed": 0,
    }


@pytest.fixture
def here(request):
    """The stand-in; `runs` is where its containers find the Volume at /runs."""
    with getattr(request, "param", Standin)() as server:
        server.runs = server.folder / "runs"
        yield server
        assert not server.errors and not server.unknown


def cells_of(name, *parts, **names):
    """Run cells of a notebook as in modal mode; return the names they leave."""
    scope = {"__name__": "__main__", "MODE": "modal", "big": True, "GPU": "L40S"}
    scope |= {"modal": modal, "remote": remote, "cpu": cpu, "sft": sft, "HOURS": 1}
    scope |= {"engine": engine, "tidewater": tidewater, **names}
    return SimpleNamespace(**run_cells(name, scope, *parts))


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_04_trains(here, config, tmp_path):
    cells = cells_of("04_train_sft", "HEAVY = {")
    with remote.session(sft.app, "modal") as jobs:
        # As costly.run sends it; the recipe keeps the last part of the folder.
        there = jobs.run(cells.train_job, config | {"output_dir": "/runs/04_sft"})
    mine = sft.train(config | {"output_dir": str(tmp_path)})
    assert losses(there) == pytest.approx(losses(mine), rel=1e-4)
    assert there["mask"] == mine["mask"]
    kept = here.volume("beneath-the-api") / "04_sft"
    assert furthest(adapter(kept), adapter(tmp_path)) < 1e-4


def test_05_halves_a_grid(here, config, tmp_path):
    run = SimpleNamespace(load_rows=lambda name: [])
    cells = cells_of("05_sweep_cheaply", "HEAVY |=", "def halve", run=run, math=math)
    grid = {f"rate {rate}": {"learning_rate": rate} for rate in (1e-2, 1e-4)}
    sweep = {"base": config, "grid": grid, "rungs": [1, 3], "keep": 2}
    with remote.session(cells.app, "modal") as jobs:
        there = cells.halve(sweep | {"output_dir": f"{here.runs}/05_sweep"}, jobs)
    cells.halve.__globals__["train_job"] = cpu.train_sft
    with remote.session(cells.app, "quick") as jobs:
        mine = cells.halve(sweep | {"output_dir": str(tmp_path)}, jobs)
    assert there["best"] == mine["best"] == "rate 0.01"
    assert [row["step"] for row in there["log"]] == [1, 1, 3]
    for far, near in zip(there["log"], mine["log"], strict=True):
        assert far["eval_loss"] == pytest.approx(near["eval_loss"], rel=1e-4)
    # The second rung went on from the first one's checkpoint, on the Volume.
    log = here.volume("beneath-the-api") / "05_sweep/0/log.jsonl"
    assert log.read_text().count('"grad_norm"') == 3


@pytest.fixture(scope="module")
def case():
    """The shortest eval question, which the tiny model can learn by heart."""
    cases = tidewater.load_cases("eval")
    return min(cases, key=lambda case: len(case["question"] + case["sql"]))


@pytest.fixture
def policy(config, case, home):
    """A model that is right now and then."""
    folder = home / "policy"
    if not folder.exists():
        known = [examples.example(case["question"], case["sql"])]
        teach = config | {"data": known * 4, "validation": known, "max_steps": 40}
        teach |= {"lora_r": 8, "layers_to_transform": None, "save_steps": 40}
        cpu.train_sft(teach | {"output_dir": str(folder)})
    return {
        "model_name_or_path": config["model_name_or_path"],
        "adapter": str(folder / "adapter"),
        "dtype": "float32",
        "num_generations": 8,
        "temperature": 1.0,
        "seed": 0,
    }


def test_04_answers(here, policy):
    cells = cells_of("04_train_sft", "HEAVY = {")
    kept = here.volume("beneath-the-api") / "04_sft" / "adapter"
    shutil.copytree(policy["adapter"], kept)
    ask = {"model_name_or_path": policy["model_name_or_path"], "alone": 1}
    ask |= {"questions": QUESTIONS, "adapter": f"{here.runs}/04_sft/adapter"}
    bare = ask | {"adapter": None, "prompt": "Answer in SQL."}
    with remote.session(cells.app, "modal") as jobs:
        there = jobs.map(cells.answer_job, [ask, bare])
    mine = [engine.answer(ask | {"adapter": policy["adapter"]}), engine.answer(bare)]
    for far, near in zip(there, mine, strict=True):  # all but the seconds
        assert [row[:3] for row in far["replies"]] == [r[:3] for r in near["replies"]]
        assert len(far["alone"]) == 1


def test_06_samples_and_grades(here, policy, case):
    names = {"policy": policy, "practice": [case], "TEMPERATURE": 1.0}
    names["sample_and_grade"] = sample_and_grade
    cells = cells_of("06_train_rl", "HEAVY = {", "explore_job = ", **names)
    look = cells.look | {"max_new_tokens": 64}
    with remote.session(cells.app, "modal") as jobs:
        there = jobs.run(cells.explore_job, look)
    assert there == sample_and_grade(look)
    (found,) = there["found"]
    assert {True, False} == {right for _, _, right, _ in found}


@pytest.mark.parametrize("here", [SandboxStandin], indirect=True)
def test_06_practises_with_rewards_from_sandboxes(here, policy, case, tmp_path):
    names = {"Reward": Reward, "ModalPool": ModalPool, "base": {"data": []}}
    names |= {"validation": [], "asked": []}
    cells = cells_of(
        "06_train_rl", "HEAVY = {", "def train_apart", "rl_job = ", **names
    )
    hard = case | {"hard": True}
    config = policy | {"data": [hard], "validation": [hard], "hard_share": 1.0}
    config |= {"questions": [case["question"]], "max_steps": 2, "eval_steps": 2}
    config |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    config |= {"learning_rate": 1e-3, "warmup_steps": 0, "save_steps": 2}
    config |= {"max_completion_length": 64, "bf16": False, "output_dir": str(tmp_path)}
    with remote.session(cells.app, "modal") as jobs:
        far = config | {"output_dir": f"{here.runs}/06_rl"}
        there = jobs.run(cells.rl_job, far)
    mine = cpu.train_grpo(config, rows_correct)
    assert here.sandboxes and here.calls["TaskExecStart"] > 0
    assert there["replies"] == mine["replies"]
    for key in ("reward", "validation"):
        rows = [row[key] for row in mine["log"] if key in row]
        assert rows and rows == [row[key] for row in there["log"] if key in row]
    assert 0 < sum(row.get("reward", 0) for row in mine["log"]) < 2
    kept = here.volume("beneath-the-api") / "06_rl"
    assert furthest(adapter(kept), adapter(tmp_path)) < 1e-4


@pytest.mark.slow
def test_the_image_has_what_the_jobs_import(here, config):
    """What a container has loaded after a run comes with what the image installs."""
    run = SimpleNamespace(load_rows=lambda name: [])
    cells = cells_of("05_sweep_cheaply", "HEAVY |=", run=run)

    def spy(config):
        import sys

        import utils.tidewater.reward  # noqa: F401 - and all that 06 needs besides

        cpu.train_sft(config)
        return sorted({name.partition(".")[0] for name in sys.modules})

    with remote.session(cells.app, "modal") as jobs:
        job = cells.app.function(**cells.HEAVY)(spy)
        folder = f"{here.runs}/spy"
        used = jobs.run(job, config | {"questions": QUESTIONS, "output_dir": folder})
    owners = importlib.metadata.packages_distributions()
    found = {owners[name][0].lower() for name in used if name in owners}
    needed = {name.replace("-", "_") for name in found}
    extra = needed - closure([*remote.PACKAGES, "modal"])
    assert "torch" in needed
    # Others use these two where they happen to be there; on a GPU transformers
    # generates in place of CTranslate2.
    happen = {"sniffio", "pillow"}
    assert extra <= {"beneath_the_api", "ctranslate2", *happen}, extra


def closure(names):
    """Names of distributions with all that they require here."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop().lower().replace("-", "_")
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            requires = []
        if name not in found:
            wanted = [r for r in requires if "extra ==" not in r]
            waiting += [re.match(r"[\w.-]+", r)[0] for r in wanted]
        found.add(name)
    return found
