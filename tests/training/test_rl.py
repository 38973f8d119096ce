"""The recipe of notebook 06: the eval's verdicts as rewards, TRL's gradient, resuming.

A tiny random model stands in for the laptop's. It is never right, so where a test needs
rewards that differ, an environment pays for something else.
"""

import ast
import json
import math
import re
from pathlib import Path

import pytest
import torch
from hostile import BOMBS, HOSTILE
from peft import get_peft_model
from safetensors.torch import load_file
from standin import Standin
from standin_sandboxes import SandboxStandin
from test_training import called, rows
from tiny import EXAMPLES, PAIRS, tiny_model
from trl import GRPOTrainer

from utils import course, remote, tidewater
from utils.evals.grading import Grader
from utils.evals.harness import Assistant
from utils.serving.modal_sandbox import ModalPool
from utils.training import weights as models
from utils.training.rollouts import Sampler

pytestmark = pytest.mark.timeout(300)
HEAVY = {"GPU": "L40S", "HOURS": 4}
# The answer to the first practice question.
RIGHT = (
    "select carrier,round(avg(julianday(delivered_date)-julianday(shipped_date)),1) "
    "from shipments where is_test=0 and not delivered_date is null and "
    "segment='office' and shipped_date between '2025-02-01' and '2026-01-31' "
    "group by 1 order by 2 desc limit 1"
)


@pytest.fixture(scope="module")
def recipe():
    """The names of notebook 06's cells tagged `recipe`, as after running them."""
    borrowed = course.borrow("06_train_rl", "recipe", **HEAVY)
    return borrowed.train_rl.__globals__


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, recipe):
    """A tiny model and an adapter to start from."""
    home = tmp_path_factory.mktemp("tiny")
    name = tiny_model(home / "model")
    model, _ = models.load(name)
    torch.manual_seed(0)
    lora = recipe["sft"].adapter({"rank": 4, "frozen": 2}, 4)
    models.save_adapter(get_peft_model(model, lora), home / "adapter")
    return {"model": name, "adapter": str(home / "adapter")}


@pytest.fixture
def config(tiny, tmp_path):
    cases = tidewater.load_cases("practice", 6)
    return tiny | {
        "dtype": "float32",
        "practice": [case | {"hard": i % 2 == 0} for i, case in enumerate(cases)],
        "validation": cases[:2],
        "questions": ["How many customers are there?"],
        "steps": 3,
        "prompts": 2,
        "group": 4,
        "hard_share": 0.5,
        "temperature": 1.0,
        "max_tokens": 24,
        "rate": 1e-2,
        "repairs": 0,
        "vllm": False,
        "judge_every": 2,
        "save_every": 2,
        "seed": 0,
        "folder": str(tmp_path / "run"),
    }


def noisy(recipe):
    """Make an environment that pays for an odd sum of letters: rewards that differ."""

    class Noisy(recipe["Environment"]):
        def grade(self, cases, dialogues):
            self.now = iter(dialogues)
            return super().grade(cases, dialogues)

        def reward(self, case, sql, grade):
            return float(sum(map(ord, "".join(next(self.now)))) % 2)

    return Noisy


def weights(config):
    return load_file(f"{config['folder']}/adapter/adapter_model.safetensors")


