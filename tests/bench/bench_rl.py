"""Speed of a GRPO step of notebook 06 against TRL as it comes, on the same questions.

TRL has all cores for its threads. It generates with transformers, in 32 bits, and
passes every reply through the model with its activations computed twice. What the
recipe changes leaves the gradient as it is (tests/training/test_rl.py). One step each,
one after the other in one process: the ratio counts.
"""

import json
import tempfile
import time

import torch
from report import QUICK, ROOT, THREADS, markdown, save

from utils import tidewater
from utils.course.run import SHIPPED, run_card
from utils.tidewater.reward import rows_correct
from utils.training import cpu, examples, grpo, weights

PROMPTS, GROUP = (2, 4) if QUICK else (8, 8)


def configure(folder):
    """The configuration of the shipped run, for one step on a few hard questions."""
    card = json.loads((SHIPPED / "06_rl_seed_0" / "card.json").read_text())
    cases = tidewater.load_cases("practice", 64)
    return card["config"] | {
        "data": [case | {"hard": True} for case in cases[-PROMPTS:]],
        "hard_share": 1.0,
        "validation": cases[:1],
        "questions": [cases[0]["question"]],
        "max_steps": 1,
        "warmup_steps": 0,
        "num_generations": GROUP,
        "per_device_train_batch_size": PROMPTS * GROUP // 4,
        "eval_steps": 99,
        "save_steps": 99,
        "output_dir": folder,
    }


def train_by_trl(folder):
    """Make the same step by GRPOTrainer itself."""
    torch.set_num_threads(THREADS)
    job = configure(folder) | {"report_to": "none", "disable_tqdm": True}
    for name in ("validation", "questions", "hard_share", "eval_steps", "sha256"):
        del job[name]
    cases = cpu.hard_first(job["data"], PROMPTS, 1, 1.0, job["seed"])
    job |= {"data": examples.prompts(cases), "shuffle_dataset": False}
    job["model_name_or_path"] = weights.fetch(job["model_name_or_path"])
    job["adapter"] = str(ROOT / job["adapter"])
    return grpo.train(job, rows_correct)


def main():
    weights.silence_logging()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        runs = {"TRL as it comes": train_by_trl(one)}
        runs["recipe"] = cpu.train_grpo(configure(two), rows_correct)
    found = {}
    for name, done in runs.items():
        found[name] = next(row for row in done["log"] if "step_time" in row)
    rows = []
    for name, row in found.items():
        rate = PROMPTS * GROUP / row["step_time"]
        mixed = 1 - row["frac_reward_zero_std"]
        ratio = found["TRL as it comes"]["step_time"] / row["step_time"]
        rows.append([name, f"{rate:.2f}", f"{mixed:.0%}", f"{ratio:.1f}"])
    header = ["a GRPO step", "replies a second", "mixed groups"]
    table = markdown([*header, "times TRL as it comes"], rows)
    results = {"table": table, "steps": found, "prompts": PROMPTS, "group": GROUP}
    seconds = round(time.monotonic() - started, 1)
    card = run_card("python tests/bench/bench_rl.py", seconds)
    save("bench_rl", {"card": card, "results": results})


if __name__ == "__main__":
    main()
