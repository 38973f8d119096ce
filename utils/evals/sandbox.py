"""Run SQL that a model wrote, which is to say hostile SQL, and always get an answer.

    with SandboxPool({"live": "data/warehouse.sqlite"}) as pool:
        pool.run("SELECT COUNT(*) FROM tickets").rows      # [(1400,)]

The queries run in a few confined processes (`worker.py` lists what that covers), many
in each. This side trusts no answer, kills a worker that is late, and starts another.
"""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.evals import worker
from utils.evals.worker import DECODE, ENCODE, GRACE, OUT_OF_MEMORY, Failed, Limits

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
STARTUP = 30.0  # seconds that a worker may take to start
# The most that a worker is given at a time: queries, their seconds, their text.
BATCH, BATCH_SECONDS, BATCH_BYTES = 256, 0.02, 1_000_000


@dataclass(frozen=True)
class Result:
    """The rows, or the name (one of ERRORS) and the message of what went wrong."""

    rows: list[tuple] | None
    error: str | None
    message: str = ""
    seconds: float = 0.0  # of the query alone
    columns: tuple[str, ...] = ()


class SandboxPool:
    """Worker processes that answer SQL on read-only databases; a context manager.

    `databases` maps names to SQLite files, which nobody may write to meanwhile. Threads
    may share a pool. Raises FileNotFoundError where there is no file, ValueError where
    it has unsaved changes, and RuntimeError on Windows.
    """

    def __init__(
        self,
        databases: dict[str, Path | str],
        workers: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        if os.name != "posix":
            raise RuntimeError("SandboxPool needs Linux or macOS; on Windows use WSL")
        self.size = workers or min(os.cpu_count() or 1, 8)
        self.limits = limits or Limits()
        self._pid = os.getpid()
        self.databases = {name: Path(path) for name, path in databases.items()}
        self._uris = {name: _uri(path) for name, path in self.databases.items()}
        self._workers = [_Worker(self._uris, self.limits) for _ in range(self.size)]
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for one in self._workers:
            self._idle.put(one)
        # Runs once: at close(), when the pool is collected, or when Python exits.
        self._close = weakref.finalize(self, _terminate, self._workers, self._pid)

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

        Raises ValueError for an unknown database, before anything runs.
        """
        from tqdm import tqdm

        if os.getpid() != self._pid:
            raise RuntimeError("this pool is of before a fork: make one in the child")
        jobs, most = list(jobs), self.limits.sql_bytes
        too_long = Result(None, "too_long", f"the SQL is longer than {most:,} bytes")
        results: list[Result | None] = [None] * len(jobs)
        for i, (database, sql) in enumerate(jobs):
            if database not in self._uris:
                raise ValueError(f"no database {database!r}, only {list(self._uris)}")
            if len(sql.encode("utf-8", "surrogatepass")) > most:
                results[i] = too_long
        todo = deque(i for i, result in enumerate(results) if result is None)
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
                one, batch, room = self._idle.get(), deque(), BATCH_BYTES
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
                    for result in one.ask([jobs[i] for i in batch]):
                        results[batch.popleft()] = result
                        tick(1)
                    pace = max(time.monotonic() - begun, 1e-6) / size
                except Failed as death:
                    # Answers come in order, so it was at the first that is missing. If
                    # not late, it may have been killed from outside: a second try.
                    failed, head = Result(None, *death.args), batch[0]
                    if failed.error == "timeout" or head in suspects:
                        results[batch.popleft()] = failed
                        tick(1)
                    suspects.add(head)
                    todo.extendleft(reversed(batch))
                finally:
                    self._idle.put(one)

        with ThreadPoolExecutor(self.size) as threads:
            try:
                others = range(min(self.size, len(todo)) - 1)
                tasks = [threads.submit(work) for _ in others]
                work()
                for task in tasks:
                    task.result()
            except BaseException:  # Ctrl-C, say: nobody waits for the rest
                stop.set()
                for one in self._workers:
                    one.kill()
                raise


class _Worker:
    """The pool's end of a worker process, whose answers are parsed and not trusted."""

    def __init__(self, uris: dict[str, str], limits: Limits) -> None:
        self.config = (uris, asdict(limits))
        self.patience = limits.seconds + GRACE
        self.longest = 12 * limits.result_bytes + 100_000  # bytes of an answer as JSON
        self.process = None

    def ask(self, jobs: list[tuple[str, str]]) -> Iterator[Result]:
        """Yield a Result for each job, in order; raise Failed if the worker dies."""
        try:
            if self.process is None or self.process.poll() is not None:
                self._start()
            yield from self._exchange(jobs)
        except (OSError, EOFError, ValueError) as e:  # the last if closed meanwhile
            status = self.terminate()
            if isinstance(e, TimeoutError):
                message = f"killed after {self.patience:g} seconds"
                raise Failed("timeout", message, self.patience) from None
            name = "memory" if status == OUT_OF_MEMORY else "crashed"
            raise Failed(name, f"its worker ended with status {status}") from None
        except BaseException:
            self.terminate()
            raise

    def _start(self) -> None:
        self.terminate()
        try:
            self.link, theirs = socket.socketpair()
            self.answers = self.link.makefile("rb", 1 << 16)
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", Path(worker.__file__).resolve()],
                    stdin=theirs,
                    stdout=theirs,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env={},  # no keys of APIs
                    start_new_session=True,  # Ctrl-C is for us, a kill for its children
                )
            self.link.settimeout(STARTUP)
            (ready,) = self._exchange([self.config])
            if ready.error:
                raise EOFError(ready.message)
            self.link.settimeout(self.patience)
        except (OSError, EOFError) as e:
            raise RuntimeError(f"a sandbox worker does not start: {e}") from e

    def _exchange(self, jobs: list[tuple]) -> Iterator[Result]:
        self.link.sendall(ENCODE(jobs).encode() + b"\n")
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

    def terminate(self) -> int | None:
        """Kill it, leave no zombie and no open socket; return its exit status."""
        self.kill()
        if self.process is None:
            return None
        self.answers.close()
        self.link.close()
        return self.process.wait()


def _terminate(workers: list[_Worker], pid: int) -> None:
    if os.getpid() == pid:  # not those of a parent that forked
        for one in workers:
            one.terminate()


def _uri(path: Path) -> str:
    path, wal = path.resolve(), Path(f"{path.resolve()}-wal")
    if not path.is_file():
        raise FileNotFoundError(f"no database file {path}")
    if wal.exists() and wal.stat().st_size:
        raise ValueError(f"{path} has changes in its -wal file: checkpoint it first")
    return f"{path.as_uri()}?mode=ro&immutable=1"
