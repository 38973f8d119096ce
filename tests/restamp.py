"""Write the shipped run cards anew: configurations under TRL's names, a key of these alone.

Run once, by hand, from the root of a checkout; nothing is trained. It stays in the
history and leaves the tree.
"""

import hashlib
import json
from pathlib import Path

from utils.course.costly import key

RUNS = Path("data/runs")
FORMAT = (
    "The number format was chosen by the speed measured at the start and not logged; "
    "since then it is a setting (bf16)."
)


def sha(adapter):
    """Hash an adapter that an old card does not; it has not changed since."""
    path = Path(adapter) / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sft(old):
    """What notebook 04's recipe was told, as sft.py is told it."""
    steps, rank = old["steps"], old["rank"]
    new = {
        "model_name_or_path": old["model"],
        "data": old["examples"],
        "validation": old["validation"],
        "max_steps": steps,
        "per_device_train_batch_size": old["batch"],
        "learning_rate": old["rate"],
        "lora_r": rank or 32,
        "lora_alpha": 2 * (rank or 32),
        "layers_to_transform": list(range(old["frozen"], 30)),
        "warmup_steps": min(20, steps // 5),
        "bf16": False,
        "seed": old["seed"],
        "logging_steps": old["log_every"],
        "save_steps": old["save_every"],
    }
    if not rank:
        new |= {"use_peft": False, "layers_to_transform": None}
    return new


def tuned(old):
    """A training that went on from an adapter."""
    new = sft(old)
    for name in ("lora_r", "lora_alpha", "layers_to_transform"):
        del new[name]  # they are those of the adapter
    return new | {"adapter": old["adapter"], "sha256": old["sha256"]}


def convert(name, old):
    number = name[:2]
    if name == "05_sweep":
        steps = old["rungs"][-1]
        base = sft(old["base"] | {"steps": steps, "rate": 0, "rank": 32, "frozen": 0})
        for one in ("max_steps", "learning_rate", "lora_r", "lora_alpha"):
            del base[one]
        del base["layers_to_transform"]
        grid = {
            label: {
                "learning_rate": one["rate"],
                "layers_to_transform": list(range(one["frozen"], 30)),
                "lora_r": one["rank"],
                "lora_alpha": 2 * one["rank"],
            }
            for label, one in old["grid"].items()
        }
        return {"base": base, "grid": grid, "rungs": old["rungs"], "keep": old["keep"]}
    if name == "04_sft":
        return sft(old)
    if number == "04":
        return sft(old) | {"questions": old["questions"], "keep_adapter": False}
    if name in ("06_before", "06_more", "07_start"):
        return {
            "model_name_or_path": old["model"],
            "adapter": old["adapter"],
            "sha256": old.get("sha256") or sha(old["adapter"]),
            "dtype": old["dtype"],
            "max_new_tokens": old["max_tokens"],
            "cases": old["cases"],
            "num_generations": old["n"],
            "temperature": old["temperature"],
            "seed": old["seed"],
        }
    if name.startswith("06_rl"):
        return {
            "model_name_or_path": old["model"],
            "adapter": old["adapter"],
            "sha256": old["sha256"],
            "dtype": old["dtype"],
            "data": old["practice"],
            "validation": old["validation"],
            "questions": old["questions"],
            "max_steps": old["steps"],
            "num_generations": old["group"],
            "per_device_train_batch_size": old["prompts"] * old["group"] // 4,
            "gradient_accumulation_steps": 4,
            "learning_rate": old["rate"],
            "warmup_steps": min(5, old["steps"] // 2),
            "temperature": old["temperature"],
            "max_completion_length": old["max_tokens"],
            "bf16": False,
            "hard_share": old["hard_share"],
            "eval_steps": old["judge_every"],
            "save_steps": old["save_every"],
            "seed": old["seed"],
        }
    if name == "06_kept":
        return tuned(old) | {"questions": old["questions"]}
    if name == "06_untrained":
        return {
            "model_name_or_path": old["model"],
            "adapter": None,
            "questions": old["questions"],
        }
    if number == "07":
        return tuned(old | {"sha256": sha(old["adapter"])}) | {
            "questions": old["questions"],
            "keep_adapter": False,
        }
    if number == "11" and "examples" in old:
        return tuned(old) | {"questions": old["questions"], "keep_adapter": False}
    if number == "11":
        return {
            "model_name_or_path": old["model"],
            "adapter": old["adapter"],
            "sha256": old["sha256"],
            "max_new_tokens": old["max_tokens"],
            "compute_type": old["compute_type"],
            "prompt": old["system"],
            "questions": old["questions"],
        }
    raise ValueError(name)


def main():
    for path in sorted(RUNS.glob("*/card.json")):
        card = json.loads(path.read_text())
        if "key" in card:
            continue
        trained = {"steps", "base"} & set(card["config"])
        card["config"] = convert(card["name"], card["config"])
        if trained and "H200" not in card["hardware"]["cpu"]:
            card["note"] = " ".join([card.get("note", ""), FORMAT]).strip()
        del card["recipe"]
        card |= {"key": key(card["config"]), "version": 1}
        path.write_text(json.dumps(card, indent=1) + "\n")
        print(card["name"], card["key"][:12])


if __name__ == "__main__":
    main()
