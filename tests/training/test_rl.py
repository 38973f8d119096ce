"""RL: TRL's gradient, the eval's verdicts as rewards, resuming, and what is logged.

A tiny random model stands in for the laptop's. It is never right, so where a test needs
rewards that differ, another function pays.
"""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hostile import BOMBS, HOSTILE
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import furthest, last_weights, mark, tiny_model
from trl import GRPOTrainer

from utils import tidewater
from utils.evals.harness import Assistant
from utils.tidewater.reward import Reward, rows_correct
from utils.training import cpu, examples, weights
from utils.training.cpu import DedupGRPOTrainer, hard_first

# The answer to the first practice question.
RIGHT = (
    "select carrier,round(avg(julianday(delivered_date)-julianday(shipped_date)),1) "
    "from shipments where is_test=0 and not delivered_date is null and "
    "segment='office' and shipped_date between '2025-02-01' and '2026-01-31' "
    "group by 1 order by 2 desc limit 1"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model, and an adapter of its last two layers to start from."""
    home = tmp_path_factory.mktemp("tiny")
    name = tiny_model(home / "model")
    model, _ = weights.load(name)
    torch.manual_seed(0)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    lora.layers_to_transform = [2, 3]
    get_peft_model(model, lora).save_pretrained(home / "adapter")
    return {"model_name_or_path": name, "adapter": str(home / "adapter")}


@pytest.fixture
def config(tiny, tmp_path):
    cases = tidewater.load_cases("practice", 6)
    return tiny | {
        "data": [case | {"hard": i % 2 == 0} for i, case in enumerate(cases)],
        "validation": cases[:2],
        "questions": ["How many customers are there?"],
        "max_steps": 3,
        "num_generations": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,  # so a step has two prompts
        "hard_share": 0.5,
        "temperature": 1.0,
        "max_completion_length": 24,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "bf16": False,
        "eval_steps": 2,
        "save_steps": 2,
        "seed": 0,
        "output_dir": str(tmp_path / "run"),
    }


def odd(completions, **_):
    """Pay for an odd sum of letters: rewards that differ."""
    return [float(sum(map(ord, one[0]["content"])) % 2) for one in completions]


def elsewhere(config, name, **change):
    return config | {"output_dir": config["output_dir"] + name} | change


def timeless(done):
    """Return a log without what the clock says."""
    clock = ("step_time", "seconds")
    return [{k: v for k, v in row.items() if k not in clock} for row in done["log"]]


@pytest.mark.parametrize("case", ["plain", "alike", "reused"])
def test_it_learns_what_trls_own_trainer_would(case, config, monkeypatch):
    """What is left out, merged or split otherwise does not change the weights."""
    # Plain SGD: Adam would make a step of the noise where a gradient is near zero.
    config |= {"optim": "sgd", "learning_rate": 1.0}
    if case == "alike":
        config |= {"temperature": 0.02, "num_generations": 8}
        config["per_device_train_batch_size"] = 4
    if case == "reused":  # each batch of replies for two steps, the second one clipped
        config |= {"num_iterations": 2, "max_steps": 4, "learning_rate": 0.1}
    ours = cpu.train_grpo(config, odd)

    class Stock(DedupGRPOTrainer):
        """Samples with the engine; all else is TRL's."""

        _generate_and_score_completions = GRPOTrainer._generate_and_score_completions
        _compute_loss = GRPOTrainer._compute_loss

    monkeypatch.setattr(cpu, "DedupGRPOTrainer", Stock)
    theirs = cpu.train_grpo(elsewhere(config, "_stock"), odd)
    mine, its = (last_weights(config["output_dir"] + end) for end in ("", "_stock"))
    start = load_file(f"{config['adapter']}/adapter_model.safetensors")
    assert 1000 * furthest(mine, its) < furthest(mine, start)
    assert ours["replies"] == theirs["replies"]
    for name in ("reward", "grad_norm"):
        mine, its = ([r[name] for r in d["log"] if name in r] for d in (ours, theirs))
        assert mine == pytest.approx(its, rel=1e-4)
    rows = [row for row in ours["log"] if "trained_replies" in row]
    passed = [row["trained_replies"] for row in rows]
    if case == "alike":  # equal ones were merged, and some weighed nothing
        assert 0 < max(passed) < 16


def test_equal_seeds_give_equal_runs_and_others_do_not(config):
    one = cpu.train_grpo(config, odd)
    two = cpu.train_grpo(elsewhere(config, "_two"), odd)
    three = cpu.train_grpo(elsewhere(config, "_three", seed=1), odd)
    assert timeless(one) == timeless(two) != timeless(three)
    assert one["replies"] == two["replies"] and len(one["replies"]) == 1
    steps = [(row["step"], "validation" in row) for row in one["log"]]
    # Asked before the first step and after every second.
    assert steps == [(0, True), (1, False), (2, True), (2, False), (3, False)]
    kept = load_file(f"{config['output_dir']}/adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16}


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(config):
    whole = cpu.train_grpo(config | {"max_steps": 4}, odd)
    broken, calls = elsewhere(config, "_broken", max_steps=4), itertools.count(1)

    def torn(completions, **columns):
        if next(calls) == 5:  # in the third step: asked twice, two steps before
            raise KeyboardInterrupt
        return odd(completions)

    torn.__name__ = "odd"  # the log's names come of it
    with pytest.raises(KeyboardInterrupt):
        cpu.train_grpo(broken, torn)
    mark(broken["output_dir"])
    resumed = cpu.train_grpo(broken, odd)
    assert resumed["log"][0].pop("marked")  # it did not begin anew
    assert [row["step"] for row in resumed["log"]] == [0, 1, 2, 2, 3, 4, 4]
    assert timeless(resumed) == timeless(whole)
    ends = (last_weights(job["output_dir"]) for job in (config, broken))
    assert furthest(*ends) == 0
    seconds = [row["seconds"] for row in resumed["log"] if "seconds" in row]
    assert seconds == sorted(seconds)
    with pytest.raises(ValueError, match="is of another run: name a new folder"):
        cpu.train_grpo(broken | {"seed": 1}, odd)  # which draws other cases


def test_a_gradient_that_is_no_number_stops_the_run(config, monkeypatch):
    def poisoned(self, model, inputs):
        return GRPOTrainer._compute_loss(self, model, inputs) * math.nan

    monkeypatch.setattr(DedupGRPOTrainer, "_compute_loss", poisoned)
    with pytest.raises(FloatingPointError, match=r"step 1: .* lower the rate"):
        cpu.train_grpo(config, odd)
    assert not list(Path(config["output_dir"]).rglob("*.safetensors"))


def test_each_step_has_its_share_of_hard_cases():
    cases = [{"id": i, "hard": i < 5} for i in range(20)]
    drawn = hard_first(cases, prompts_per_step=4, steps=10, share=0.75, seed=0)
    steps = [drawn[i : i + 4] for i in range(0, 40, 4)]
    for step in steps:
        assert [case["hard"] for case in step] == [True] * 3 + [False]
    hard = [case["id"] for case in drawn if case["hard"]]
    for start in range(0, 30, 5):  # each once, before one comes again
        assert sorted(hard[start : start + 5]) == list(range(5))
    assert drawn == hard_first(cases, 4, 10, 0.75, seed=0)
    assert drawn != hard_first(cases, 4, 10, 0.75, seed=1)


def test_the_reward_gives_the_evals_verdicts(pool):
    cases = tidewater.load_cases("eval", 60)
    model, prompt = tidewater.recorded_model("launch"), tidewater.load_prompt("launch")
    asked = [case["question"] for case in cases]
    assistant = Assistant(model, prompt, tidewater.SqlTool(pool), max_retries=0)
    through = [trace.reply for trace in assistant.ask_all(asked)]
    wanted = tidewater.grade(cases, through, pool)
    replies = [model.replies[question].text for question in asked]
    found = Reward(pool=pool).grades(cases, replies)
    assert found == wanted
    assert {True, False} == {grade.correct for grade in found}
    # As TRL calls it: lists of messages, and columns of texts.
    column = [row["case"] for row in examples.prompts(cases)]
    completions = [[{"role": "assistant", "content": text}] for text in replies]
    paid = rows_correct(prompts=[], completions=completions, case=column, trainer=None)
    assert paid == [float(grade.correct) for grade in wanted]


SLOW = [*BOMBS.values()][2:]  # two that run into the deadline are enough every day
MEANT_BADLY = [sql for _, sql, _ in HOSTILE if sql not in SLOW]


@pytest.mark.parametrize(
    "queries", [MEANT_BADLY, pytest.param(SLOW, marks=pytest.mark.slow)]
)
def test_a_hostile_answer_is_paid_nothing(queries, pool):
    case = tidewater.load_cases("practice", 1)[0]
    replies = [f"```sql\n{sql}\n```" for sql in queries]
    paid = Reward(pool=pool).scores([case] * len(replies), replies)
    assert paid == [0.0] * len(replies)


def test_an_answer_right_by_luck_is_paid_nothing(pool):
    case, reward = tidewater.load_cases("practice", 1)[0], Reward(pool=pool)
    ((carrier, days),) = case["expected"]["warehouse"]
    lucky = [
        f"```sql\nselect '{carrier}', {days}\n```",
        f"select '{carrier}',{days} from shipments limit 1",
        f"select carrier,{days} from shipments where carrier='{carrier}' limit 1",
    ]
    for one in reward.grades([case] * len(lucky), lucky):
        assert one.correct_on_live and not one.correct
    assert reward.scores([case] * 4, [*lucky, RIGHT]) == [0, 0, 0, 1]
    other = ["", "UPS.", "```sql\n```", "select 1 from", "\0", "'" * 999]
    assert reward.scores([case] * len(other), other) == [0] * len(other)


def test_what_is_known_is_known_by_content(pool, monkeypatch):
    reward, first = Reward(pool=pool), tidewater.load_cases("practice", 1)[0]
    other = {name: [["ups", 1.0]] for name in first["expected"]}
    same_id = first | {"expected": other}
    assert reward.scores([first, same_id], [RIGHT, RIGHT]) == [1.0, 0.0]
    assert reward.scores([same_id, dict(first)], [RIGHT, RIGHT]) == [0.0, 1.0]
    monkeypatch.delattr(type(pool), "map")  # it is asked no more
    assert reward.scores([dict(first)] * 3, [RIGHT] * 3) == [1.0] * 3
