"""The confined process in which SQL that a model wrote is run.

`utils.evals.sandbox` starts this file as a program and speaks JSON lines with it: a
line of jobs in, a line for each answer out. It needs the standard library only.

Covered, on Linux:
- Writing: the file is opened read-only and immutable, and SQLite's authorizer admits
  only SELECT, recursion, reads of the schema's tables, and functions from a list.
- Other files, the network, other programs: the process can open and start nothing, and
  its environment is empty, so it holds no keys.
- Time: a progress handler ends a query at its deadline. One call of REPLACE can run for
  minutes without asking that handler: then the parent kills the process.
- Memory of SQLite and of the process, rows, bytes of a result, length of the SQL.
- Answers that change: no random number, no time zone, and the clock of `Limits.now`.

Not covered:
- A bug in SQLite or Python that lets a query run machine code. Such code keeps the
  limits above and is your account otherwise.
- Reading: a query sees all rows. Give it a copy without what its user must not see.
- Processor time below the deadline: each worker may keep one core busy.
- macOS caps SQLite's memory and not the process's; root may start processes on Linux.
"""

import contextlib
import json
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from operator import methodcaller

GRACE = 0.5  # seconds past the deadline before a worker is killed
OUT_OF_MEMORY = 86  # exit status of a worker too short of memory to say so
# These can read the clock: `freeze_clock` puts others in their place.
CLOCK = frozenset(
    "current_date current_time current_timestamp date datetime julianday strftime time "  # noqa: SIM905
    "timediff unixepoch".split()
)
# What analytics needs. Not random(): one query has one answer. Not zeroblob, which only
# fills memory, nor what names a file, an extension or a build.
FUNCTIONS = CLOCK.union(
    "-> ->> abs avg bm25 ceil ceiling char coalesce concat concat_ws count cume_dist "  # noqa: SIM905
    "dense_rank exp first_value floor format glob group_concat hex highlight if ifnull "
    "iif instr json json_array json_array_length json_extract json_group_array "
    "json_group_object json_object json_quote json_type json_valid lag last_value lead "
    "length like likelihood likely ln log log10 log2 lower ltrim match max median min "
    "mod nth_value ntile nullif offsets percent_rank pi pow power printf quote rank "
    "replace round row_number rtrim sign snippet sqrt string_agg substr substring sum "
    "total trim trunc typeof unicode unlikely upper".split()
)
# What a schema has besides tables: name and kind.
SPECIAL = """
SELECT name, CASE WHEN type = 'view' THEN 'view'
  WHEN sql LIKE '%using%fts%' THEN 'full-text table' ELSE 'virtual table' END
FROM sqlite_master WHERE rootpage = 0 AND type IN ('view', 'table')"""
COMMENT = r"--[^\n]*|/\*.*?(?:\*/|\Z)"
LEAD = re.compile(rf"(?:[ \t\n\f\r;\ufeff]|{COMMENT})*+", re.S)
SYNTAX = re.compile("syntax error|unrecognized token|incomplete input|null character")
# JSON has no bytes: a blob travels as {"hex": text}.
DECODE = json.JSONDecoder(object_hook=lambda blob: bytes.fromhex(blob["hex"])).decode
ENCODE = json.JSONEncoder(default=lambda blob: {"hex": blob.hex()}).encode


@dataclass(frozen=True)
class Limits:
    """What one query may use."""

    seconds: float = 2.0
    rows: int = 5_000
    result_bytes: int = 2_000_000  # 8 a value, and 1 a character or a byte of a blob
    memory_mb: int = 256  # of its whole worker, at least 64; half of it for SQLite
    sql_bytes: int = 100_000
    now: str | None = None  # what the clock says; None: a query that asks is denied

    def __post_init__(self) -> None:
        if self.now:
            datetime.fromisoformat(self.now)  # ValueError if it is no time


class Failed(Exception):  # noqa: N818
    """Ends a query; the arguments are those of its Result after the rows."""


