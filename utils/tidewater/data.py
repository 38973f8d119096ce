"""Tidewater's data: its prompts, its cases, its logs and the recorded replies.

To put your own product into the course, write this folder for it; nothing outside it
knows about coffee.
"""

import json
import runpy
from pathlib import Path
from typing import Any

from utils.evals import cases
from utils.evals.harness import RecordedModel
from utils.evals.types import Reply
from utils.logs import traces
from utils.logs.traces import Trace

DATA = Path(__file__).resolve().parents[2] / "data"
# The table of each column that only one table has, for conditions that are added.
ONLY_IN = {
    "channel": "order_lines",
    "category": "order_lines",
    "product": "order_lines",
    "plan": "subscriptions",
    "carrier": "shipments",
    "topic": "tickets",
}
SPLITS = ("eval", "practice", "practice_more", "exam")
PROMPTS = ("launch", "terse", "caveman", "four_rules", "fewshot", "rules")


def read_jsonl(name: str) -> list[dict[str, Any]]:
    """Read one of the course's own JSON-lines files, by its path below data/."""
    with (DATA / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load_prompt(name: str) -> str:
    """Return a system prompt by its name, one of `PROMPTS`."""
    return (DATA / "prompts" / f"{name}.txt").read_text(encoding="utf-8").strip()


def load_cases(split: str = "eval", n: int | None = None) -> list[dict[str, Any]]:
    """Return the first `n` cases of a split; None: all.

    'eval' (250), 'practice' (500), 'practice_more' (2,599), and 'exam' (1,000), which
    is for the last comparison of finished models. The files are shuffled, so the first
    n are a random sample, and always the same.
    """
    return read_jsonl(f"{split}.jsonl")[:n]


def frozen_eval() -> str:
    """Return the eval's SHA-256. Raises ValueError if data/eval.jsonl has changed."""
    cases.load(DATA / "eval.jsonl")
    return (DATA / "eval.sha256").read_text().split()[0]


def load_glossary(use: str) -> dict[str, dict[str, str]]:
    """Return what users say and the SQL condition it stands for, by kind of phrase.

    'swap' has phrases that can take each other's place, 'add' those that can be added
    to a question.
    """
    return json.loads((DATA / "glossary.json").read_text(encoding="utf-8"))[use]


def build_twin_c(path: Path) -> Path:
    """Build the fourth warehouse, with rows against each house rule; takes a second."""
    return Path(runpy.run_path(str(DATA / "warehouse.py"))["build_edges"](path))


def load_logs() -> list[Trace]:
    """Return the three weeks of traces, oldest first."""
    found, bad = traces.read(DATA / "traces.jsonl")
    if bad:
        raise ValueError(f"data/traces.jsonl is damaged at line {bad[0].number}")
    return found


def recorded_model(prompt_name: str) -> RecordedModel:
    """Return the frontier model's recorded replies under one prompt.

    Under 'launch' it also knows the questions that users asked in the logs.
    """
    replies = {}
    if prompt_name == "launch":
        for trace in load_logs():
            if trace.reply:
                replies[trace.question] = Reply(trace.reply, *trace.tokens)
    questions = {case["id"]: case["question"] for case in load_cases()}
    for row in read_jsonl(f"recorded/{prompt_name}.jsonl"):
        tokens = row["input_tokens"], row["output_tokens"]
        replies[questions[row["id"]]] = Reply(row["reply"], *tokens)
    return RecordedModel(replies, load_prompt(prompt_name), name="frontier-llm")
