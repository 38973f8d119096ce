"""What the notebooks send to a GPU comes back as if it had run here.

The jobs of notebooks 04 to 09 are made as there, Modal's client sends them to the
stand-in, and a tiny model takes the larger one's place.
"""

import contextlib
import importlib.metadata
import re

import modal
import pytest
import torch
from safetensors.torch import load_file
from standin_sandboxes import SandboxStandin
from tiny import EXAMPLES, PAIRS, furthest, losses, tiny_model

from utils import course, remote, tidewater
from utils.course import costly
from utils.course import run as runs
from utils.serving.modal_sandbox import ModalPool
from utils.tidewater.reward import Reward, rows_correct, sample_and_grade
from utils.training import cpu, engine, examples

pytestmark = [pytest.mark.modal, pytest.mark.timeout(1800)]
QUESTIONS = [question for question, _ in PAIRS[:3]]
GPU = "L40S"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model in it."""
    folder = tmp_path_factory.mktemp("home")
    tiny_model(folder / "tiny")
    return folder


@pytest.fixture(autouse=True)
def one_thread_a_cache_and_a_budget_of_its_own(home, monkeypatch):
    """As in the stand-in's containers."""
    monkeypatch.setenv("BENEATH_CACHE", str(home / "cache"))
    monkeypatch.setenv("BUDGET_USD", "100")
    monkeypatch.setattr(remote, "LEDGER", home / "spent.jsonl")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def config(home):
    settings = {"max_steps": 2, "save_steps": 2, "logging_steps": 1, "seed": 0}
    settings |= {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "bf16": False}
    settings |= {"lora_r": 4, "layers_to_transform": [2, 3]}
    data = {"data": EXAMPLES, "validation": EXAMPLES[:4]}
    return settings | data | {"model_name_or_path": str(home / "tiny")}


@pytest.fixture
def here():
    """The stand-in; `runs` is where its containers find the Volume at /runs."""
    with SandboxStandin() as server:
        server.runs = server.folder / "runs"
        yield server
        assert not server.errors and not server.unknown


@pytest.fixture
def case():
    """The shortest eval question, which the tiny model can learn by heart."""
    cases = tidewater.load_cases("eval")
    return min(cases, key=lambda case: len(case["question"] + case["sql"]))


@pytest.fixture
def policy(config, case, home):
    """A model that is right now and then."""
    known = [examples.example(case["question"], case["sql"])]
    teach = config | {"data": known * 4, "validation": known, "max_steps": 40}
    teach |= {"lora_r": 8, "layers_to_transform": None, "save_steps": 40}
    cpu.train_sft(teach | {"output_dir": str(home / "policy")})
    made = {name: config[name] for name in ("model_name_or_path", "seed")}
    made |= {"adapter": str(home / "policy/adapter"), "dtype": "float32"}
    return made | {"num_generations": 8, "temperature": 1.0}