def serve() -> None:
    """Confine this process; then a line of jobs in, a line for each answer out."""
    uris, asked = json.loads(sys.stdin.buffer.readline())[0]
    limits = Limits(**asked)
    os.environ["TZ"] = "UTC0"  # 'localtime' is the same on all machines
    time.tzset()
    try:
        databases = {name: open_readonly(uri, limits) for name, uri in uris.items()}
    except sqlite3.Error as error:
        return _send("crashed", str(error), 0.0, [], None)
    confine(limits)
    _send(None, "", 0.0, [], [])
    try:
        for line in sys.stdin.buffer:
            jobs = json.loads(line)
            # Ends this process if its parent dies and can kill it no more.
            signal.alarm(int(len(jobs) * (limits.seconds + GRACE)) + 2)
            for name, sql in jobs:
                _send(*databases[name](sql))
            signal.alarm(0)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _send(*answer: object) -> None:
    sys.stdout.buffer.write(ENCODE(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def confine(limits: Limits) -> None:
    """Allow some memory; no core dump, no byte into a file, no open, no process."""
    import resource  # not on Windows

    caps = dict.fromkeys(("CORE", "FSIZE", "NOFILE", "NPROC"), 0)
    caps["AS"] = limits.memory_mb << 20
    for cap, most in caps.items():
        with contextlib.suppress(ValueError, OSError):  # macOS does not have them all
            resource.setrlimit(getattr(resource, f"RLIMIT_{cap}"), (most, most))


def open_readonly(uri: str, limits: Limits) -> Callable[[str], tuple]:
    """Open a database so that SQLite refuses all but reading.

    Returns a function from SQL to (error, message, seconds, columns, rows).
    """
    deadline, refusals = 0.0, []  # a refusal is "" where SQLite has its own words
    # No cache of statements: nothing of one query is there for the next.
    db = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
    db.text_factory = methodcaller("decode", "utf-8", "replace")
    db.execute(f"PRAGMA hard_heap_limit = {limits.memory_mb << 19}")
    db.execute("PRAGMA temp_store = memory")
    # The authorizer judges what views do, too, so they may call functions.
    db.execute("PRAGMA trusted_schema = 1")

    freeze_clock(db, limits.now, refusals)
    # The schema can be read, for prompts tell it anyway; statistics cannot.
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    readable = {n for n in names if not n.startswith("sqlite_")} | {"sqlite_master"}
    # Tables that are functions; new versions list those of JSON only after their use.
    modules = {"json_each", "json_tree", "jsonb_each", "jsonb_tree"}
    modules |= {name for (name,) in db.execute("PRAGMA module_list")}
    special = dict(db.execute(SPECIAL))
    db.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    db.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, 200)
    db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(limits.result_bytes, 1_000_000))
    db.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000)
    db.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, limits.sql_bytes)

    def authorize(action: int, first: str, second: str, *_: str) -> int:
        if opening:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ:
            # COUNT(*) reads no column, and perhaps of a CTE: then `second` is empty.
            allowed = first in readable or not (second or first.lower() in modules)
        elif action == sqlite3.SQLITE_FUNCTION:
            allowed = second.lower() in FUNCTIONS
        else:
            allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE)
        if allowed:
            return sqlite3.SQLITE_OK
        refusals.append("")
        return sqlite3.SQLITE_DENY

    def answer(sql: str) -> tuple:
        nonlocal deadline
        begun = time.monotonic()
        deadline = begun + limits.seconds
        refusals.clear()
        error, message, columns, rows = None, "", [], []
        try:
            columns, rows = _fetch(db, sql, limits)
        except Failed as failed:
            error, message = failed.args
        except (sqlite3.Error, UnicodeError, MemoryError) as failed:
            error = "denied" if refusals else _name(failed)
            message = "".join(refusals) or str(failed) or "no memory is left"
            for name, kind in special.items():
                if re.search(rf"\b{re.escape(name)}\b", sql, re.I):
                    message += f"; {name} is a {kind}"
        seconds = time.monotonic() - begun
        if seconds > limits.seconds:  # interrupted, or done too late
            error, message = "timeout", f"the most is {limits.seconds:g} seconds"
        return error, message[:500], seconds, columns, rows

    db.set_progress_handler(lambda: time.monotonic() > deadline, 2_000)
    db.set_authorizer(authorize)
    # At its first use a virtual table runs statements that are denied to queries.
    opening = True
    deadline = time.monotonic() + limits.seconds
    for name in (name for name, kind in special.items() if kind != "view"):
        for condition in ("", f"WHERE {quoted(name)} MATCH 'a'"):
            with contextlib.suppress(sqlite3.Error):
                db.execute(f"SELECT 1 FROM {quoted(name)} {condition} LIMIT 1")
    opening = False
    return answer