def far(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def numbers(done):
    """Return a log without what the clock says."""
    return [{k: v for k, v in r.items() if k != "step_time"} for r in done["log"]]


# --- the environment -----------------------------------------------------------------


def test_the_environment_gives_the_evals_verdicts(recipe, pool):
    cases = tidewater.load_cases("eval", 60)
    model, prompt = tidewater.recorded_model("launch"), tidewater.load_prompt("launch")
    tool = tidewater.SqlTool(pool)
    asked = [case["question"] for case in cases]
    traces = Assistant(model, prompt, tool, max_retries=0).ask_all(asked)
    wanted = tidewater.grade(Grader(pool), cases, traces)
    said = [(model.replies[question].text,) for question in asked]
    found = [grade for _, grade in recipe["Environment"]().grade(cases, said)]
    assert found == wanted
    assert {True, False} == {grade.correct for grade in found}


def test_what_is_wrong_hostile_or_right_by_luck_is_paid_nothing(recipe):
    world, case = recipe["Environment"](), tidewater.load_cases("practice", 1)[0]
    slow = [*BOMBS.values()][2:]  # two that run into the deadline are enough here
    fenced = [f"```sql\n{sql}\n```" for _, sql, _ in HOSTILE if sql not in slow]
    ((carrier, days),) = case["expected"]["warehouse"]
    luck = [
        f"```sql\nselect '{carrier}', {days}\n```",
        f"select '{carrier}',{days} from shipments limit 1",
        f"select carrier,{days} from shipments where carrier='{carrier}' limit 1",
    ]
    other = ["", " ", "UPS.", "select", "```sql\n```", "select 1 from", "\0", "'" * 999]
    said = [(text,) for text in (*fenced, *luck, *other)]
    graded = world.grade([case] * len(said), said)
    assert [world.reward(case, *one) for one in graded] == [0.0] * len(said)
    lucky = graded[len(fenced) : len(fenced) + len(luck)]
    assert all(grade.correct_on_live and not grade.correct for _, grade in lucky)


def test_a_worker_that_dies_is_paid_nothing_and_the_next_is_paid(recipe):
    world, case = recipe["Environment"](), tidewater.load_cases("practice", 1)[0]
    world.grade([case], [("select 1 from shipments",)])
    for worker in world.pool._workers:
        worker.kill()
    bomb = "select length(printf('%.*c', 900000000, 'x')) from shipments"
    graded = world.grade([case] * 2, [(bomb,), (RIGHT,)])
    assert [world.reward(case, *one) for one in graded] == [0.0, 1.0]


def test_a_script_waits_where_nothing_was_sampled(recipe):
    world = recipe["Environment"](repairs=1)
    broken = "select nothing from nowhere"
    trace, waiting = world.play("Which carriers?", [broken])
    assert trace.status == "not_recorded"
    assert waiting[-1]["content"].startswith("The query failed. ")
    trace, waiting = world.play("Which carriers?", [broken, "select 1 from shipments"])
    assert waiting is None and trace.status == "answered"
    _, waiting = world.play("Which carriers?", ["select 1 from shipments"])
    assert waiting is None


def test_the_tools_words_continue_the_chat_as_the_template_writes_it(recipe, tiny):
    tokenizer = models.load_tokenizer(tiny["model"])
    world, said = recipe["Environment"](repairs=1), "select nothing from nowhere"
    prompt = [{"role": "user", "content": "Which carriers?"}]
    _, waiting = world.play("Which carriers?", [said])
    after = recipe["told"](world, prompt, [said], tokenizer)
    reply = tokenizer(said + tokenizer.eos_token)["input_ids"]
    joined = models.prompt_ids(tokenizer, prompt) + reply + after
    assert tokenizer.decode(joined) == tokenizer.apply_chat_template(
        waiting[1:], tokenize=False, add_generation_prompt=True
    )
    fine = recipe["told"](world, prompt, ["select 1 from shipments"], tokenizer)
    assert fine == []


# --- training ------------------------------------------------------------------------


def test_equal_seeds_give_equal_runs_and_others_do_not(recipe, config, tmp_path):
    world = noisy(recipe)
    one = recipe["train_rl"](config, world)
    two = recipe["train_rl"](config | {"folder": str(tmp_path / "two")}, world)
    other = {"folder": str(tmp_path / "other"), "seed": 1}
    three = recipe["train_rl"](config | other, world)
    assert numbers(one) == numbers(two) != numbers(three)
    assert one["replies"] == two["replies"]
    steps = [row["step"] for row in one["log"]]
    assert steps == [0, 1, 2, 2, 3]  # the second step was judged, too
    assert all("validation" in one["log"][k] for k in (0, 2))
    assert far(weights(config), load_start(config)) > 1e-3


def load_start(config):
    return load_file(f"{config['adapter']}/adapter_model.safetensors")


@pytest.mark.parametrize("case", ["plain", "alike", "two turns"])
def test_it_learns_what_trls_own_trainer_would(
    recipe, config, tmp_path, monkeypatch, case
):
    """What is left out, merged, chunked or cut short does not change the weights."""
    if case == "alike":
        config |= {"temperature": 0.05, "group": 8}
    if case == "two turns":
        config |= {"repairs": 1, "max_tokens": 60}
        tokenizer = models.load_tokenizer(config["model"])
        more = tokenizer("\nno such table", add_special_tokens=False)["input_ids"]
        told = lambda world, prompt, said, _: more if len(said[0]) % 2 else []  # noqa: E731
        monkeypatch.setitem(recipe, "told", told)
    lean = recipe["train_rl"](config, noisy(recipe))
    ours = weights(config)
    name = "_generate_and_score_completions"
    own = {name: getattr(GRPOTrainer, name)}
    stock = type("Stock", (recipe["Practice"],), own)
    monkeypatch.setitem(recipe, "Practice", stock)
    config["folder"] = str(tmp_path / "stock")
    trl = recipe["train_rl"](config, noisy(recipe))
    assert far(ours, weights(config)) < 5e-4 < far(ours, load_start(config))
    rewards = [[r.get("reward") for r in done["log"]] for done in (lean, trl)]
    assert rewards[0] == rewards[1]
    assert (case != "alike") or lean["log"][1]["trained_replies"] < 16


def test_what_the_tool_says_carries_no_gradient(recipe, config, monkeypatch):
    seen = []

    class Spy(recipe["Practice"]):
        def _get_per_token_logps_and_entropies(self, *args, **more):
            self.logs, *rest = super()._get_per_token_logps_and_entropies(*args, **more)
            self.logs.retain_grad()
            return self.logs, *rest

        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            loss.backward(retain_graph=True)
            real, own = inputs["completion_mask"], inputs["tool_mask"]
            weighs = (inputs["advantages"] != 0)[:, None]
            seen.append((self.logs.grad, real * (1 - own), real * own * weighs))
            return loss

    config |= {"repairs": 1, "steps": 1, "max_tokens": 60}
    tokenizer = models.load_tokenizer(config["model"])
    more = tokenizer("\nno such table", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    monkeypatch.setitem(recipe, "told", lambda *_: more)
    monkeypatch.setitem(recipe, "Practice", Spy)
    sample = Sampler.sample

    def ending(self, prompts, n=1, temperature=0.0):
        return [[*ids[:9], end] for ids in sample(self, prompts, n, temperature)]

    monkeypatch.setattr(Sampler, "sample", ending)
    recipe["train_rl"](config, noisy(recipe))
    assert len(seen) == 4  # a step's parts
    for gradient, tool, learned in seen:
        assert tool.any() and not gradient[tool.bool()].any()
        assert learned.any() and gradient[learned.bool()].abs().min() > 0


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(recipe, config, tmp_path):
    world = noisy(recipe)
    whole = recipe["train_rl"](config | {"steps": 4}, world)
    broken = config | {"steps": 4, "folder": str(tmp_path / "broken")}

    class Torn(world):
        calls = 0

        def grade(self, cases, dialogues):
            self.calls += 1
            if self.calls == 5:  # the third step: two judgements and two steps before
                raise KeyboardInterrupt
            return super().grade(cases, dialogues)

    with pytest.raises(KeyboardInterrupt):
        recipe["train_rl"](broken, Torn)
    resumed = recipe["train_rl"](broken, world)
    assert [row["step"] for row in resumed["log"]] == [0, 1, 2, 2, 3, 4, 4]
    assert numbers(resumed) == numbers(whole)
    assert far(weights(broken), weights(config)) == 0


def test_a_gradient_that_is_no_number_stops_the_run(recipe, config, monkeypatch):
    class Poisoned(recipe["Practice"]):
        def _compute_loss(self, model, inputs):
            return super()._compute_loss(model, inputs) * math.nan

    monkeypatch.setitem(recipe, "Practice", Poisoned)
    with pytest.raises(FloatingPointError, match="lower the rate"):
        recipe["train_rl"](config, noisy(recipe))
    assert not list(Path(config["folder"]).rglob("*.safetensors"))


def test_through_modals_client_it_practises_the_same(recipe, config, tmp_path):
    here = recipe["train_rl"](config, noisy(recipe))
    mine, app, place = weights(config), remote.modal.App("test"), tmp_path / "volume"
    world = noisy(recipe)
    train = recipe["train_rl"]

    def practise(one):
        return train(one, world)

    with Standin() as modal_here:
        volume = remote.modal.Volume.from_name("test", create_if_missing=True)
        heavy = recipe["HEAVY"] | {"volumes": {str(place): volume}}
        with remote.session(app, "modal") as jobs:
            job = app.function(**heavy)(practise)
            there = jobs.run(job, config | {"folder": f"{place}/run"})
        kept = modal_here.volume("test") / "run" / "adapter"
        other = load_file(kept / "adapter_model.safetensors")
    assert not modal_here.unknown and not modal_here.errors
    assert json.loads(json.dumps(there)) == there
    assert numbers(there) == numbers(here)
    assert there["replies"] == here["replies"]
    assert far(mine, other) == 0


def test_on_modal_the_rewards_come_from_sandboxes(config, tmp_path):
    names = course.borrow(
        "06_train_rl", "recipe", "apart", **HEAVY, ModalPool=ModalPool
    )
    case = tidewater.load_cases("practice", 1)[0]
    config |= {"steps": 1, "practice": [case | {"hard": True}], "hard_share": 1.0}

    def saying_right(world):
        class Right(world):
            def grade(self, cases, dialogues):
                return super().grade(cases, [(RIGHT,)] * len(cases))

        return Right

    here = names.train_rl(config, saying_right(names.Environment))
    apart, train = saying_right(names.Apart), names.train_rl
    app, place = remote.modal.App("test"), tmp_path / "volume"
    with SandboxStandin() as modal_here:
        volume = remote.modal.Volume.from_name("test", create_if_missing=True)
        heavy = names.HEAVY | {"volumes": {str(place): volume}}
        with remote.session(app, "modal") as jobs:
            job = app.function(**heavy)(lambda one: train(one, apart))
            there = jobs.run(job, config | {"folder": f"{place}/run"})
    assert not modal_here.unknown and not modal_here.errors
    assert modal_here.sandboxes and modal_here.calls["TaskExecStart"] > 0
    assert [row["right"] for row in there["log"] if "right" in row] == [1.0]
    assert numbers(there) == numbers(here)


# --- beside it -----------------------------------------------------------------------


def test_exploring_counts_every_sample(recipe, tiny):
    cases = tidewater.load_cases("practice", 3)
    config = tiny | {
        "dtype": "float32",
        "max_tokens": 12,
        "temperature": 1.0,
        "seed": 3,
    }
    found = recipe["explore"](config | {"cases": cases, "n": 4})["found"]
    assert [sum(count for _, count, _, _ in replies) for replies in found] == [4] * 3
    assert not any(right for replies in found for _, _, right, _ in replies)
    again = recipe["explore"](config | {"cases": cases, "n": 4})["found"]
    assert again == found


def test_fine_tuning_on_what_passed_learns_it(recipe, config):
    examples = EXAMPLES[:16]
    config |= {"examples": examples, "validation": examples[:4], "steps": 12}
    config |= {"batch": 4, "rank": 4, "frozen": 2, "log_every": 1, "save_every": 12}
    done = recipe["train_kept"](config)
    losses = [row["loss"] for row in done["log"] if "loss" in row]
    assert losses[-1] < losses[0] and len(done["replies"]) == 1


def test_the_sampler_repeats_itself_and_leaves_the_model_alone(recipe, tiny):
    config = tiny | {"dtype": "float32", "max_tokens": 12}
    model, tokenizer, sampler = recipe["open_policy"](config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    threads = torch.get_num_threads()
    prompts = [tokenizer(question)["input_ids"] for question, _ in PAIRS[:5]]
    sampler.refresh(7)
    one = sampler.sample(prompts, 3, 1.0)
    sampler.refresh(7)
    assert sampler.sample(prompts, 3, 1.0) == one and len(one) == 15
    sampler.refresh(8)
    assert sampler.sample(prompts, 3, 1.0) != one
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.get_num_threads() == threads
    # With the adapter merged it answers as the model with the adapter beside it.
    with torch.no_grad():
        ids = torch.tensor([prompts[0]])
        want = model.generate(ids, max_new_tokens=12, do_sample=False)[0, len(ids[0]) :]
    greedy = sampler.sample(prompts[:1])[0]
    assert greedy == want.tolist()[: len(greedy)]


def test_how_many_lines_the_recipe_has():
    """Counted as for SFT, with the sampler: the README tells the sum and its parts."""
    cells = course.cells_tagged("06_train_rl", "recipe")
    rival = ("def explore(", "def train_kept(")
    code = "\n\n".join(c for c in cells if not any(word in c for word in rival))
    notebook = sum(len(rows(code, node)) for node in ast.parse(code).body)
    words = set(re.findall(r"\w+", code)) - {"fetch"}
    parts = [notebook, *(called(name, words) for name in ("models", "rollouts"))]
    readme = (course.ROOT / "README.md").read_text(encoding="utf-8")
    told = f"{sum(parts)} lines of code: {parts[0]} in the notebook, {parts[1]} in"
    assert told in " ".join(readme.split()), told
