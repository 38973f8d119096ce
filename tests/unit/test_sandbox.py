"""Hostile SQL ends in time with a named error, and the sandbox pool lives on."""

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hostile import BIG, BOMBS, COUNTER, HOSTILE

from utils.evals import sandbox, worker
from utils.evals.sandbox import ERRORS, Limits, Result, SandboxPool
from utils.evals.worker import GRACE

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
LIMITS = Limits(seconds=3.0, rows=1_000, result_bytes=100_000, memory_mb=128)
STRICT = replace(LIMITS, seconds=0.3)  # for what runs until it is ended
SLACK = 15.0  # seconds that a busy machine may add, a new worker's start among them
# Seconds within one call of a function, minutes between two of the progress handler.
KILLER = f"SELECT max(instr({BIG}, printf('%.*c', 450000, 'a') || rowid)) FROM tickets"
linux = pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    return Path(shutil.copy2(DATA / "warehouse.sqlite", folder))


@pytest.fixture(scope="module")
def pool(live):
    with SandboxPool({"live": live, "a": DATA / "twin_a.sqlite"}, 2, LIMITS) as pool:
        yield pool


@pytest.fixture(scope="module")
def strict(live):
    with SandboxPool({"live": live, "a": DATA / "twin_a.sqlite"}, 2, STRICT) as pool:
        yield pool


def state(database):
    """Every file beside the database: its name, hash and time."""
    files = sorted(database.parent.iterdir()) + sorted(Path("/tmp").glob("hostile*"))
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return [(f, h, f.stat().st_mtime_ns) for f, h in zip(files, hashes, strict=True)]


def peak_mib(worker):
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) / 1024


def gone(pid, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


# The corpus. What runs until it is ended takes its time: those queries are slow tests.

FAST = [one for one in HOSTILE if one[0] not in BOMBS]
SLOW = [one for one in HOSTILE if one[0] in BOMBS]


def attack(live, queries, limits):
    """What came of each hostile query, and of a good one after it."""
    before, results = state(live), {}
    with SandboxPool({"live": live}, 1, limits) as pool:
        for name, sql, _ in queries:
            begun = time.monotonic()
            result = pool.run(sql)
            seconds = time.monotonic() - begun
            results[name] = result, seconds, pool.run("SELECT count(*) FROM tickets")
    assert state(live) == before  # nothing is written
    return results


@pytest.fixture(scope="module")
def attacked(live):
    return attack(live, FAST, LIMITS)


@pytest.fixture(scope="module")
def bombed(live):
    return attack(live, SLOW, STRICT)


def ends_well(found, errors, limits):
    result, seconds, after = found
    assert result.rows is None
    assert result.error in errors
    assert errors <= ERRORS.keys()
    assert 0 < len(result.message) <= 500
    assert seconds < limits.seconds + GRACE + SLACK
    assert after.rows == [(1400,)]


@pytest.mark.parametrize(("name", "errors"), [(n, e) for n, _, e in FAST])
def test_hostile_query(attacked, name, errors):
    ends_well(attacked[name], errors, LIMITS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "errors"), [(n, e) for n, _, e in SLOW])
def test_hostile_query_that_would_not_end(bombed, name, errors):
    ends_well(bombed[name], errors, STRICT)


def test_map_keeps_order_among_hostile_queries(strict, live):
    assert len(HOSTILE) == len({name for name, _, _ in HOSTILE}) >= 100
    before, jobs, expected = state(live), [], []
    few = [name for name, _, _ in SLOW[::7]]
    for i, (name, sql, errors) in enumerate(HOSTILE):
        if name in BOMBS and name not in few:
            continue  # a few of the slow ones are enough here
        jobs += [("live", sql), ("a", f"SELECT {i}")]
        # Under this short deadline a busy machine may end any of them by time.
        expected += [errors | {"timeout"}, i]
    results = strict.map(jobs)
    for result, wanted in zip(results, expected, strict=True):
        if isinstance(wanted, int):
            assert result.rows == [(wanted,)]
        else:
            assert result.rows is None
            assert result.error in wanted
    assert state(live) == before


