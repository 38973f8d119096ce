"""Hostile SQL on Modal Sandboxes: the interface of `SandboxPool`, on other machines.

Modal creates 5 sandboxes a second for a workspace unless more is agreed, and each takes
a while to start. So a few are created once, kept, and given many queries at a time. In
each the queries run in the worker processes of `utils.evals.sandbox`, with its limits;
the sandbox around them has no network and no secrets.
"""

import contextlib
import json
import platform
import queue
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from utils.evals.sandbox import Result, SandboxPool
from utils.evals.worker import DECODE, ENCODE, GRACE, Limits

if TYPE_CHECKING:
    import modal

HOME = "/root"  # where Modal's images put local files
APP = "beneath-the-api-sandboxes"
CORES, GIB = 2.0, 1.0  # of a sandbox; a core is a physical one
HOURS = 4  # longest life of a sandbox; then another one takes its place
STARTUP = 60  # seconds that the workers in a sandbox may take to start
TRIES = 6  # times to ask for a sandbox where Modal refuses so many, each time slower
Job = tuple[str, str]  # name of the database, SQL


class UnavailableError(RuntimeError):
    """No sandbox answers, whatever it is asked: the SQL is not at fault."""


def image(databases: Iterable[Path]) -> "modal.Image":
    """Describe what a sandbox holds: this Python, `utils`, the databases, and tqdm."""
    import modal

    local = ".".join(platform.python_version_tuple()[:2])
    plain = modal.Image.debian_slim(python_version=local)
    plain = plain.pip_install(f"tqdm=={version('tqdm')}")
    plain = plain.add_local_python_source("utils")
    for path in databases:
        plain = plain.add_local_file(path, f"{HOME}/data/{path.name}")
    return plain


