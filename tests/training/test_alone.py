"""The recipes by themselves: one file in an empty folder, third-party packages only."""

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig

import pytest
from repository import ROOT
from safetensors.torch import load_file
from tiny import EXAMPLES, mark, tiny_model

TRAINING = ROOT / "utils/training"
# `python -I recipe.py …` in an environment that has no `utils`: not even by the link
# that an editable installation leaves beside the packages, which -S keeps from working.
ALONE = """
import importlib.util, runpy, sys
sys.path.append(sys.argv.pop(1))
assert importlib.util.find_spec("utils") is None
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
REWARD = """
from letters import odd  # what lies beside the file may be imported

def score(prompts, completions, wish, **columns):
    assert len(prompts) == len(completions) == len(wish) and wish[0] == "odd"
    return [float(odd(one[0]["content"])) for one in completions]
"""
LETTERS = "def odd(text):\n    return sum(map(ord, text)) % 2\n"
SETTINGS = {
    "learning_rate": "1e-2",
    "lr_scheduler_type": "constant",  # else it would be 0 after the second step
    "warmup_steps": "0",
    "lora_r": "4",
    "save_steps": "1",
    "logging_steps": "1",
}


def run(folder, recipe, *flags):
    """Run a recipe as a stranger has it, in its folder."""
    packages = sysconfig.get_path("purelib")
    command = [sys.executable, "-I", "-S", "-c", ALONE, packages, recipe, *flags]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]


def take_along(recipe, folder, model, rows):
    """Copy a recipe into an empty folder, with data; return the flags for them."""
    (folder / recipe).write_bytes((TRAINING / recipe).read_bytes())
    # As others write them: a mark in front, their line separators, a blank line.
    lines = [json.dumps(row | {"note": "\u2028"}, ensure_ascii=False) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8-sig")
    settings = {"data": "rows.jsonl", "model_name_or_path": model} | SETTINGS
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def read_log(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def train_and_go_on(folder, recipe, output, flags):
    """Train two steps, then a third one; return the log."""
    flags = [*flags, "--output_dir", output.name]
    run(folder, recipe, *flags, "--max_steps", "2")
    first = read_log(output)
    before = load_file(output / "adapter/adapter_model.safetensors")
    assert [row["step"] for row in first] == [1, 2]
    mark(output)
    (output / "checkpoint-9").mkdir()  # one that was being saved at a kill
    run(folder, recipe, *flags, "--max_steps", "3")
    second = read_log(output)
    assert second[0].pop("marked")  # it went on from the checkpoint
    assert [row["step"] for row in second] == [1, 2, 3] and second[:2] == first
    after = load_file(output / "adapter/adapter_model.safetensors")
    assert any(not before[name].equal(after[name]) for name in before)
    return second


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def test_sft_alone_trains_and_goes_on(tmp_path, model):
    flags = take_along("sft.py", tmp_path, model, EXAMPLES)
    flags += ["--validation", "rows.jsonl"]
    train_and_go_on(tmp_path, "sft.py", tmp_path / "mine", flags)
    assert '"eval_loss"' in (tmp_path / "mine/log.jsonl").read_text()


def test_grpo_alone_trains_on_a_reward_of_ours_and_goes_on(tmp_path, model):
    rows = [{"prompt": row["prompt"], "wish": "odd"} for row in EXAMPLES]
    flags = take_along("grpo.py", tmp_path, model, rows)
    (tmp_path / "pay").mkdir()
    (tmp_path / "pay/reward.py").write_text(REWARD)
    (tmp_path / "pay/letters.py").write_text(LETTERS)
    flags += ["--reward", "pay/reward.py:score", "--num_generations", "4"]
    flags += ["--per_device_train_batch_size", "4", "--max_completion_length", "12"]
    flags += ["--gradient_accumulation_steps", "2"]
    log = train_and_go_on(tmp_path, "grpo.py", tmp_path / "mine", flags)
    assert any(0 < row["rewards/score/mean"] < 1 for row in log)


@pytest.mark.parametrize(("recipe", "most"), [("sft.py", 150), ("grpo.py", 220)])
def test_a_recipe_is_short_and_imports_nothing_of_ours(recipe, most):
    source = (TRAINING / recipe).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= most
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.partition(".")[0])
    packages = {"modal", "torch", "datasets", "peft", "transformers", "trl"}
    assert imported <= packages | sys.stdlib_module_names
    assert packages <= imported


def test_no_module_runs_or_reads_other_source():
    for path in (ROOT / "utils").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        # The word alone: a Modal Sandbox has a method of that name.
        assert not re.search(r"(?<![.\w])exec\(|getsource|linecache", text), path