@linux
@pytest.mark.slow
def test_memory_of_a_worker_is_bounded(live):
    limits = Limits(memory_mb=96)
    with SandboxPool({"live": live}, 1, limits) as pool:
        names = {"window", "doubling CTEs", "remembering", "json_group_array"}
        greedy = [("live", sql) for name, sql, _ in HOSTILE if name in names]
        results = pool.map(greedy * 3)
        assert "memory" in {r.error for r in results} <= {"memory", "timeout"}
        assert peak_mib(pool._workers[0]) < 96
        assert pool.run("SELECT 1").rows == [(1,)]


# Right answers


def test_recorded_queries_run_as_in_bare_sqlite(pool, live):
    queries = {json.loads(x)["sql"] for x in (DATA / "eval.jsonl").open()}
    for file in (DATA / "recorded").glob("*.jsonl"):
        for line in file.open():
            reply = json.loads(line)["reply"]
            queries.update(re.findall(r"```sql\n(.*?)```", reply, re.S))
    some = sorted(queries)[::2]
    assert len(some) > 700
    bare = sqlite3.connect(f"{live.as_uri()}?mode=ro&immutable=1", uri=True)
    results = pool.map([("live", sql) for sql in some])
    assert [r.rows for r in results] == [bare.execute(sql).fetchall() for sql in some]


def test_values_come_back_as_they_are(pool):
    sql = (
        "SELECT NULL AS void, 9223372036854775807, -1e999, 0.1, x'00ff', 'a''b',"
        " char(0, 233, 128512), cast(x'61ff' AS TEXT), char(55357), '' AS \"b\nc\""
    )
    (row,) = pool.run(sql).rows
    texts = ("a'b", "\0é\U0001f600", "a\ufffd", "\ufffd" * 3, "")
    assert row == (None, 2**63 - 1, float("-inf"), 0.1, b"\0\xff", *texts)
    assert pool.run(sql).columns[0::9] == ("void", "b\nc")
    none = pool.run("SELECT 1 WHERE 0")
    assert none == Result([], None, "", none.seconds, ("1",))
    assert 0 < none.seconds < LIMITS.seconds


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1; -- done",
        " ;/* a */ SELECT 1 ; /* b */ -- c",
        "SELECT 1;;\n;",
        "\ufeffSELECT 1",
        "VALUES (1)",
        "SELECT count(*) FROM (SELECT 1) x",
        "WITH x AS (SELECT 1) SELECT COUNT(*) FROM x",
        "SELECT (SELECT COUNT(*) FROM CUSTOMERS) = 420",
        "SELECT count(*) FROM sqlite_schema WHERE name = 'tickets'",
        COUNTER.replace("FROM r)", "FROM r WHERE n < 9)") + "SELECT max(n) = 9 FROM r",
        "SELECT sum(x) OVER () FROM (SELECT 1 AS x)",
        "SELECT 'x' LIKE 'X' AND 'x' GLOB '[a-z]' AND '{\"a\": 1}' ->> 'a'",
        "SELECT date('2026-01-31', '+1 month') > '2026' -- not date('now')",
        "SELECT 'explain' <> 'now' AND 'vacuum' NOT IN ('x; y', '--')",
        "SELECT length(replace(printf('%5d', 1), ' ', '')) /* (, 'now') */",
    ],
)
def test_good_sql_that_looks_odd(pool, sql):
    result = pool.run(sql)
    assert (result.error, result.rows) == (None, [(1,)])


def test_caps_are_exact(pool):
    select = "SELECT n FROM r LIMIT"
    assert len(pool.run(f"{COUNTER}{select} 1000").rows) == 1_000
    assert pool.run(f"{COUNTER}{select} 1001").error == "too_many_rows"
    # 8 for the value, 1 for the name of its column
    assert pool.run("SELECT printf('%.*c', 99991, 'a') AS a").error is None
    assert pool.run("SELECT printf('%.*c', 99992, 'a') AS a").error == "too_many_bytes"
    assert pool.run("SELECT 1" + " " * 99_992).rows == [(1,)]
    assert pool.run("SELECT 1" + " " * 99_993).error == "too_long"
    assert pool.run("-- é" + "é" * 50_000).error == "too_long"


