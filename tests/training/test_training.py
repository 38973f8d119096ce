"""SFT: the gradient of TRL's own trainer, the mask, resuming, the order of batches.

A tiny random model stands in for the laptop's, so that all of this takes seconds.
"""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import EXAMPLES, PAIRS, furthest, last_weights, losses, mark, tiny_model
from transformers import TrainerCallback
from trl import SFTTrainer

from utils.training import cpu, engine, sft, weights
from utils.training.cpu import CachedPrefixSFTTrainer, length_grouped_batches

# As Qwen3 writes a chat: with a line break after the token that ends a message.
LINE_BREAK_AFTER_END = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch):
    monkeypatch.setattr(CachedPrefixSFTTrainer, "cached", {})


@pytest.fixture
def config(tiny, tmp_path):
    return {
        "model_name_or_path": tiny,
        "data": EXAMPLES,
        "validation": EXAMPLES[:4],
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "lora_alpha": 8,
        "layers_to_transform": [2, 3],  # of four
        "bf16": False,
        "seed": 0,
        "logging_steps": 1,
        "save_steps": 2,
        "output_dir": str(tmp_path / "run"),
    }


class Killed(TrainerCallback):
    """Ends a training as a power cut would: at a step, with nothing saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def elsewhere(config, name, **change):
    return config | {"output_dir": config["output_dir"] + name} | change


def evaluations(done):
    """The validation loss by step."""
    return {r["step"]: r["eval_loss"] for r in done["log"] if "eval_loss" in r}


def test_it_learns_sixteen_examples_by_heart_and_nothing_else(config):
    # The replies are dealt out anew, so there is nothing in common to learn.
    strangers = copy.deepcopy(EXAMPLES)
    for i, one in enumerate(strangers):
        one["completion"] = EXAMPLES[(i + 5) % 16]["completion"]
    every = {"use_peft": False, "layers_to_transform": None, "learning_rate": 3e-3}
    every |= {"max_steps": 80, "per_device_train_batch_size": 16, "logging_steps": 10}
    done = cpu.train_sft(config | every | {"save_steps": 80, "validation": strangers})
    assert losses(done)[-1] < 0.05 and done["validation_loss"] > 1.0


@pytest.mark.parametrize(
    ("frozen", "cache_bytes"), [(0, 2 << 30), (2, 2 << 30), (2, 20_000), (2, 0)]
)
def test_losses_and_weights_are_those_of_trls_own_trainer(
    frozen, cache_bytes, config, monkeypatch
):
    # Plain SGD: Adam would make a step of the noise where a gradient is near zero.
    config |= {"optim": "sgd", "learning_rate": 1.0}
    config |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    config["layers_to_transform"] = list(range(frozen, 4))
    monkeypatch.setattr(CachedPrefixSFTTrainer, "cache_bytes", cache_bytes)
    ours = cpu.train_sft(config)
    sizes = [one.nbytes for one in CachedPrefixSFTTrainer.cached.values()]
    assert sum(sizes) <= cache_bytes  # a text takes some 7,000
    assert bool(sizes) == (frozen > 0 and cache_bytes > 0)
    monkeypatch.setattr(cpu, "CachedPrefixSFTTrainer", SFTTrainer)
    stock = elsewhere(config, "_stock")
    theirs = cpu.train_sft(stock)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)
    assert evaluations(ours) == pytest.approx(evaluations(theirs), rel=1e-5)
    assert ours["validation_loss"] < evaluations(ours)[2] - 0.1
    mine, its = last_weights(config["output_dir"]), last_weights(stock["output_dir"])
    assert furthest(mine, its) < 1e-5
    layers = {int(re.search(r"layers\.(\d+)", name)[1]) for name in mine}
    assert layers == set(range(frozen, 4))
    numbers = sum(tensor.numel() for tensor in mine.values())
    assert ours["trained_weights"] == theirs["trained_weights"] == numbers


def test_an_adapter_is_gone_on_with(config):
    one = cpu.train_sft(config)
    start = {"adapter": config["output_dir"] + "/adapter", "learning_rate": 0.0}
    two = cpu.train_sft(elsewhere(config, "_on", **start, max_steps=1))
    # The adapter was kept in 16 bits.
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-3)
    assert evaluations(one)[2] > 1.01 * one["validation_loss"]


def test_an_unknown_setting_is_named(config):
    with pytest.raises(ValueError, match=r"have no --lora_rank$"):
        sft.train(config | {"lora_rank": 1})


def test_the_reply_and_its_end_are_learned_and_nothing_else(config):
    mask = cpu.train_sft(config | {"max_steps": 1})["mask"]
    learned = "".join(text for text, is_it in mask if is_it)
    given = "".join(text for text, is_it in mask if not is_it)
    assert learned in {sql + "<|im_end|>" for _, sql in PAIRS}
    assert given.startswith("<|im_start|>user\n") and "system" not in given
    assert given.endswith("<|im_start|>assistant\n")


def test_a_line_break_after_the_end_is_accepted(config, tmp_path):
    name = tiny_model(tmp_path / "qwen", template=LINE_BREAK_AFTER_END)
    done = sft.train(config | {"model_name_or_path": name, "max_steps": 1})
    learned = "".join(text for text, is_it in done["mask"] if is_it)
    assert learned == PAIRS[0][1] + "<|im_end|>\n"


END = 2  # the id of the tiny model's ending token


@pytest.mark.parametrize(
    "labels",
    [
        [-100, -100, -100, -100],  # nothing is learned
        [-100, -100, 5, 6],  # not to stop
        [-100, END, 5, 6],  # to go on after the end
        [4, 5, 6, END],  # the question, too
    ],
)
def test_a_wrong_mask_is_refused(labels, tiny):
    rows = [{"input_ids": [4, 5, 6, 7], "labels": [-100, -100, 6, END]}]
    rows += [rows[0] | {"labels": labels}]
    with pytest.raises(ValueError, match="a prompt is learned, or a reply not to"):
        sft.check_mask(rows, weights.load_tokenizer(tiny))


def test_an_example_without_room_for_its_reply_is_refused(config):
    long = [{"role": "user", "content": "Which of these carriers? " * 9}]
    data = [*EXAMPLES[:3], EXAMPLES[0] | {"prompt": long}]
    with pytest.raises(ValueError, match="no reply"):
        sft.train(config | {"data": data, "max_length": 60})


@pytest.mark.parametrize(
    ("trainer", "step"), [("laptop", 3), ("laptop", 5), ("stock", 5)]
)
def test_interrupted_it_goes_on_and_ends_with_the_same_weights(
    trainer, step, config, monkeypatch
):
    broken = elsewhere(config, "_broken")
    if trainer == "laptop":
        whole = cpu.train_sft(config)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(cpu, "StopAt", Killed)
            cpu.train_sft(broken | {"stop_at": step})
        mark(broken["output_dir"])
        resumed = cpu.train_sft(broken)
    else:  # the recipe as it is, with batches drawn by the trainer
        every = {"eval_strategy": "steps", "eval_steps": 2}
        whole, broken = sft.train(config | every), broken | every
        with pytest.raises(KeyboardInterrupt):
            sft.train(broken, callbacks=(Killed(step),))
        mark(broken["output_dir"])
        resumed = sft.train(broken)
    assert resumed["log"][0]["marked"]  # it did not begin anew
    assert [row["step"] for row in resumed["log"] if "loss" in row] == [*range(1, 7)]
    assert losses(resumed) == losses(whole)
    ends = (last_weights(job["output_dir"]) for job in (config, broken))
    assert furthest(*ends) == 0
    kept = Path(broken["output_dir"], "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in kept if '"loss"' in line][-1] == 6


def test_stopped_at_a_rung_it_goes_on_as_if_it_had_not_been(config):
    whole = cpu.train_sft(config)
    staged = elsewhere(config, "_staged", save_steps=6)
    first = cpu.train_sft(staged | {"stop_at": 3})
    assert len(losses(first)) == 3 and math.isfinite(first["validation_loss"])
    assert [*evaluations(first)] == [3]
    # Asked again, as by a sweep that was interrupted, a rung says what it said.
    assert cpu.train_sft(staged | {"stop_at": 3}) == json.loads(json.dumps(first))
    # Finished, it learns no more.
    for _ in range(2):
        assert losses(cpu.train_sft(staged | {"stop_at": 6})) == losses(whole)
    ends = (last_weights(job["output_dir"]) for job in (config, staged))
    assert furthest(*ends) == 0
    with pytest.raises(ValueError, match="is of another run: name a new folder"):
        cpu.train_sft(config | {"data": EXAMPLES[:8]})


def test_a_short_run_answers_and_keeps_no_weights(config):
    questions = [question for question, _ in PAIRS[:3]]
    done = cpu.train_sft(config | {"questions": questions, "keep_adapter": False})
    left = {path.suffix for path in Path(config["output_dir"]).rglob("*")}
    assert ".jsonl" in left and not left & {".safetensors", ".bin", ".pt", ".pth"}
    again = elsewhere(config, "_again")
    assert losses(cpu.train_sft(again)) == losses(done)
    ask = again | {"questions": questions, "adapter": again["output_dir"] + "/adapter"}
    told = engine.answer(ask | {"alone": 1})
    assert done["replies"] == [text for text, *_ in told["replies"]]
    assert told["alone"][0][0] == done["replies"][0] and len(told["alone"]) == 1
    kept = load_file(f"{ask['adapter']}/adapter_model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float16}


def test_batches_are_of_one_length_and_come_in_random_order():
    rows = [{"prompt": [{"content": "q" * n}]} for n in range(60)]
    drawn = length_grouped_batches(rows, 5, 24, seed=0)
    sizes = [len(row["prompt"][0]["content"]) for row in drawn]
    assert sorted(sizes[:60]) == sorted(sizes[60:]) == list(range(60))  # two passes
    batches = [sizes[i : i + 5] for i in range(0, 120, 5)]
    assert all(max(batch) - min(batch) == 4 for batch in batches)
    assert batches[:12] != sorted(batches[:12]) and batches[:12] != batches[12:]
    assert drawn == length_grouped_batches(rows, 5, 24, seed=0)
    assert drawn != length_grouped_batches(rows, 5, 24, seed=1)
    # Any number of examples fills a run.
    for examples, batch, steps in ((3, 8, 2), (9, 4, 20)):
        drawn = length_grouped_batches(EXAMPLES[:examples], batch, steps, seed=0)
        assert len(drawn) == batch * steps
        assert all(example in drawn for example in EXAMPLES[:examples])