def adapter(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def plain(name):
    return name.lower().replace("-", "_")


def closure(names):
    """Names of distributions with all that they require here."""
    found, waiting = set(), list(names)
    while waiting:
        if (name := plain(waiting.pop())) not in found:
            found.add(name)
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                wanted = importlib.metadata.requires(name) or []
                wanted = [line for line in wanted if "extra ==" not in line]
                waiting += [re.match(r"[\w.-]+", line)[0] for line in wanted]
    return found


def practise(config):
    """Practise with rewards from Modal Sandboxes, as notebook 06 does on a GPU."""
    import sys

    done = cpu.train_grpo(config, Reward(pool=ModalPool(tidewater.WAREHOUSES)))
    return done | {"used": {name.partition(".")[0] for name in sys.modules}}


def serve():
    """Serve a model, as notebook 09 does; it is not started here."""


def test_the_jobs_of_the_course_run_on_one_app(here, config, policy, case, tmp_path):
    app, wanted = modal.App("beneath-the-api"), {"calls": 1, "minutes": 5}
    apart = wanted | {"container": remote.image(pinned=remote.VLLM)}
    train_job = remote.job(app, cpu.train_sft, GPU, **wanted)
    answer_job = remote.job(app, engine.answer, GPU, **wanted)
    explore_job = remote.job(app, sample_and_grade, GPU, **apart)
    practise.__module__ = "__main__"  # a notebook's: it travels pickled
    rl_job = remote.job(app, practise, GPU, **apart)
    web = modal.web_server(8000, requires_proxy_auth=True)(serve)
    app.function(gpu=GPU, serialized=True)(modal.concurrent(max_inputs=32)(web))

    kept = here.volume("beneath-the-api")
    ask = {"questions": QUESTIONS, "alone": 1, "adapter": f"{here.runs}/04/adapter"}
    ask["model_name_or_path"] = policy["model_name_or_path"]
    look = policy | {"cases": [case], "max_new_tokens": 64}
    hard = case | {"hard": True}
    rl = policy | {"data": [hard], "validation": [hard], "hard_share": 1.0}
    rl |= {"questions": [case["question"]], "max_steps": 2, "eval_steps": 2}
    rl |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    rl |= {"learning_rate": 1e-3, "warmup_steps": 0, "save_steps": 2}
    rl |= {"max_completion_length": 64, "bf16": False}
    with remote.session(app, "modal") as jobs:
        rungs = [
            config | {"output_dir": f"{here.runs}/04", "stop_at": n} for n in (1, 2)
        ]
        trained = [jobs.run(train_job, rung) for rung in rungs][-1]
        answers = jobs.run(answer_job, ask)
        found = jobs.run(explore_job, look)
        practised = jobs.run(rl_job, rl | {"output_dir": f"{here.runs}/06"})
    # The second call found the first one's checkpoint, and the third its adapter.
    mine = cpu.train_sft(config | {"output_dir": str(tmp_path / "04")})
    assert losses(trained) == pytest.approx(losses(mine), rel=1e-4)
    assert furthest(adapter(kept / "04"), adapter(tmp_path / "04")) < 1e-3
    near = engine.answer(ask | {"adapter": str(kept / "04" / "adapter")})
    assert [row[:3] for row in answers["replies"]] == [r[:3] for r in near["replies"]]
    assert found == sample_and_grade(look)
    mine = cpu.train_grpo(rl | {"output_dir": str(tmp_path / "06")}, rows_correct)
    assert practised["replies"] == mine["replies"]
    rewards = [row["reward"] for row in mine["log"] if "reward" in row]
    assert rewards == [row["reward"] for row in practised["log"] if "reward" in row]
    assert 0 < sum(rewards) < 2
    assert furthest(adapter(kept / "06"), adapter(tmp_path / "06")) < 1e-4
    # The image installs all that the container has loaded. The last three others use
    # where they happen to be there; on a GPU transformers generates.
    owners = importlib.metadata.packages_distributions()
    used = {plain(owners[name][0]) for name in practised["used"] if name in owners}
    known = closure([*remote.PACKAGES, "modal", "ctranslate2", "sniffio", "pillow"])
    assert {"torch", "trl", "sqlglot"} <= used
    # Where the course happens to be installed, its own `utils` is among them.
    assert used - known <= {"beneath_the_api"}
    # All replies of a step were graded at once: the right query, then theirs.
    assert len(here.sandboxes) == 1
    assert here.calls["TaskExecStart"] <= 1 + 2 * len(rewards) + 2


def test_a_run_on_modal_is_kept_here_and_its_card_names_the_container(
    here, config, tmp_path, monkeypatch
):
    for module in (runs, costly):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "SHIPPED", tmp_path / "data/runs")
    monkeypatch.chdir(tmp_path)
    course.start("04_train", "modal")
    place = str(here.runs)

    def train(config):
        folder = config["output_dir"].replace("/runs", place)
        return cpu.train_sft(config | {"output_dir": folder})

    app = modal.App("beneath-the-api")
    job = remote.job(app, train, GPU, calls=1, minutes=5)
    with remote.session(app, "modal") as jobs:
        done = costly.run("04_x", job, config, jobs=jobs)
        assert done.card["seconds"] == pytest.approx(jobs.seconds, abs=0.06)
        again = costly.run("04_x", job, config, jobs=jobs)
    assert done.card["hardware"] == jobs.machine and again.replayed
    assert done.adapter == again.adapter == f"/runs/{done.folder.name}/adapter"
    kept = here.volume("beneath-the-api") / done.folder.name
    assert furthest(adapter(done.folder), adapter(kept)) == 0
    assert "on 4 cores of a container on Modal" in done.summary()
    card = done.card | {"hardware": jobs.machine | {"gpu": "NVIDIA L40S"}}
    assert "minutes on NVIDIA L40S, " in costly.replace(done, card=card).summary()
