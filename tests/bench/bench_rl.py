"""Speed of a GRPO step of notebook 06 against TRL as it comes, on the same questions.

`make bench` prints a Markdown table and saves it with a run card. TRL generates with
transformers, in 32 bits, and passes every reply through the model with its activations
computed twice; the recipe's changes leave the gradient as it is (tests/test_rl.py). One
step each, one after the other in one process: the ratio counts.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from trl import GRPOTrainer  # noqa: E402

from utils import course, tidewater  # noqa: E402

PROMPTS, GROUP = 8, 8
RUNS = ROOT / "data" / "runs"
TRL, LEAN = "TRL as it comes", "recipe"


def step(recipe: dict[str, Any], name: str) -> dict[str, float]:
    """Make one step and return its figures."""
    card = json.loads((RUNS / "06_rl_seed_0" / "card.json").read_text())
    config = {k: v for k, v in card["config"].items() if not isinstance(v, list)}
    cases = tidewater.load_cases("practice", 8 * PROMPTS)
    practice = [case | {"hard": True} for case in cases[-PROMPTS:]]
    config |= {"practice": practice, "hard_share": 1.0, "validation": cases[:1]}
    config |= {"questions": [cases[0]["question"]], "seed": 0, "steps": 1}
    config |= {"prompts": PROMPTS, "group": GROUP, "judge_every": 99, "save_every": 99}
    settings, practise = recipe["settings"], recipe["Practice"]
    if name == TRL:
        whole = "_generate_and_score_completions"
        own = {whole: getattr(GRPOTrainer, whole)}

        def draw(self: GRPOTrainer, prompts: list, n: int) -> tuple:
            repeated = [ids for ids in prompts for _ in range(n)]
            return self._generate_single_turn(repeated, None, {}, n)

        def stock(config: dict) -> Any:
            made = settings(config)
            made.gradient_checkpointing, made.bf16 = True, False
            return made

        recipe |= {"settings": stock}
        recipe |= {"Practice": type("Stock", (practise,), own | {"draw": draw})}
    with tempfile.TemporaryDirectory() as folder:
        done = recipe["train_rl"](config | {"folder": folder})
    recipe |= {"settings": settings, "Practice": practise}
    last = done["log"][-1]
    print(name, last, file=sys.stderr, flush=True)
    return last


def main() -> None:
    """Time both in turns; print the table and save it."""
    started = time.monotonic()
    recipe = course.borrow("06_train_rl", "recipe", GPU="L40S", HOURS=4)
    recipe = recipe.train_rl.__globals__
    found = {name: step(recipe, name) for name in (TRL, LEAN)}
    lines = [
        "| a GRPO step | replies a second | mixed groups | times TRL as it comes |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in found.items():
        rate, mixed = (
            PROMPTS * GROUP / row["step_time"],
            1 - row["frac_reward_zero_std"],
        )
        ratio = found[TRL]["step_time"] / row["step_time"]
        lines.append(f"| {name} | {rate:.2f} | {mixed:.0%} | {ratio:.1f} |")
    table = "\n".join(lines)
    print(table)
    card = course.run_card(
        "python tests/bench/bench_rl.py", round(time.monotonic() - started, 1)
    )
    results = {"table": table, "steps": found, "prompts": PROMPTS, "group": GROUP}
    text = json.dumps({"card": card, "results": results}, indent=1)
    (ROOT / "runs").mkdir(exist_ok=True)
    (ROOT / "runs" / "bench_rl.json").write_text(text + "\n", encoding="utf-8")
    print("\nSaved runs/bench_rl.json; copy it to data/runs.")


if __name__ == "__main__":
    main()