def test_messages_serve_a_repair(pool):
    told = {sql: pool.run(sql).message for sql in ("SELECT x", "SELECT random()")}
    assert told["SELECT x"] == "no such column: x"
    assert "random" in told["SELECT random()"]
    assert "date" in pool.run("SELECT date('now')").message


@pytest.mark.parametrize("name", ["a b.sqlite", "a?mode=rwc#%41é'.sqlite", "file:x"])
def test_odd_paths(tmp_path, live, name):
    path = tmp_path / name
    shutil.copy(live, path)
    with SandboxPool({"odd": path}, 1) as pool:
        assert pool.run("SELECT count(*) FROM tickets").rows == [(1400,)]
    assert list(tmp_path.iterdir()) == [path]


# Our own mistakes are exceptions


def test_mistakes(pool, live, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SandboxPool({"live": DATA / "nowhere.sqlite"})
    with pytest.raises(ValueError, match="no database 'b', only"):
        pool.run("SELECT 1", "b")
    unsaved = Path(shutil.copy(live, tmp_path / "unsaved.sqlite"))
    Path(f"{unsaved}-wal").write_bytes(b"x")
    with pytest.raises(ValueError, match="checkpoint"):
        SandboxPool({"live": unsaved})
    (tmp_path / "text").write_text("no database" * 100)
    with (
        SandboxPool({"live": live, "text": tmp_path / "text"}) as broken,
        pytest.raises(RuntimeError, match="not a database"),
    ):
        broken.run("SELECT 1")
    monkeypatch.setattr(os, "name", "nt")
    with pytest.raises(RuntimeError, match="WSL"):
        SandboxPool({"live": live})


# Time, blame and death


def test_many_long_queries_fit_into_the_smallest_worker(live):
    databases = {"live": live, "a": DATA / "twin_a.sqlite", "b": DATA / "twin_b.sqlite"}
    long = "SELECT {} -- " + "\U0001f600" * 24_900
    with SandboxPool(databases, 2, Limits(memory_mb=64)) as pool:
        results = pool.map([("b", long.format(i)) for i in range(500)])
    assert [r.rows for r in results] == [[(i,)] for i in range(500)]


def test_the_clock_is_each_query_s_own(live):
    slow = COUNTER.replace("FROM r)", "FROM r LIMIT 100000)") + "SELECT max(n) FROM r"
    times, seconds = 10, 0.0
    with SandboxPool({"live": live}, 1, Limits(seconds=1.0)) as pool:
        while seconds <= 1.0:  # until they would not fit into one deadline
            times *= 2
            results = pool.map([("live", slow)] * times)
            seconds = sum(r.seconds for r in results)
    assert [r.rows for r in results] == [[(100_000,)]] * times


def test_what_the_progress_handler_ends_costs_no_worker(live):
    with SandboxPool({"live": live}, 1, STRICT) as pool:
        pids = set()
        for sql in (BOMBS["counting"], BOMBS["cross join"], "SELECT 1"):
            result = pool.run(sql)
            pids.add(pool._workers[0].process.pid)
        assert result.rows == [(1,)]
        assert len(pids) == 1


@pytest.mark.parametrize("killer", [KILLER, BOMBS["counting"], BOMBS["doubling CTEs"]])
def test_blame_is_exact(strict, killer):
    jobs = [("live", f"SELECT {i}") for i in range(200)]
    jobs[100] = ("live", killer)
    results = strict.map(jobs)
    assert results[100].error in ("timeout", "memory")
    assert [r.rows for i, r in enumerate(results) if i != 100] == [
        [(i,)] for i in range(200) if i != 100
    ]


def test_kills_from_outside_cost_nothing(live):
    queries = [json.loads(x)["sql"] for x in (DATA / "eval.jsonl").open()]
    with SandboxPool({"live": live}, 2) as pool:
        jobs = [("live", sql) for sql in queries]
        expected = [r.rows for r in pool.map(jobs)]
        first = [w.process.pid for w in pool._workers]
        os.kill(first[0], signal.SIGKILL)  # while idle
        stray = threading.Timer(0.05, os.kill, (first[1], signal.SIGKILL))
        stray.start()  # while busy
        assert [r.rows for r in pool.map(jobs * 4)] == expected * 4
        stray.join()
        second = [w.process.pid for w in pool._workers]
        assert not set(first) & set(second)
    assert all(gone(pid) for pid in first + second)


STUB = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("worker", {path!r})
module = importlib.util.module_from_spec(spec)
sys.modules["worker"] = module
spec.loader.exec_module(module)
honest = module.open_readonly

def out(data):
    while data:
        data = data[os.write(1, data):]

def dishonest(uri, limits):
    answer = honest(uri, limits)
    def wrapped(sql):
        if sql[0] == "!":
            exec(sql[1:])
        if sql[0] == "?":
            try:
                return "denied", repr(eval(sql[1:])), 0.0, [], None
            except Exception as e:
                return "denied", repr(e), 0.0, [], None
        return answer(sql)
    return wrapped

module.open_readonly = dishonest
module.serve()
"""


@pytest.fixture
def hijacked(tmp_path, live, monkeypatch):
    """A pool whose workers run a query that begins with ! or ? as Python."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB.format(path=worker.__file__))
    monkeypatch.setattr(worker, "__file__", str(stub))
    with SandboxPool({"live": live}, 2, LIMITS) as pool:
        yield pool


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("os.abort()", "crashed"),
        ("os._exit(0)", "crashed"),
        ("os.kill(os.getpid(), 9)", "crashed"),
        ("raise MemoryError", "memory"),
        pytest.param("time.sleep(60)", "timeout", marks=pytest.mark.slow),
        pytest.param("os.close(1); time.sleep(60)", "timeout", marks=pytest.mark.slow),
        ("os.close(0); os.close(1); time.sleep(60)", "crashed"),
        ("out(b'nonsense' + bytes([10]))", "crashed"),
        ("out(b'[]' + bytes([10]))", "crashed"),
        ("out(b'[null, 1, 2, 3, 4]' + bytes([10]))", "crashed"),
        ("out(b'[{\"hex\": 1}, 0, 0, 0, 0]' + bytes([10]))", "crashed"),
        ('out(b\'["made up", "", 0, [], []]\' + bytes([10]))', "crashed"),
        ("out(b'[' * 100_000 + bytes([10]))", "crashed"),
        ("out(b'x' * 10_000_000); time.sleep(60)", "crashed"),  # no end of line
        ("out(bytes([255, 10]))", "crashed"),
        ("import pickle; out(pickle.dumps(print) + bytes([10]))", "crashed"),
    ],
)
def test_a_hijacked_worker_spoils_only_its_query(hijacked, code, error):
    jobs = [("live", f"SELECT {i}") for i in range(60)]
    jobs[30] = ("live", f"!{code}")
    results = hijacked.map(jobs)
    assert results[30].error == error
    assert results[30].rows is None
    good = [r.rows for i, r in enumerate(results) if i != 30]
    assert good == [[(i,)] for i in range(60) if i != 30]


