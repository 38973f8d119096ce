"""Speed of the laptop's model: training against stock TRL, replies against generate().

    python tests/bench/bench_training.py [training] [replies] [--quick]

Ways take turns, each in a process of its own, so that other load hits all alike: the
ratios count. TRL and generate() have all cores for their threads; the recipe trains on
one, and CTranslate2 works at a batch on each core.

Training: the same examples, batches, rank and learning rate. TRL's SFTTrainer is set up
as in its own example: padded, 32 bits on a CPU, gradient checkpointing, an adapter on
all layers. The recipe is that of notebook 04; in its first epoch it sees each text for
the first time, later it remembers the frozen layers. With layers frozen it learns less
in an epoch. So it is also timed with none frozen, and until its validation loss is as
low as TRL's after one epoch. Replies: eval questions, greedily, by the shipped adapter.
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
FEW, SOME, MANY = (2, 2, 2) if QUICK else (6, 16, 128)  # slow ways are asked less
ADAPTER = SHIPPED / "04_sft" / "adapter"


def configure(epochs):
    """The configuration of the shipped run, for a few steps on a few of its rows."""
    card = json.loads((ADAPTER.parent / "card.json").read_text())
    steps = epochs * EXAMPLES // BATCH
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


def train_by_recipe(epochs=1, **change):
    with tempfile.TemporaryDirectory() as folder:
        done = cpu.train_sft(configure(epochs) | {"output_dir": folder} | change)
    return figures_of(done["log"], epochs)


def train_later():
    """Train an epoch, and then another, which alone counts."""
    with tempfile.TemporaryDirectory() as folder:
        cpu.train_sft(configure(1) | {"output_dir": folder})
        return train_by_recipe(adapter=f"{folder}/adapter")


def figures_of(log, epochs=1):
    """Return the seconds of the steps alone, the loss then, and tokens of examples."""
    tokenizer = weights.load_tokenizer()
    chats = [row["prompt"] + row["completion"] for row in configure(1)["data"]]
    texts = tokenizer.apply_chat_template(chats, return_dict=False)
    return {
        "tokens": epochs * sum(len(ids) for ids in texts),
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


TRL, PADDED = "TRL as it comes", "generate(), padded batches"
WAYS = {
    "training": {
        TRL: train_by_trl,
        "recipe, no layer frozen": partial(train_by_recipe, layers_to_transform=None),
        "recipe, first epoch": train_by_recipe,
        "recipe, later epochs": train_later,
    },
    "replies": {
        "generate(), one by one": partial(reply, FEW, "transformers", batch_size=1),
        PADDED: partial(reply, MANY, "transformers"),
        "generate(), the same in bf16": partial(
            reply, SOME, "transformers", dtype="bfloat16"
        ),
        "CTranslate2, 32 bits": partial(reply, MANY, "ctranslate2"),
        "CTranslate2, 8 bits": partial(reply, MANY, "ctranslate2", "int8"),
    },
}
LONGER = {f"recipe, {n} epochs": partial(train_by_recipe, n) for n in range(2, 7)}


def run_apart(way):
    """Run one way in a process of its own; return its figures and peak memory."""
    command = [sys.executable, __file__, "--way", way, *["--quick"] * QUICK]
    found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    print(f"{way}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    return found


def compare(part):
    """Run the ways of a part in turns; return the figures of its table by way."""
    runs = {way: [] for way in WAYS[part]}
    for _ in range(ROUNDS):
        for way in runs:
            runs[way].append(run_apart(way))
    if part == "training":  # longer and longer, until it is as good as TRL
        for epochs in range(2, 3 if QUICK else 7):
            longer = run_apart(f"recipe, {epochs} epochs")
            if longer["validation loss"] <= runs[TRL][0]["validation loss"]:
                break
        runs[f"recipe, {epochs} epochs"] = [longer]
    table = {}
    for way, found in runs.items():
        first, seconds = found[0], statistics.median(one["seconds"] for one in found)
        row = {"tokens a second": first["tokens"] / seconds}
        if part == "training":
            row |= {"validation loss": first["validation loss"], "seconds": seconds}
        else:
            pairs = zip(first["texts"], runs[PADDED][0]["texts"], strict=False)
            row["same answers"] = statistics.mean(a == b for a, b in pairs)
        table[way] = row | {"peak GiB": max(one["peak GiB"] for one in found)}
    return table


def make_table(part, found):
    """Write figures as Markdown; the last column is the ratio to the first way."""
    base = next(iter(found))
    names = list(found[base])
    rows = []
    for way, row in found.items():
        ratio = row["tokens a second"] / found[base]["tokens a second"]
        cells = [f"{row[name]:.3g}" for name in names[1:]]
        rows.append([way, f"{row[names[0]]:,.0f}", *cells, f"{ratio:.1f}"])
    return markdown([part, *names, f"times {base}"], rows)


def main():
    if sys.argv[1:2] == ["--way"]:
        weights.silence_logging()
        found = (WAYS["training"] | WAYS["replies"] | LONGER)[sys.argv[2]]()
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