def quoted(name: str) -> str:
    """Write a name so that SQL takes it for one."""
    return '"' + name.replace('"', '""') + '"'


def freeze_clock(db: sqlite3.Connection, now: str | None, refusals: list[str]) -> None:
    """Replace the functions that read the clock by ones that say `now`.

    Where that is None they end the query, and `refusals` gets the reason. They see the
    values that a function gets, so no spelling hides the clock, and no literal looks
    like it.
    """
    now = now and str(datetime.fromisoformat(now))
    # Theirs are the real functions. They never meet the clock.
    real = sqlite3.connect(":memory:", isolation_level=None)
    real.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 100_000)

    def frozen(name: str) -> Callable:
        before = 1 if name == "strftime" else 0  # its format comes before the time
        plain = name.replace("current_timestamp", "datetime").removeprefix("current_")

        @lru_cache(1024, typed=True)  # a column holds few different dates
        def call(*values: object) -> object:
            # For SQLite this is "string or blob too big"; the cache must stay small.
            if any(len(v) > 1_000 for v in values if isinstance(v, (str, bytes))):
                raise OverflowError
            times = list(values[before:]) or ["now"]
            if _word(times[0]) in ("subsec", "subsecond"):
                times.insert(0, "now")
            if not now and "now" in map(_word, times):
                refusals.append(f"{name}() asks what time it is: write the date")
                raise ValueError
            times = [now if _word(one) == "now" else one for one in times]
            known = [*values[:before], *times]
            marks = ",".join("?" * len(known))
            return real.execute(f"SELECT {plain}({marks})", known).fetchone()[0]

        return call

    there = {name for (name,) in real.execute("SELECT name FROM pragma_function_list")}
    for name in CLOCK & there:
        count = {"timediff": 2}.get(name, 0 if name.startswith("current") else -1)
        db.create_function(name, count, frozen(name), deterministic=True)


def _word(value: object) -> str:
    """Return a value as the functions for dates read it: up to a NUL, in any case."""
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return text.partition("\0")[0].strip().lower()


def _fetch(
    db: sqlite3.Connection, sql: str, limits: Limits
) -> tuple[list[str], list[tuple]]:
    """Return names of columns, and rows; raises Failed past the limits."""
    word = sql[LEAD.match(sql).end() :][:7].lower()
    if word.startswith(("explain", "vacuum")):  # the authorizer is not asked
        raise Failed("denied", f"no {word}")
    cursor = db.execute(sql.rstrip("; \t\r\n"))  # ;; is two statements for Python
    if cursor.description is None:
        raise Failed("denied" if word else "empty", "there is no SELECT")
    columns = [column[0] for column in cursor.description]
    rows, size = [], sum(map(len, columns))
    for row in cursor:
        texts = [len(value) for value in row if isinstance(value, (str, bytes))]
        size += 8 * len(row) + sum(texts)
        if size > limits.result_bytes:
            raise Failed("too_many_bytes", f"the most is {limits.result_bytes:,}")
        if len(rows) == limits.rows:
            raise Failed("too_many_rows", f"the most is {limits.rows:,}")
        rows.append(row)
    return columns, rows


def _name(error: Exception) -> str:
    """Return the name in `sandbox.ERRORS` of what SQLite or Python raised."""
    code = getattr(error, "sqlite_errorname", None) or ""
    if isinstance(error, MemoryError) or code.endswith("NOMEM"):
        return "memory"
    if code == "SQLITE_TOOBIG":
        return "too_many_bytes"
    if "one statement" in str(error):
        return "multiple_statements"
    if isinstance(error, UnicodeError) or SYNTAX.search(str(error)):
        return "syntax"
    return "sql_error"


if __name__ == "__main__":
    serve()