def test_the_walls_of_the_operating_system(hijacked, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")

    def inside(expression):
        return hijacked.run(f"?{expression}").message

    assert inside("1 + 1") == "2"
    assert "secret" not in inside("dict(os.environ)")
    assert "OSError" in inside(f"open({str(tmp_path / 'x')!r}, 'w')")
    assert "OSError" in inside("open('/etc/passwd')")
    assert "Error" in inside("__import__('socket').socket()")
    assert not (tmp_path / "x").exists()
    if sys.platform == "linux":
        assert inside("len(bytes(200_000_000))") == "MemoryError()"


def test_ctrl_c_ends_a_map_and_the_pool_goes_on(live):
    with SandboxPool({"live": live}, 2, Limits(seconds=30)) as pool:
        pool.map([("live", "SELECT 1")] * 9)
        interrupt = threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT))
        begun = time.monotonic()
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            pool.map([("live", BOMBS["counting"])] * 9)
        assert time.monotonic() - begun < 25  # one query alone would take 30
        pids = [w.process.pid for w in pool._workers]
        assert all(gone(pid) for pid in pids)
        results = pool.map([("live", f"SELECT {i}") for i in range(50)])
        assert [r.rows for r in results] == [[(i,)] for i in range(50)]


def test_threads_share_a_pool(pool):
    with ThreadPoolExecutor(8) as threads:
        results = threads.map(lambda i: pool.run(f"SELECT {i}").rows, range(300))
        assert list(results) == [[(i,)] for i in range(300)]


