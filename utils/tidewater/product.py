"""Tidewater as a `Product`: what notebooks 01 to 04 may ask of it."""

from collections.abc import Sequence
from typing import Any

import sqlglot

from utils.evals.grading import Grade, Grader
from utils.evals.sandbox import SandboxPool
from utils.logs.traces import Trace
from utils.tidewater import data, sql_tool


class Tidewater:
    """The coffee company whose assistant answers questions with SQL."""

    name = "Tidewater"
    no_answer = "no query"
    # What a reader of its data should know.
    notes = (
        "analysts saw the live warehouse only",
        "users and company are invented",
    )

    def __init__(self, pool: SandboxPool | None = None) -> None:
        """Grade in `pool`, or in one that opens at the first answer."""
        self.prompts = {name: data.load_prompt(name) for name in data.PROMPTS}
        self._grader = Grader(pool) if pool else None

    def logs(self) -> list[Trace]:
        """Return the three weeks of traces, oldest first."""
        return data.load_logs()

    def cases(self, split: str = "eval") -> list[dict[str, Any]]:
        """Return the cases of 'eval', 'practice', 'practice_more' or 'exam'."""
        return data.load_cases(split)

    def extract(self, reply: str) -> str | None:
        """Read the query out of a reply; None if there is none."""
        return sql_tool.extract_sql(reply)

    def grade(
        self, cases: Sequence[dict[str, Any]], answers: Sequence[str | None]
    ) -> list[Grade]:
        """Grade one query a case by its rows on every database.

        The right query is the case's `sql`; in a case made of a trace, its `answer`.
        There the order of rows counts where the right query limits them.
        """
        if self._grader is None:  # kept, for it remembers the right rows
            self._grader = Grader(sql_tool.open_pool())
        cases = [_from_answer(case) | case for case in cases]
        return self._grader.grade(cases, answers)

    def show(self, case: dict[str, Any], answer: str | None) -> str:
        """Write a query a clause a line; as it came where it cannot be parsed."""
        if not answer:
            return f"({self.no_answer})"
        try:
            return sqlglot.transpile(answer, read="sqlite", pretty=True)[0]
        except sqlglot.errors.SqlglotError:
            return answer


def _from_answer(case: dict[str, Any]) -> dict[str, Any]:
    if "answer" not in case:
        return {}
    return {"sql": case["answer"], "ordered": "limit" in case["answer"].lower()}
