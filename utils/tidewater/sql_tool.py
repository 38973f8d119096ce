"""Tidewater's tool: a reply's query, run in a sandbox and graded by its rows."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

from utils.evals.grading import Grade, Grader
from utils.evals.sandbox import SandboxPool
from utils.tidewater.data import DATA

# The live database, and twins of it with other orders, which catch lucky queries.
WAREHOUSES = {
    name: DATA / f"{name}.sqlite" for name in ("warehouse", "twin_a", "twin_b")
}
_FENCE = re.compile(r"```(?:sql|sqlite)[ \t]*\r?\n(.*?)```", re.DOTALL | re.IGNORECASE)
_BARE = re.compile(r"\A\s*((?:select|with)\b.+\bfrom\b.+)\Z", re.IGNORECASE)


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


def rows_of(pool: SandboxPool, queries: Sequence[str]) -> list[str]:
    """Return each query's rows on every database as one text, to compare answers."""
    jobs = [(name, sql) for sql in queries for name in pool.databases]
    rows = [repr(result.rows) for result in pool.map(jobs)]
    size = len(pool.databases)
    return ["|".join(rows[i : i + size]) for i in range(0, len(rows), size)]


@functools.lru_cache(4)
def _grader(pool: SandboxPool | None) -> Grader:
    """Keep a grader, which knows what it has graded; None: with a pool of its own."""
    return Grader(pool or open_pool())


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
    queries = [extract_sql(reply) if reply else None for reply in replies]
    return _grader(pool).grade(cases, queries, progress)
