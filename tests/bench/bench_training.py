"""Speed of the laptop's model: training against stock TRL, replies against generate().

`make bench` prints two Markdown tables and saves them with a run card each; with the
word `training` or `replies` one of them is made anew. What is compared takes
turns in one process, so that other load hits all alike: the ratios count.

Training: the same 64 examples in batches of 8, the same adapter rank and learning rate.
TRL's SFTTrainer is set up as in its own example: padded, 32 bits on a CPU, gradient
checkpointing, an adapter on all layers. The recipe is that of notebook 04; in its first
epoch it sees each text for the first time, later it remembers the frozen layers. With
layers frozen it learns less in an epoch. So it is also timed with none frozen, and
until its validation loss is as low as TRL's after one epoch.

Replies: eval questions, greedily, by the adapter that is shipped.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import course, tidewater
from utils.training import weights as models  # noqa: E402
from utils.training.engine import LocalModel  # noqa: E402

EXAMPLES, BATCH, ROUNDS = 64, 8, 2
RUNS = ROOT / "data" / "runs"
ADAPTER = RUNS / "04_sft" / "adapter"
TRL, UNFROZEN, FIRST, LATER = TRAIN = (
    "TRL as it comes",
    "recipe, no layer frozen",
    "recipe, first epoch",
    "recipe, later epochs",
)
# The ways to reply, and how many questions each is asked: slow ones get fewer.
REPLY = {
    "generate(), one by one": 6,
    "generate(), padded batches": 128,
    "generate(), the same in bf16": 16,
    "CTranslate2, 32 bits": 128,
    "CTranslate2, 8 bits": 128,
}


def trainers(
    folder: str, names: tuple[str, ...] = TRAIN[:3], epochs: int = 1
) -> dict[str, Any]:
    """Make the trainers that are compared, each with a model of its own."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    notebook = course.borrow("04_train_sft", "recipe", GPU="L40S", HOURS=2)
    card = json.loads((ADAPTER.parent / "card.json").read_text())
    config = {k: v for k, v in card["config"].items() if not isinstance(v, str)}
    config |= {"steps": epochs * EXAMPLES // BATCH, "batch": BATCH, "folder": folder}
    config |= {"log_every": 1, "save_every": 1000}
    config["examples"] = rows_of("04_train.examples.jsonl")[:EXAMPLES]
    lean = notebook.settings(config)
    # It would evaluate and save after the last step, which TRL's example does not.
    lean.eval_strategy = lean.save_strategy = "no"
    check = Dataset.from_list(rows_of("04_validation.examples.jsonl"))
    stock = SFTConfig(
        output_dir=folder,
        max_steps=config["steps"],
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=lean.per_device_eval_batch_size,
        learning_rate=config["rate"],
        bf16=False,
        use_cpu=models.device() == "cpu",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    made = {}
    for name in names:
        model, tokenizer = models.load(models.LAPTOP)
        ours = name != TRL
        frozen = config["frozen"] if name == FIRST else 0
        if not ours:
            model.set_attn_implementation("sdpa")  # what transformers would choose
        kind = notebook.LeanTrainer if ours else SFTTrainer
        made[name] = kind(
            model.train(),
            args=lean if ours else stock,
            train_dataset=Dataset.from_list(
                notebook.in_order(config) if ours else config["examples"]
            ),
            eval_dataset=check,
            processing_class=tokenizer,
            peft_config=notebook.adapter(config | {"frozen": frozen}, 30),
        )
        made[name].remove_callback(PrinterCallback)
        made[name].frozen = frozen
    return made


def told(name: str, seconds: float) -> None:
    """Say what was just timed: the whole takes minutes."""
    print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)


def rows_of(name: str) -> list[dict[str, Any]]:
    """Read a shipped file of examples."""
    return [json.loads(line) for line in (RUNS / name).read_text().splitlines()]


def bench_training() -> dict[str, dict[str, float]]:
    """Time an epoch of each way, in turns; returns figures by way."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainers(folder)
        made[LATER] = made[FIRST]
        rows = made[TRL].train_dataset
        tokens = sum(len(row["input_ids"]) for row in rows)
        seconds = {name: [] for name in TRAIN}
        losses = {}
        for _ in range(ROUNDS):
            for name in TRAIN:
                if name == FIRST:
                    made[name].known.clear()
                started = time.perf_counter()
                made[name].train()
                seconds[name].append(time.perf_counter() - started)
                told(name, seconds[name][-1])
                if name not in losses:
                    losses[name] = made[name].evaluate()["eval_loss"]
    made.clear()
    found = {
        name: {
            "tokens a second": tokens / statistics.median(seconds[name]),
            "validation loss": losses[name],
            "seconds": statistics.median(seconds[name]),
        }
        for name in TRAIN
    }
    epochs, loss, took = until(losses[TRL])
    found[f"recipe, {epochs} epochs"] = {
        "tokens a second": epochs * tokens / took,
        "validation loss": loss,
        "seconds": took,
    }
    return found


def until(loss: float, most: int = 6) -> tuple[int, float, float]:
    """Train by the recipe for more and more epochs, each time anew, down to a loss.

    Returns the epochs, the loss reached and the seconds of that run.
    """
    for epochs in range(2, most + 1):
        with tempfile.TemporaryDirectory() as folder:
            (trainer,) = trainers(folder, (FIRST,), epochs).values()
            trainer.known.clear()
            started = time.perf_counter()
            trainer.train()
            took = time.perf_counter() - started
            reached = trainer.evaluate()["eval_loss"]
        told(f"{epochs} epochs to a loss of {reached:.3f}", took)
        if reached <= loss:
            break
    return epochs, reached, took


def bench_replies() -> dict[str, dict[str, float]]:
    """Time each way to answer, in turns; returns figures by way."""
    ways = {name: answerer(name) for name in REPLY}
    rates, texts = {name: [] for name in REPLY}, {}
    for _ in range(ROUNDS):
        for name, answer in ways.items():
            chats = questions(REPLY[name])
            started = time.perf_counter()
            samples = answer(chats)
            took = time.perf_counter() - started
            told(name, took)
            rates[name].append(sum(len(ids) for _, ids in samples) / took)
            texts[name] = [text for text, _ in samples]
    reference = texts["generate(), padded batches"]
    return {
        name: {
            "tokens a second": statistics.median(rates[name]),
            "same answers": statistics.mean(
                a == b for a, b in zip(texts[name], reference, strict=False)
            ),
        }
        for name in REPLY
    }


def questions(n: int) -> list[list[dict[str, str]]]:
    """Return the first questions of the eval, each as a chat."""
    cases = tidewater.load_cases("eval", n)
    return [[{"role": "user", "content": case["question"]}] for case in cases]


def answerer(name: str) -> Any:
    """Return a function from chats to (text, token ids) of each reply."""
    if name.startswith("CTranslate2"):
        kind = "int8" if "8" in name else "float32"
        model = LocalModel(models.LAPTOP, ADAPTER, "ctranslate2", compute_type=kind)
        return lambda chats: [(s.text, s.ids) for (s,) in model.sample(chats)]
    model = LocalModel(models.LAPTOP, ADAPTER, "transformers")
    if "bf16" in name:
        model.model.bfloat16()
    model.batch = 1 if "one by one" in name else 64

    def answer(chats: list) -> list:
        # In the order asked, as a loop over questions does it; sample() alone sorts.
        replies = []
        for start in range(0, len(chats), model.batch):
            replies += model.sample(chats[start : start + model.batch])
        return [(s.text, s.ids) for (s,) in replies]

    return answer


def peak(name: str) -> float:
    """Peak memory of one way in a process of its own, in GiB."""
    print(f"{name}: peak memory", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--peak", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def alone(name: str) -> None:
    """Run one way briefly and print the peak memory of this process."""
    if name in REPLY:
        answerer(name)(questions(min(64, REPLY[name])))
    else:
        with tempfile.TemporaryDirectory() as folder:
            (one,) = trainers(folder, (name if name in TRAIN[:3] else FIRST,)).values()
            one.args.max_steps = 3
            one.train()
    status = Path("/proc/self/status")  # rusage would begin at the parent's peak
    if status.exists():
        peak = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        print(int(peak.split()[1]) / 2**20)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30)


def table(title: str, found: dict[str, dict[str, float]], base: str) -> str:
    """Write figures as Markdown; the last column is the ratio to `base`."""
    names = list(next(iter(found.values())))
    lines = [f"| {title} | {' | '.join(names)} | times {base} |"]
    lines.append("| --- |" + " --- |" * (len(names) + 1))
    for name, row in found.items():
        ratio = row["tokens a second"] / found[base]["tokens a second"]
        cells = [f"{row['tokens a second']:,.0f}"]
        cells += [f"{row[key]:.3g}" for key in names[1:]]
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Compare, print and save."""
    if sys.argv[1:2] == ["--peak"]:
        alone(sys.argv[2])
        return
    models.quiet()
    kept = RUNS / "bench_training.json"
    saved = json.loads(kept.read_text()) if kept.exists() else {"results": {}}
    results, cards = saved["results"], saved.get("cards", {})
    for part in sys.argv[1:] or PARTS:
        started = time.perf_counter()
        found = PARTS[part]()
        for name, row in found.items():
            row["peak GiB"] = peak(name)
        results[part] = found
        command = f"python tests/bench/bench_training.py {part}"
        cards[part] = course.run_card(command, round(time.perf_counter() - started, 1))
    results["table"] = "\n\n".join(
        table(part, results[part], next(iter(results[part])))
        for part in PARTS
        if part in results
    )
    text = json.dumps({"cards": cards, "results": results}, indent=1)
    (ROOT / "runs").mkdir(exist_ok=True)
    (ROOT / "runs" / "bench_training.json").write_text(text + "\n")
    print(results["table"])
    print("\nSaved runs/bench_training.json; copy it to data/runs.")


PARTS = {"training": bench_training, "replies": bench_replies}


if __name__ == "__main__":
    main()
