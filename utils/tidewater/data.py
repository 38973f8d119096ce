"""Everything that is Tidewater's: its prompts, its tool, its cases, its logs.

To put your own product into the course, write this module for it; nothing else in
`utils` knows about coffee. What counts as right is in `utils.grading`.
"""

import functools
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.evals.grading import Grade, Grader
from utils.evals.harness import RecordedModel, Reply
from utils.evals.sandbox import SandboxPool
from utils.logs import traces
from utils.logs.traces import Trace

DATA = Path(__file__).resolve().parents[2] / "data"
WAREHOUSES = {
    name: DATA / f"{name}.sqlite" for name in ("warehouse", "twin_a", "twin_b")
}
# The table of each column that only one table has, for conditions that are added.
ONLY_IN = {
    "channel": "order_lines",
    "category": "order_lines",
    "product": "order_lines",
}
ONLY_IN |= {"plan": "subscriptions", "carrier": "shipments", "topic": "tickets"}
PROMPTS = ("launch", "terse", "caveman", "four_rules", "fewshot", "rules")
_FENCE = re.compile(r"```(?:sql|sqlite)[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)

_BARE = re.compile(r"\A\s*((?:select|with)\b.+\bfrom\b.+)\Z", re.IGNORECASE)


def read_jsonl(name: str) -> list[dict[str, Any]]:
    """Read one of the course's own JSON-lines files, by its path below data/."""
    with (DATA / name).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def load_prompt(name: str) -> str:
    """Return a system prompt by name. Raises ValueError that lists the names."""
    if name not in PROMPTS:
        raise ValueError(f"no prompt {name!r}; there are {', '.join(PROMPTS)}")
    return (DATA / "prompts" / f"{name}.txt").read_text(encoding="utf-8").strip()


def load_cases(split: str = "eval", n: int | None = None) -> list[dict[str, Any]]:
    """Return the first `n` cases of 'eval' (250) or 'practice' (500); None: all.

    The files are shuffled, so the first n are a random sample, and always the same.
    """
    if split not in ("eval", "practice"):
        raise ValueError(f"no split {split!r}; there are 'eval' and 'practice'")
    return read_jsonl(f"{split}.jsonl")[:n]


def frozen_eval() -> str:
    """Return the eval's SHA-256. Raises ValueError if data/eval.jsonl has changed."""
    found = hashlib.sha256((DATA / "eval.jsonl").read_bytes()).hexdigest()
    if found != (DATA / "eval.sha256").read_text().split()[0]:
        raise ValueError(
            "data/eval.jsonl is not the eval that was frozen (data/eval.sha256). "
            "Restore it; results on another eval cannot be compared with earlier ones"
        )
    return found


def load_glossary(use: str) -> dict[str, dict[str, str]]:
    """Return what users say and the SQL condition it stands for, by kind of phrase.

    'swap' has phrases that can take each other's place, 'add' those that can be added
    to a question. Raises ValueError for another use.
    """
    uses = json.loads((DATA / "glossary.json").read_text(encoding="utf-8"))
    if use not in uses:
        raise ValueError(f"no use {use!r}; there are {', '.join(uses)}")
    return uses[use]


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


def extract_sql(reply: str) -> str | None:
    """Return the last fenced ```sql block of a reply without its semicolon, or None.

    A reply that is nothing but a query on one line, as a tuned model sends it, needs no
    fence.
    """
    blocks = _FENCE.findall(reply) or _BARE.findall(reply)
    return blocks[-1].strip().rstrip(";").rstrip() if blocks else None


class SqlTool:
    """The assistant's one tool: run a query on the live warehouse, in the sandbox."""

    name = "run_sql"

    def __init__(self, pool: SandboxPool, database: str = "warehouse") -> None:
        self.pool, self.database = pool, database

    def extract(self, reply: str) -> dict[str, Any] | None:
        """Read the query out of a reply."""
        sql = extract_sql(reply)
        return None if sql is None else {"sql": sql}

    def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the query: {'rows': list of lists or None, 'error': text or None}."""
        result = self.pool.run(arguments["sql"], self.database)
        if result.error:
            return {"rows": None, "error": f"{result.error}: {result.message}"}
        rows = [[_plain(value) for value in row] for row in result.rows]
        return {"rows": rows, "error": None}

    def repair(self, error: str) -> str:
        """Word the repair turn."""
        return f"The query failed. {error}\nSend a corrected query in a ```sql block."


def _plain(value: Any) -> Any:
    """Say as JSON what SQLite has and JSON lacks: blobs and infinity."""
    if isinstance(value, bytes):
        return value.hex()
    return str(value) if value in (math.inf, -math.inf) else value


def open_pool(**settings: Any) -> SandboxPool:
    """Open a sandbox pool over the live warehouse and both twins."""
    return SandboxPool(WAREHOUSES, **settings)


@functools.cache
def _grader() -> Grader:
    """Open one pool for all that this process grades."""
    return Grader(open_pool())


def grade(
    cases: Sequence[dict[str, Any]],
    replies: Sequence[str | None],
    pool: SandboxPool | None = None,
    progress: str | None = None,
) -> list[Grade]:
    """Grade one reply a case by the rows of its query, on every database.

    `pool` is where the queries run; None is one shared pool of this process. Raises
    ValueError where there are not as many replies as cases.
    """
    grader = Grader(pool) if pool else _grader()
    queries = [extract_sql(reply) if reply else None for reply in replies]
    return grader.grade(cases, queries, progress)
