"""Run SQL that a model wrote, which is to say hostile SQL, and always get an answer.

Two walls. Inside a worker process SQLite itself says no: the file is opened read-only
and immutable, an authorizer admits SELECT, reads of the schema's tables, functions from
a list and recursion, and a progress handler ends a query at its deadline. Around the
worker stands the operating system: an empty environment, no files, capped memory, and
a parent that kills it when it is late, for one call of REPLACE or LIKE can run for
minutes without asking the progress handler. That costs one query, not the pool.

    with SandboxPool({"live": "data/warehouse.sqlite"}) as pool:
        pool.run("SELECT COUNT(*) FROM tickets").rows      # [(1400,)]

The walls hold SQL. They are no virtual machine: a bug in SQLite that let a query run
machine code could do what your account can.

This file is the worker's program too, so it needs the standard library only.
"""

import contextlib
import json
import os
import queue
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from operator import methodcaller
from pathlib import Path
from sqlite3 import SQLITE_FUNCTION, SQLITE_READ, SQLITE_RECURSIVE, SQLITE_SELECT

ERRORS = {
    "timeout": "ran past its deadline",
    "memory": "wanted more memory than a worker may have",
    "too_many_rows": "gave more rows than allowed",
    "too_many_bytes": "gave, or built on the way, more text than allowed",
    "too_long": "the SQL text itself is longer than allowed",
    "denied": "wanted more than to read the tables",
    "syntax": "is not SQL that SQLite can parse",
    "multiple_statements": "holds more than one statement",
    "empty": "holds no statement",
    "sql_error": "SQLite refused it for another reason, such as an unknown column",
    "crashed": "its worker died at it, twice",
}
# What analytics needs. Not random() or CURRENT_DATE: one query has one answer. Not
# zeroblob, which only fills memory, nor what names a file, an extension or a build.
FUNCTIONS = frozenset(
    "-> ->> abs avg ceil ceiling char coalesce concat concat_ws count cume_dist date "  # noqa: SIM905
    "datetime dense_rank exp first_value floor format glob group_concat hex if ifnull "
    "iif instr json json_array json_array_length json_extract json_group_array "
    "json_group_object json_object json_quote json_type json_valid julianday lag "
    "last_value lead length like likelihood likely ln log log10 log2 lower ltrim max "
    "median min mod nth_value ntile nullif percent_rank pi pow power printf quote rank "
    "replace round row_number rtrim sign sqrt strftime string_agg substr substring sum "
    "time timediff total trim trunc typeof unicode unixepoch unlikely upper".split()
)
COMMENT = r"--[^\n]*|/\*.*?(?:\*/|\Z)"
LEAD = re.compile(rf"(?:[ \t\n\f\r;\ufeff]|{COMMENT})*+", re.S)
NOW = re.compile(rf"{COMMENT}|[(,]\s*('now')\s*[,)]", re.S | re.I)
SYNTAX = re.compile("syntax error|unrecognized token|incomplete input|null character")
DECODE = json.JSONDecoder(object_hook=lambda blob: bytes.fromhex(blob["hex"])).decode
ENCODE = json.JSONEncoder(default=lambda blob: {"hex": blob.hex()}).encode

GRACE = 0.5  # seconds past the deadline before a worker is killed
STARTUP = 30.0  # seconds that a worker may take to start
OUT_OF_MEMORY = 86  # exit status of a worker too short of memory to say so
# The most that a worker is given at a time: queries, their seconds, their text.
BATCH, BATCH_SECONDS, BATCH_BYTES = 256, 0.02, 1_000_000


@dataclass(frozen=True)
class Limits:
    """What one query may use."""

    seconds: float = 2.0
    rows: int = 5_000
    result_bytes: int = 2_000_000  # 8 a value, and 1 a character or a byte of a blob
    memory_mb: int = 256  # of its whole worker; half of it for SQLite
    sql_bytes: int = 100_000

    def __post_init__(self) -> None:
        if min(asdict(self).values()) <= 0 or self.memory_mb < 64:
            raise ValueError("limits must be positive, and memory_mb at least 64")


@dataclass(frozen=True)
class Result:
    """The rows, or the name (one of ERRORS) and the message of what went wrong."""

    rows: list[tuple] | None
    error: str | None
    message: str = ""
    seconds: float = 0.0  # of the query alone
    columns: tuple[str, ...] = ()


class _Failed(Exception):  # noqa: N818
    """Ends a query; the arguments are those of its Result after the rows."""