class ModalPool:
    """Modal Sandboxes that answer SQL on read-only databases; a context manager.

    `databases` maps names to SQLite files here, which the image takes along. At most
    `size` sandboxes are kept, created at most `per_second`, and each is sent `batch`
    queries at a time. They end with the pool, or after ten idle minutes.
    """

    def __init__(
        self,
        databases: dict[str, Path | str],
        size: int = 4,
        per_second: float = 5.0,
        batch: int = 256,
        limits: Limits | None = None,
    ) -> None:
        self.databases = {name: Path(path) for name, path in databases.items()}
        self.size, self.batch, self.limits = size, batch, limits or Limits()
        self.pause, self.created = 1 / per_second, 0
        self._lock, self._next, self._image = threading.Lock(), 0.0, None
        self._idle: queue.LifoQueue[modal.Sandbox | None] = queue.LifoQueue()
        for _ in range(size):
            self._idle.put(None)  # a place where no sandbox is yet

    def __enter__(self) -> "ModalPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the sandboxes; a later query would open new ones."""
        for sandbox in [self._idle.get() for _ in range(self.size)]:
            if sandbox is not None:
                sandbox.terminate()
            self._idle.put(None)

    def run(self, sql: str, database: str | None = None) -> Result:
        """Answer one query on `database`, or on the first one."""
        return self.map([(database or next(iter(self.databases)), sql)])[0]

    def map(self, jobs: Iterable[Job], progress: str | None = None) -> list[Result]:
        """Answer (database name, SQL) jobs, in their order; `progress` labels a bar.

        Whatever the SQL does is in the Results. Raises ValueError for an unknown
        database, before anything runs; UnavailableError if new sandboxes do not answer,
        with what they say; and what Modal's client raises if none can be created.
        """
        from tqdm import tqdm

        jobs = list(jobs)
        unknown = {name for name, _ in jobs} - self.databases.keys()
        if unknown:
            known = ", ".join(self.databases)
            raise ValueError(f"no database {sorted(unknown)}; there are {known}")
        parts = [jobs[k : k + self.batch] for k in range(0, len(jobs), self.batch)]
        with ThreadPoolExecutor(self.size) as threads:
            done = threads.map(self._answer, parts)
            bar = tqdm(done, progress, len(parts), disable=not progress, leave=False)
            return [result for results in bar for result in results]

    def _answer(self, jobs: list[Job]) -> list[Result]:
        """Answer jobs in one sandbox; if it ends at them, each once more, alone."""
        results, _ = self._try(jobs)
        return results or [self._alone(job) for job in jobs]

    def _alone(self, job: Job) -> Result:
        """Answer one job in a sandbox that has just proved to be well."""
        results, why = self._try([job], check=True)
        crashed = Result(
            None, "crashed", f"its sandbox ended at it, twice {why}".strip()
        )
        return results[0] if results else crashed

    def _try(
        self, jobs: list[Job], check: bool = False
    ) -> tuple[list[Result] | None, str]:
        """Let an idle sandbox answer; if it does not, it makes room for another one."""
        sandbox = self._idle.get()
        try:
            if sandbox and check and not self._ask(sandbox, self._easy())[0]:
                sandbox = _end(sandbox)  # of age, say
            sandbox = sandbox or self._open()
            results, why = self._ask(sandbox, jobs)
            if results is None:  # the sandbox is gone, of age or by what ran in it
                sandbox = _end(sandbox)
        finally:
            self._idle.put(sandbox)
        return results, why

    def _easy(self) -> list[Job]:
        return [(next(iter(self.databases)), "select 1")]

    def _open(self) -> "modal.Sandbox":
        """Create a sandbox, and see that it answers."""
        sandbox = self._create()
        results, why = self._ask(sandbox, self._easy())
        if results and results[0].rows == [(1,)]:
            return sandbox
        _end(sandbox)
        why = why or results[0].message
        raise UnavailableError(f"a new Modal sandbox does not answer. It says: {why}")

    def _create(self) -> "modal.Sandbox":
        """Create a sandbox, not sooner than the rate allows."""
        import modal

        for _ in range(TRIES):
            with self._lock:
                if self._image is None:  # built once, before anybody waits for it
                    self._app = modal.App.lookup(APP, create_if_missing=True)
                    self._image = image(self.databases.values()).build(self._app)
                time.sleep(max(0.0, self._next - time.monotonic()))
                self._next = time.monotonic() + self.pause
            try:
                sandbox = modal.Sandbox.create(
                    app=self._app,
                    image=self._image,
                    block_network=True,
                    timeout=3600 * HOURS,
                    idle_timeout=600,
                    cpu=CORES,
                    memory=int(1024 * GIB),
                )
            except (
                modal.exception.ResourceExhaustedError,
                modal.exception.ServiceError,
                modal.exception.ConnectionError,
            ) as error:
                self.pause, refused = 2 * self.pause, error
                continue
            self.created += 1
            return sandbox
        raise UnavailableError(f"Modal creates no more sandboxes: {refused}")

    def _ask(
        self, sandbox: "modal.Sandbox", jobs: list[Job]
    ) -> tuple[list[Result] | None, str]:
        """Let one sandbox answer; None if it does not, and what is known of why."""
        from modal.exception import Error

        inside = {name: f"data/{path.name}" for name, path in self.databases.items()}
        request = {"databases": inside, "limits": asdict(self.limits), "jobs": jobs}
        most = STARTUP + len(jobs) * (self.limits.seconds + GRACE)
        command = ("python", "-m", "utils.serving.modal_sandbox")
        try:
            process = sandbox.exec(*command, workdir=HOME, timeout=int(most))
            process.stdin.write(ENCODE(request))
            process.stdin.write_eof()
            process.stdin.drain()
            lines = process.stdout.read().splitlines()
            if process.wait() or len(lines) != len(jobs):
                return None, process.stderr.read().strip()[-500:]
            return [_result(*DECODE(line)) for line in lines], ""
        except (Error, ValueError, TypeError) as error:  # it ended, or spoke no JSON
            return None, f"{type(error).__name__}: {error}"


def _end(sandbox: "modal.Sandbox") -> None:
    from modal.exception import Error

    with contextlib.suppress(Error):  # it may be gone
        sandbox.terminate()


def _result(rows: list | None, *rest: object) -> Result:
    *rest, columns = rest
    rows = None if rows is None else [tuple(row) for row in rows]  # JSON has no tuples
    return Result(rows, *rest, tuple(columns))


def main() -> None:
    """Answer the jobs that stand on the input; this runs in the sandbox."""
    request = json.load(sys.stdin)
    limits = Limits(**request["limits"])
    with SandboxPool(request["databases"], limits=limits) as pool:
        for result in pool.map([tuple(job) for job in request["jobs"]]):
            row = (result.rows, result.error, result.message, result.seconds)
            print(ENCODE([*row, result.columns]))


if __name__ == "__main__":
    main()
