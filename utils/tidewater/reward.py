"""Rewards: what RL pays for a reply. The right rows, graded as the eval grades them.

The recipe takes one by its file: --reward utils/tidewater/reward.py:rows_correct
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils.evals.grading import Grade
from utils.evals.sandbox import SandboxPool
from utils.serving.modal_sandbox import UnavailableError
from utils.tidewater.sql_tool import extract_sql, grade
from utils.training import examples, weights
from utils.training.engine import Engine

ROOT = Path(__file__).resolve().parents[2]
# What a rule pays for: the case, the query or None, and its grade.
Rule = Callable[[dict[str, Any], str | None, Grade], float]


def correct(case: dict[str, Any], sql: str | None, verdict: Grade) -> float:
    """Pay 1 for the right rows on all three databases, else nothing."""
    return float(verdict.correct)


class Reward:
    """A rule over grades.

    Where no sandbox answers, replies are not wrong: they count as `ungraded` and are
    paid None, which TRL leaves out. The third time in a row UnavailableError is raised.

    Args:
        rule: what is paid for.
        pool: where the queries run; None: the pool that all grading here shares.

    """

    def __init__(self, rule: Rule = correct, pool: SandboxPool | None = None) -> None:
        self.rule, self.pool = rule, pool
        self.ungraded, self._failures = 0, 0

    def __call__(
        self, completions: list[list[dict[str, str]]], case: list[str], **more: Any
    ) -> list[float | None]:
        """Pay completions as TRL calls a reward; `case` is a column of JSON texts."""
        replies = [messages[0]["content"] for messages in completions]
        paid = self.scores([json.loads(text) for text in case], replies)
        if self.ungraded and "log_metric" in more:
            more["log_metric"]("ungraded", self.ungraded)  # all so far
        return paid

    def scores(
        self, cases: Sequence[dict], replies: Sequence[str]
    ) -> list[float | None]:
        """Return what each reply to its case is paid."""
        try:
            verdicts, self._failures = self.grades(cases, replies), 0
        except UnavailableError as error:
            self.ungraded += len(replies)
            self._failures += 1
            if self._failures == 3:
                raise
            print(f"{len(replies)} replies are ungraded: {error}", flush=True)
            return [None] * len(replies)
        return [
            self.rule(case, extract_sql(reply), verdict)
            for case, reply, verdict in zip(cases, replies, verdicts, strict=True)
        ]

    def grades(self, cases: Sequence[dict], replies: Sequence[str]) -> list[Grade]:
        """Grade replies as the eval does."""
        return grade(cases, replies, self.pool)


_REWARD = Reward()


def rows_correct(
    completions: list[list[dict[str, str]]], case: list[str], **more: Any
) -> list[float | None]:
    """Pay 1 for the right rows on all three databases: the reward of notebook 06."""
    return _REWARD(completions, case, **more)


def sample_and_grade(config: dict[str, Any]) -> dict[str, Any]:
    """Reply n times to each case and grade the replies: a job for `costly.run`.

    Args:
        config: "model_name_or_path", "dtype" and "adapter" of the model, "cases",
            "num_generations", "temperature", "seed" and "max_new_tokens".

    Returns {"found": a list a case of [text, count, correct, ended]}.

    """
    from peft import PeftModel

    model, tokenizer = weights.load(config["model_name_or_path"], dtype=config["dtype"])
    model = PeftModel.from_pretrained(model, str(ROOT / config["adapter"]))
    engine = Engine.from_model(model, tokenizer, config["max_new_tokens"])
    engine.sync_weights(config["seed"])
    chats = [[{"role": "user", "content": c["question"]}] for c in config["cases"]]
    samples = engine.sample(chats, config["num_generations"], config["temperature"])
    reward, found = Reward(), []
    for case, replies in zip(config["cases"], samples, strict=True):
        counts = Counter((one.text, one.finish_reason == "stop") for one in replies)
        verdicts = reward.grades([case] * len(counts), [text for text, _ in counts])
        rows = zip(counts.items(), verdicts, strict=True)
        found.append([[text, n, v.correct, end] for ((text, end), n), v in rows])
    return {"found": found}


def right_examples(cases: Sequence[dict], found: Sequence[list]) -> list[dict]:
    """Make training examples of the different right replies that samples hold.

    `found` is that of `sample_and_grade`, a list a case.
    """
    made = []
    for case, replies in zip(cases, found, strict=True):
        right = [text for text, _, ok, _ in replies if ok]
        made += [examples.example(case["question"], text) for text in right]
    return made