class SandboxPool:
    """Worker processes that answer SQL on read-only databases; a context manager.

    `databases` maps names to SQLite files, which nobody may write to meanwhile. Workers
    start when first needed. Threads may share a pool. Raises FileNotFoundError or
    ValueError for a bad file, RuntimeError on Windows or if a worker does not start.
    """

    def __init__(
        self,
        databases: dict[str, Path | str],
        workers: int | None = None,
        limits: Limits = Limits(),
    ) -> None:
        if os.name != "posix":
            raise RuntimeError("SandboxPool needs Linux or macOS; on Windows use WSL")
        if not databases or (workers is not None and workers < 1):
            raise ValueError("SandboxPool needs at least one database and one worker")
        self.size = workers or min(os.cpu_count() or 1, 8)
        self.limits, self._pid = limits, os.getpid()
        self.databases = {name: Path(path) for name, path in databases.items()}
        self._uris = {name: _uri(path) for name, path in self.databases.items()}
        self._workers = [_Worker(self._uris, limits) for _ in range(self.size)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        # Runs once: at close(), when the pool is collected, or when Python exits.
        self._close = weakref.finalize(self, _bury, self._workers, self._pid)

    def __enter__(self) -> "SandboxPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the workers; the pool takes no more queries."""
        self._close()

    def run(self, sql: str, database: str | None = None) -> Result:
        """Answer one query on `database`, or on the first one."""
        name = next(iter(self._uris)) if database is None else database
        return self.map([(name, sql)])[0]

    def map(
        self, jobs: Iterable[tuple[str, str]], progress: str | None = None
    ) -> list[Result]:
        """Answer (database name, SQL) jobs, in their order; `progress` labels a bar.

        Raises ValueError for an unknown database and TypeError for SQL that is no
        string, before anything runs. Whatever the SQL does is in the Results.
        """
        from tqdm import tqdm  # the worker has no such thing

        if os.getpid() != self._pid:
            raise RuntimeError(
                "this pool was made before a fork, make one in the child"
            )
        jobs = list(jobs)
        results: list[Result | None] = [None] * len(jobs)
        todo: deque[int] = deque()
        for i, (database, sql) in enumerate(jobs):
            if database not in self._uris:
                raise ValueError(f"no database {database!r}, only {list(self._uris)}")
            if not isinstance(sql, str):
                raise TypeError(f"job {i}: SQL is a string, not {type(sql).__name__}")
            if len(sql.encode("utf-8", "surrogatepass")) <= self.limits.sql_bytes:
                todo.append(i)
            else:
                message = f"the SQL is longer than {self.limits.sql_bytes:,} bytes"
                results[i] = Result(None, "too_long", message)
        look = {"leave": False, "delay": 1.0, "disable": progress is None}
        with tqdm(total=len(todo), desc=progress, **look) as bar:
            self._answer(jobs, todo, results, bar.update)
        return results

    def _answer(
        self,
        jobs: list[tuple[str, str]],
        todo: deque[int],
        results: list[Result | None],
        tick: Callable[[int], object],
    ) -> None:
        """Fill in the results of the jobs `todo`, with a thread for each worker."""
        suspects, stop = set(), threading.Event()

        def work() -> None:
            pace = BATCH_SECONDS / 4  # seconds a query
            while todo and not stop.is_set():
                if not self._close.alive:
                    raise RuntimeError("this pool is closed")
                worker, batch, room = self._idle.get(), deque(), BATCH_BYTES
                try:
                    # Small batches near the end: nobody idles beside another's backlog.
                    share = min(BATCH, BATCH_SECONDS / pace, len(todo) / self.size / 2)
                    with contextlib.suppress(IndexError):  # the others take some too
                        while not batch or (len(batch) < share and room > 0):
                            batch.append(todo.popleft())
                            room -= len(jobs[batch[-1]][1])
                    if not batch:
                        continue
                    begun, size = time.monotonic(), len(batch)
                    for result in worker.ask([jobs[i] for i in batch]):
                        results[batch.popleft()] = result
                        tick(1)
                    pace = max(time.monotonic() - begun, 1e-6) / size
                except _Failed as death:
                    # Answers come in order, so it was at the first that is missing. If
                    # not late, it may have been killed from outside: a second try.
                    failed, head = Result(None, *death.args), batch[0]
                    if failed.error == "timeout" or head in suspects:
                        results[batch.popleft()] = failed
                        tick(1)
                    suspects.add(head)
                    todo.extendleft(reversed(batch))
                finally:
                    self._idle.put(worker)

        with ThreadPoolExecutor(self.size) as threads:
            try:
                others = range(min(self.size, len(todo)) - 1)
                tasks = [threads.submit(work) for _ in others]
                work()
                for task in tasks:
                    task.result()
            except BaseException:  # Ctrl-C, say: nobody waits for the rest
                stop.set()
                for worker in self._workers:
                    worker.kill()
                raise


class _Worker:
    """The pool's end of a worker process, whose answers are parsed and not trusted."""

    def __init__(self, uris: dict[str, str], limits: Limits) -> None:
        self.config = [(uris, asdict(limits))]
        self.patience = limits.seconds + GRACE
        self.longest = 12 * limits.result_bytes + 100_000  # bytes of an answer as JSON
        self.process = None

    def ask(self, jobs: list[tuple[str, str]]) -> Iterator[Result]:
        """Yield a Result for each job, in order; raise _Failed if the worker dies."""
        try:
            if self.process is None or self.process.poll() is not None:
                self._start()
            yield from self._exchange(jobs)
        except (OSError, EOFError, ValueError) as e:  # the last if closed meanwhile
            status = self.bury()
            if isinstance(e, TimeoutError):
                told = f"killed after {self.patience:g} seconds"
                raise _Failed("timeout", told, self.patience) from None
            name = "memory" if status == OUT_OF_MEMORY else "crashed"
            raise _Failed(name, f"its worker ended with status {status}") from None
        except BaseException:
            self.bury()
            raise

    def _start(self) -> None:
        self.bury()
        try:
            self.link, theirs = socket.socketpair()
            self.answers = self.link.makefile("rb", 1 << 16)
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", Path(__file__).resolve()],
                    stdin=theirs,
                    stdout=theirs,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={},  # no keys of APIs
                    start_new_session=True,  # Ctrl-C is for us, a kill for its children
                )
            self.link.settimeout(STARTUP)
            (ready,) = self._exchange(self.config)
            if ready.error:
                raise EOFError(ready.message)
            self.link.settimeout(self.patience)
        except (OSError, EOFError) as e:
            raise RuntimeError(f"a sandbox worker does not start: {e}") from e

    def _exchange(self, jobs: list) -> Iterator[Result]:
        self.link.sendall(json.dumps(jobs).encode() + b"\n")
        for _ in jobs:  # the clock of each starts when the answer before it has come
            line = self.answers.readline(self.longest)
            try:
                error, message, seconds, columns, rows = DECODE(line.decode())
                if error is not None and error not in ERRORS:
                    raise ValueError(error)
                rows = None if error else [tuple(row) for row in rows]
                result = Result(rows, error, message, seconds, tuple(columns))
            except (ValueError, TypeError, KeyError, RecursionError) as e:
                raise EOFError("no answer, or none that makes sense") from e
            yield result

    def kill(self) -> None:
        """End the process and those it may have started."""
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def bury(self) -> int | None:
        """Kill it, leave no zombie and no open socket; return its exit status."""
        self.kill()
        if self.process is None:
            return None
        self.answers.close()
        self.link.close()
        return self.process.wait()