def test_close(live):
    pool = SandboxPool({"live": str(live)})
    assert pool.run("SELECT 1").rows == [(1,)]
    pids = [w.process.pid for w in pool._workers if w.process]
    assert len(pids) == 1  # one query starts one worker
    pool.close()
    pool.close()
    assert all(gone(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.run("SELECT 1")
    assert SandboxPool({"live": live}).map([]) == []


def test_close_while_another_thread_waits(live):
    pool = SandboxPool({"live": live}, 2, Limits(seconds=20))
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.map, [("live", BOMBS["counting"])] * 4)
        while not all(w.process for w in pool._workers):
            time.sleep(0.05)
        time.sleep(0.5)
        pids = [w.process.pid for w in pool._workers]
        pool.close()
        with pytest.raises(RuntimeError, match="closed"):
            waiting.result(timeout=60)
    assert all(gone(pid) for pid in pids)
    assert all(w.process.poll() is not None for w in pool._workers)


def test_a_fork_leaves_the_parent_s_workers_alone(live):
    with SandboxPool({"live": live}, 1) as pool:
        pool.run("SELECT 1")
        pool._pid += 1  # as a child would see it
        with pytest.raises(RuntimeError, match="fork"):
            pool.run("SELECT 1")
        sandbox._terminate(pool._workers, pool._pid)
        assert not gone(pool._workers[0].process.pid, 0.3)
        assert pool._workers[0].process.poll() is None


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from utils.evals.sandbox import Limits, SandboxPool
pool = SandboxPool({{"live": {live!r}}}, 2, Limits(seconds=1))
results = pool.map([("live", f"SELECT {{i}}") for i in range(100)])
assert [r.rows for r in results] == [[(i,)] for i in range(100)]
print(*[worker.process.pid for worker in pool._workers], flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "pool = None"])
def test_a_script_without_main_guard_leaves_no_child(tmp_path, live, end):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(ROOT), live=str(live), end=end))
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    "query",
    [
        "",
        pytest.param(KILLER, marks=pytest.mark.slow),
        pytest.param(BOMBS["counting"], marks=pytest.mark.slow),
    ],
)
def test_workers_end_with_a_parent_that_is_killed(tmp_path, live, query):
    script = tmp_path / "script.py"
    end = f"pool.map([('live', {query!r})] * 4); input()"
    script.write_text(SCRIPT.format(root=str(ROOT), live=str(live), end=end))
    command = [sys.executable, str(script)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.3)
        parent.kill()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


def test_progress_counts_every_query_once(strict, monkeypatch):
    import tqdm

    bars = []

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            bars.append((self, options))

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    jobs = [("live", "SELECT 1"), ("live", KILLER), ("a", "SELEC"), ("a", "")] * 2
    assert len(strict.map(jobs, progress="grading")) == 8
    ((bar, options),) = bars
    assert (bar.n, bar.total, options["desc"]) == (8, 8, "grading")
    assert (options["leave"], options["delay"], options["disable"]) == (False, 1, False)
    strict.map(jobs[:1])
    assert bars[1][1]["disable"]


def test_the_worker_needs_the_standard_library_only():
    code = f"import runpy; runpy.run_path({worker.__file__!r})"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)
