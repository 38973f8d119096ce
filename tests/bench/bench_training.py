"""Speed of the laptop's model: training against stock TRL, replies against generate().

    python tests/bench/bench_training.py [training] [replies] [--quick]

Ways take turns, each in processes of its own, so that other load hits all alike: the
ratios count. Each is timed alone, and beside a process that keeps one core busy.

Training: the same examples, batches, rank and learning rate. TRL's SFTTrainer is set up
as in its own example: padded, 32 bits on a CPU, gradient checkpointing, an adapter on
all layers, all cores for its threads. The recipe is that of notebook 04, in its later
epochs: it remembers the frozen layers. "bf16" means frozen weights in 16 bits and an
adapter in 32. Two runs at once are two seeds, say; their tokens are added up. Replies:
eval questions, greedily, by the shipped adapter, with a batch on each core.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

import torch
from report import QUICK, THREADS, markdown, peak_mib, save, timed

from utils import tidewater
from utils.course.run import SHIPPED, read_rows, run_card
from utils.training import cpu, sft, weights
from utils.training.engine import Engine

EXAMPLES, BATCH, ROUNDS = (8, 4, 1) if QUICK else (64, 8, 2)
MANY = 2 if QUICK else 128
ADAPTER = SHIPPED / "04_sft" / "adapter"


def configure(epochs):
    """The configuration of the shipped run, for a few steps on a few of its rows."""
    card = json.loads((ADAPTER.parent / "card.json").read_text())
    steps = epochs * EXAMPLES // BATCH
    del card["config"]["questions"]  # none is answered here
    return card["config"] | {
        "data": read_rows(SHIPPED / "04_train.examples.jsonl")[:EXAMPLES],
        "validation": read_rows(SHIPPED / "04_validation.examples.jsonl"),
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "warmup_steps": min(20, steps // 5),
        "logging_steps": 1,
        "save_steps": steps,
    }


def train_by_trl():
    torch.set_num_threads(THREADS)
    job = configure(1) | {"lora_dropout": 0.0, "warmup_steps": 0}
    del job["layers_to_transform"]
    job["model_name_or_path"] = weights.fetch(job["model_name_or_path"])
    job |= {"save_strategy": "no", "eval_strategy": "steps", "report_to": "none"}
    job |= {"eval_steps": job["max_steps"], "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder:
        done = sft.train(job | {"output_dir": folder})
    return figures_of(done["log"])


def train_by_recipe(threads=1, bf16=False):
    """Train an epoch, and then another, which alone counts."""
    weights_in = {"bf16": bf16, "dtype": "bfloat16" if bf16 else "float32"}
    torch.set_num_threads(threads)
    torch.set_num_threads = lambda _: None  # the recipe would set one
    with tempfile.TemporaryDirectory() as folder:
        job = configure(1) | weights_in | {"output_dir": f"{folder}/first"}
        cpu.train_sft(job)
        job |= {"output_dir": folder, "adapter": f"{folder}/first/adapter"}
        return figures_of(cpu.train_sft(job)["log"])


def figures_of(log):
    """Return the seconds of the steps alone, the loss then, and tokens of examples."""
    tokenizer = weights.load_tokenizer()
    chats = [row["prompt"] + row["completion"] for row in configure(1)["data"]]
    texts = tokenizer.apply_chat_template(chats, return_dict=False)
    return {
        "tokens": sum(len(ids) for ids in texts),
        "validation loss": [row["eval_loss"] for row in log if "eval_loss" in row][-1],
        "seconds": [row["seconds"] for row in log if "loss" in row][-1],
    }


def reply(n, backend, compute_type="float32", batch_size=64, dtype="float32"):
    """Answer the first n questions of the eval."""
    how = {"backend": backend, "compute_type": compute_type, "batch_size": batch_size}
    engine = Engine(weights.LAPTOP, ADAPTER, **how)
    size = n  # at a time
    if backend == "transformers":
        size = batch_size  # in the order asked, for the engine would sort them
        torch.set_num_threads(THREADS)
        engine.generators[0].to(getattr(torch, dtype))
    cases = tidewater.load_cases("eval", n)
    chats = [[{"role": "user", "content": case["question"]}] for case in cases]
    started, samples = time.perf_counter(), []
    for start in range(0, n, size):
        samples += [one for (one,) in engine.sample(chats[start : start + size])]
    return {
        "tokens": sum(len(one.ids) for one in samples),
        "texts": [one.text for one in samples],
        "seconds": time.perf_counter() - started,
    }


TRL, PADDED = "TRL as it comes", "generate(), all threads"
TWO = "recipe, bf16, two runs of 1 thread"
WAYS = {
    "training": {
        TRL: train_by_trl,
        "recipe, 32 bits, 1 thread": train_by_recipe,
        "recipe, bf16, all threads": partial(train_by_recipe, THREADS, True),
        "recipe, bf16, 1 thread": partial(train_by_recipe, 1, True),
        TWO: partial(train_by_recipe, 1, True),
    },
    "replies": {
        PADDED: partial(reply, MANY, "transformers"),
        "CTranslate2, 32 bits": partial(reply, MANY, "ctranslate2"),
        "CTranslate2, 8 bits": partial(reply, MANY, "ctranslate2", "int8"),
        "decoder, 32 bits": partial(reply, MANY, "decoder"),
        "decoder, bf16": partial(reply, MANY, "decoder", "bfloat16"),
    },
}
BUSY = [sys.executable, "-c", "while True: pass"]


def run_apart(way, busy):
    """Run one way in processes of its own; return its figures and peak memory."""
    load = subprocess.Popen(BUSY) if busy else None
    command = [sys.executable, __file__, "--way", way, *["--quick"] * QUICK]
    try:
        copies = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            for _ in range(2 if way == TWO else 1)
        ]
        found = [json.loads(one.communicate()[0].splitlines()[-1]) for one in copies]
    finally:
        if load:
            load.kill()
    speed = sum(one["tokens"] / one["seconds"] for one in found)
    print(f"{way}{', busy' * busy}: {speed:.0f} tokens/s", file=sys.stderr, flush=True)
    peak = sum(one["peak GiB"] for one in found)
    return found[0] | {"tokens a second": speed, "peak GiB": peak}


def compare(part):
    """Run the ways of a part in turns; return the figures of its table by way."""
    table = {}
    for way in WAYS[part]:
        quiet = [run_apart(way, False) for _ in range(ROUNDS)]
        busy = run_apart(way, True)
        speeds = [one["tokens a second"] for one in quiet]
        row = {
            "tokens a second": statistics.median(speeds),
            "beside a busy core": busy["tokens a second"],
            "peak GiB": max(one["peak GiB"] for one in quiet),
        }
        if part == "training":
            row["validation loss"] = quiet[0]["validation loss"]
        else:
            reference = table[PADDED]["texts"] if table else quiet[0]["texts"]
            pairs = zip(quiet[0]["texts"], reference, strict=True)
            row["same answers"] = statistics.mean(a == b for a, b in pairs)
            row["texts"] = quiet[0]["texts"]
        table[way] = row
    for row in table.values():
        row.pop("texts", None)
    return table


def make_table(part, found):
    """Write figures as Markdown; the last column is the ratio to the first way."""
    base = next(iter(found))
    names = list(found[base])
    rows = []
    for way, row in found.items():
        ratio = row["tokens a second"] / found[base]["tokens a second"]
        cells = [f"{row[name]:,.0f}" for name in names[:2]]
        cells += [f"{row[name]:.3g}" for name in names[2:]]
        rows.append([way, *cells, f"{ratio:.1f}"])
    return markdown([part, *names, f"times {base}"], rows)


def main():
    if sys.argv[1:2] == ["--way"]:
        weights.silence_logging()
        found = (WAYS["training"] | WAYS["replies"])[sys.argv[2]]()
        print(json.dumps(found | {"peak GiB": peak_mib() / 1024}))
        return
    # A part that is not asked for stays as it was.
    kept = SHIPPED / "bench_training.json"
    content = {"cards": {}, "results": {}} if QUICK else json.loads(kept.read_text())
    results = content["results"]
    for part in [name for name in WAYS if name in sys.argv] or WAYS:
        results[part], seconds = timed(compare, part)
        command = f"python tests/bench/bench_training.py {part}"
        content["cards"][part] = run_card(command, round(seconds, 1))
    tables = [make_table(part, results[part]) for part in WAYS if part in results]
    results["table"] = "\n\n".join(tables)
    save("bench_training", content)


if __name__ == "__main__":
    main()