def _bury(workers: list[_Worker], pid: int) -> None:
    if os.getpid() == pid:  # not those of a parent that forked
        for worker in workers:
            worker.bury()


def _uri(path: Path) -> str:
    path, wal = path.resolve(), Path(f"{path.resolve()}-wal")
    if not path.is_file():
        raise FileNotFoundError(f"no database file {path}")
    if wal.exists() and wal.stat().st_size:
        raise ValueError(f"{path} has changes in its -wal file: checkpoint it first")
    return f"{path.as_uri()}?mode=ro&immutable=1"


# From here on: what runs in the worker.


def _serve() -> None:
    """Confine this process; then a line of jobs in, a line for each answer out."""
    import resource  # not on Windows

    def say(*answer: object) -> None:
        sys.stdout.buffer.write(ENCODE(answer).encode() + b"\n")
        sys.stdout.buffer.flush()

    ((uris, limits),) = json.loads(sys.stdin.buffer.readline())
    limits = Limits(**limits)
    try:
        databases = {name: _open(uri, limits) for name, uri in uris.items()}
    except sqlite3.Error as e:
        return say("crashed", str(e), 0.0, [], None)
    # Some memory; no core dump, no byte into a file, no file opened, no process.
    caps = dict.fromkeys(("CORE", "FSIZE", "NOFILE", "NPROC"), 0)
    caps["AS"] = limits.memory_mb << 20
    for cap, most in caps.items():
        with contextlib.suppress(ValueError, OSError):  # macOS does not have them all
            resource.setrlimit(getattr(resource, f"RLIMIT_{cap}"), (most, most))
    say(None, "", 0.0, [], [])
    try:
        for line in sys.stdin.buffer:
            jobs = json.loads(line)
            signal.alarm(int(len(jobs) * (limits.seconds + GRACE)) + 2)  # if orphaned
            for name, sql in jobs:
                say(*databases[name](sql))
            signal.alarm(0)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)


