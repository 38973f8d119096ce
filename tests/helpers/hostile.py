"""Queries that mean harm, or might as well. None of them may return a row.

Each line of hostile.jsonl holds "sql" and "errors", the names in
`utils.evals.sandbox.ERRORS` that may come: more than one where versions of SQLite
differ, or it is a race which wall is hit first. A short query is its own name. In the
SQL, `<<text*9>>` is the text nine times, with the numbers 1 to 9 for `#`; BIG, COUNTER
and SIX of this module stand as `${BIG}` and so on.
"""

import json
import re
from pathlib import Path
from string import Template

BIG = "printf('%.*c', 900000, 'a')"  # 900,000 times the letter a
COUNTER = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) "
SIX = "order_lines a, order_lines b, order_lines c, order_lines d, tickets e, tickets f"


def _repeat(found: re.Match) -> str:
    text, times = found[1], int(found[2])
    return "".join(text.replace("#", str(i)) for i in range(1, times + 1))


def _read() -> list[tuple[str, str, set[str]]]:
    """Return name, SQL and errors of each query."""
    queries = []
    for line in Path(__file__).with_suffix(".jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        sql = Template(row["sql"]).safe_substitute(BIG=BIG, COUNTER=COUNTER, SIX=SIX)
        sql = re.sub(r"<<(.*?)\*(\d+)>>", _repeat, sql, flags=re.S)
        queries.append((row.get("name", sql), sql, set(row["errors"])))
    return queries


HOSTILE = _read()
# These run until they are ended.
BOMBS = {name: sql for name, sql, errors in HOSTILE if errors == {"timeout", "memory"}}