def _open(uri: str, limits: Limits) -> Callable[[str], tuple]:
    """Open a database so that SQLite refuses all but reading; return its answerer."""
    deadline, denied = 0.0, False
    # No cache of statements: nothing of one query is there for the next.
    db = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
    db.text_factory = methodcaller("decode", "utf-8", "replace")
    db.execute(f"PRAGMA hard_heap_limit = {limits.memory_mb << 19}")
    db.execute("PRAGMA temp_store = memory")
    db.execute("PRAGMA trusted_schema = 0")
    # The schema can be read, for prompts tell it anyway; statistics cannot.
    names = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
    # Tables that are functions; new versions list those of JSON only after their use.
    modules = {"json_each", "json_tree", "jsonb_each", "jsonb_tree"}
    modules |= {name for (name,) in db.execute("PRAGMA module_list")}
    readable = {n for n in names if not n.startswith("sqlite_")} | {"sqlite_master"}
    for cap, value in {
        sqlite3.SQLITE_LIMIT_ATTACHED: 0,
        sqlite3.SQLITE_LIMIT_COLUMN: 200,
        sqlite3.SQLITE_LIMIT_LENGTH: max(limits.result_bytes, 1_000_000),
        sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
        sqlite3.SQLITE_LIMIT_SQL_LENGTH: limits.sql_bytes,
    }.items():
        db.setlimit(cap, value)

    def authorize(action: int, first: str, second: str, *_: str) -> int:
        nonlocal denied
        if action == SQLITE_READ:  # no column is read by COUNT(*), perhaps of a CTE
            allowed = first in readable or not (second or first.lower() in modules)
        elif action == SQLITE_FUNCTION:
            allowed = second.lower() in FUNCTIONS
        else:
            allowed = action in (SQLITE_SELECT, SQLITE_RECURSIVE)
        denied = denied or not allowed
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    def fetch(sql: str) -> tuple[list[str], list[tuple]]:
        word = sql[LEAD.match(sql).end() :][:7].lower()
        if word.startswith(("explain", "vacuum")):  # the authorizer is not asked
            raise _Failed("denied", f"no {word}")
        if "'now'" in sql.lower() and any(m[1] for m in NOW.finditer(sql)):
            raise _Failed("denied", "'now' is another day tomorrow: write the date")
        cursor = db.execute(
            sql.rstrip("; \t\r\n")
        )  # Python takes ;; for two statements
        if cursor.description is None:
            raise _Failed("denied" if word else "empty", "there is no SELECT")
        columns = [column[0] for column in cursor.description]
        rows, size = [], sum(map(len, columns))
        for row in cursor:
            texts = [len(v) for v in row if isinstance(v, (str, bytes))]
            size += 8 * len(row) + sum(texts)
            if size > limits.result_bytes:
                raise _Failed("too_many_bytes", f"the most is {limits.result_bytes:,}")
            if len(rows) == limits.rows:
                raise _Failed("too_many_rows", f"the most is {limits.rows:,}")
            rows.append(row)
        return columns, rows

    def name(e: Exception) -> str:
        code = getattr(e, "sqlite_errorname", None) or ""
        signs = {
            "denied": denied,
            "memory": isinstance(e, MemoryError) or code.endswith("NOMEM"),
            "too_many_bytes": code == "SQLITE_TOOBIG",
            "multiple_statements": "one statement" in str(e),
            "syntax": isinstance(e, UnicodeError) or SYNTAX.search(str(e)),
        }
        return next((name for name, seen in signs.items() if seen), "sql_error")

    def answer(sql: str) -> tuple:
        nonlocal deadline, denied
        begun = time.monotonic()
        deadline, denied = begun + limits.seconds, False
        error, message, columns, rows = None, "", [], []
        try:
            columns, rows = fetch(sql)
        except _Failed as e:
            error, message = e.args
        except (sqlite3.Error, UnicodeError, MemoryError) as e:
            error, message = name(e), str(e) or "no memory is left"
        seconds = time.monotonic() - begun
        if seconds > limits.seconds:  # interrupted, or done too late
            error, message = "timeout", f"the most is {limits.seconds:g} seconds"
        return error, message[:500], seconds, columns, rows

    db.set_progress_handler(lambda: time.monotonic() > deadline, 2_000)
    db.set_authorizer(authorize)
    return answer


if __name__ == "__main__":
    _serve()
