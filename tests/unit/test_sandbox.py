"""Hostile SQL ends in time with a named error, and the sandbox pool lives on."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hostile import BIG, BOMBS, COUNTER, HOSTILE

from utils.evals import worker
from utils.evals.sandbox import ERRORS, Limits, Result, SandboxPool

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data"
LIMITS = Limits(seconds=3.0, rows=1_000, result_bytes=100_000, memory_mb=128)
STRICT = replace(LIMITS, seconds=0.3)  # for what runs until it is ended
# Seconds within one call of a function, minutes between two of the progress handler.
KILLER = f"SELECT max(instr({BIG}, printf('%.*c', 450000, 'a') || rowid)) FROM tickets"
QUICK = [one for one in HOSTILE if one[0] not in BOMBS]
ENDLESS = [one for one in HOSTILE if one[0] in BOMBS]
slow = pytest.mark.slow
linux = pytest.mark.skipif(sys.platform != "linux", reason="a cap that macOS lacks")


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


def answers(database):
    """Return SQL, and rows or words of the message, on one kind of database."""
    lines = Path(__file__).with_name("sandbox_answers.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    found = [row for row in rows if row["on"] == database]
    return {row["sql"]: row.get("rows") or row["message"] for row in found}


def listed(result):
    return [list(row) for row in result.rows]


def numbers(n):
    """Harmless jobs that tell which of them was answered."""
    return [("live", f"SELECT {i}") for i in range(n)]


def all_but(results, culprit):
    answers = [(i, r.rows) for i, r in enumerate(results) if i != culprit]
    return all(rows == [(i,)] for i, rows in answers)


def gone(pid, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def state(database):
    """Every file beside the database, and what an attack would leave."""
    files = [*database.parent.iterdir(), *Path("/tmp").glob("hostile*")]
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


@pytest.mark.parametrize(
    "queries", [QUICK, ENDLESS[:4], pytest.param(ENDLESS[4:], marks=slow)]
)
def test_hostile_queries_end_as_named_and_write_nothing(pool, strict, live, queries):
    used = pool if queries is QUICK else strict
    before, jobs = state(live), []
    for i, (_, sql, _) in enumerate(queries):
        jobs += [("live", sql), ("a", f"SELECT {i}")]
    results = used.map(jobs)
    assert all_but(results[1::2], None)
    for (name, _, errors), result in zip(queries, results[::2], strict=True):
        assert result.rows is None and result.error in errors, name
        assert errors <= ERRORS.keys() and 0 < len(result.message) <= 500, name
    assert state(live) == before


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


def test_good_sql_that_looks_odd(pool):
    for sql, rows in answers("live").items():
        result = pool.run(sql)
        assert result.error is None and listed(result) == rows, sql


def test_caps_are_exact(pool):
    select = "SELECT n FROM r LIMIT"
    assert len(pool.run(f"{COUNTER}{select} 1000").rows) == 1_000
    assert pool.run(f"{COUNTER}{select} 1001").error == "too_many_rows"
    # 8 for the value, 1 for the name of its column
    assert pool.run("SELECT printf('%.*c', 99991, 'a') AS a").error is None
    assert pool.run("SELECT printf('%.*c', 99992, 'a') AS a").error == "too_many_bytes"
    assert pool.run("SELECT 1" + " " * 99_992).rows == [(1,)]
    assert pool.run("SELECT 1" + " " * 99_993).error == "too_long"


def test_messages_serve_a_repair(pool, strict):
    assert pool.run("SELECT x").message == "no such column: x"
    assert "date" in pool.run("SELECT date('now')").message
    # A query ends at its deadline; the kill is for what does not look at the clock,
    # and for anything on a machine that is very busy.
    told = [strict.run(BOMBS["counting"]).message for _ in range(3)]
    assert "the most is 0.3 seconds" in told
    assert strict.run(KILLER).message == "killed after 0.8 seconds"


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_frozen_clock_says_the_same_in_every_time_zone(live, zone):
    uris = {"live": f"{live.as_uri()}?mode=ro&immutable=1"}
    limits = asdict(replace(LIMITS, now="2026-06-30 12:00"))
    wanted = answers("frozen")
    lines = [[[uris, limits]], [["live", sql] for sql in wanted]]
    done = subprocess.run(
        [sys.executable, "-I", worker.__file__],
        input="".join(json.dumps(line) + "\n" for line in lines).encode(),
        env={"TZ": zone},
        capture_output=True,
    )
    _, *told = map(json.loads, done.stdout.splitlines())
    assert [rows for *_, rows in told] == list(wanted.values())


def test_views_and_full_text_tables_of_one_s_own_are_read_or_named(tmp_path):
    path = tmp_path / "own.sqlite"
    db = sqlite3.connect(path)
    db.executescript((ROOT / "tests/helpers/own_database.sql").read_text())
    db.close()
    before = path.read_bytes()
    with SandboxPool({"own": path}, 1) as pool:
        for sql, want in answers("own").items():
            result = pool.run(sql)
            assert listed(result) == want if result.rows else want in result.message
    assert path.read_bytes() == before


def test_an_odd_path_is_opened_and_unsaved_changes_are_refused(live, tmp_path):
    path = Path(shutil.copy(live, tmp_path / "a?mode=rwc#%41é'.sqlite"))
    with SandboxPool({"odd": path}, 1) as pool:
        assert pool.run("SELECT count(*) FROM tickets").rows == [(1400,)]
    assert list(tmp_path.iterdir()) == [path]
    Path(f"{path}-wal").write_bytes(b"x")
    with pytest.raises(ValueError, match="checkpoint"):
        SandboxPool({"odd": path})
    with (
        pytest.raises(RuntimeError, match="file is not a database"),
        SandboxPool({"odd": __file__}) as pool,
    ):
        pool.run("SELECT 1")
    with pytest.raises(ValueError, match="tomorrow"):
        SandboxPool({"live": live}, limits=Limits(now="tomorrow"))


def test_kills_from_outside_cost_nothing(live):
    with SandboxPool({"live": live}, 2) as pool:
        pool.map(numbers(100))
        idle, busy = (one.process.pid for one in pool._workers)
        os.kill(idle, signal.SIGKILL)
        threading.Timer(0.05, os.kill, (busy, signal.SIGKILL)).start()
        assert all_but(pool.map(numbers(50_000)), None)
        pids = [one.process.pid for one in pool._workers]
        assert not {idle, busy} & set(pids)
    assert all(gone(pid) for pid in (idle, busy, *pids))


HIJACK = """
honest = open_readonly

def open_readonly(uri, limits):
    answer = honest(uri, limits)

    def run(sql):
        if sql.startswith(("SELECT", "WITH")):
            return answer(sql)
        try:
            return "denied", repr(eval(sql)), 0.0, [], None
        except (OSError, ImportError) as error:
            return "denied", repr(error), 0.0, [], None

    return run

serve()
"""


@pytest.fixture
def hijacked(tmp_path, live, monkeypatch):
    """A pool whose workers take what is no query for Python."""
    source = Path(worker.__file__).read_text().split("if __name__ ==")[0]
    stub = tmp_path / "stub.py"
    stub.write_text(source + HIJACK)
    monkeypatch.setattr(worker, "__file__", str(stub))
    with SandboxPool({"live": live}, 2, STRICT) as pool:
        yield pool


@pytest.mark.parametrize(
    ("job", "errors"),
    [
        (KILLER, "timeout"),
        (BOMBS["counting"], "timeout"),
        (BOMBS["doubling CTEs"], "timeout memory"),
        ("os._exit(0)", "crashed"),
        pytest.param("len(bytes(200_000_000))", "memory", marks=linux),
        ("os.close(1) or time.sleep(60)", "timeout"),
        (r"os.write(1, b'nonsense\n')", "crashed"),
        (r"os.write(1, b'[null, 1, 2, 3, 4]\n')", "crashed"),
        (r"""os.write(1, b'["made up", "", 0, [], []]\n')""", "crashed"),
        (r"os.write(1, b'[' * 100_000 + b'\n')", "crashed"),
        ("os.write(1, b'x' * 10_000_000) and time.sleep(60)", "crashed"),  # no line end
    ],
)
def test_blame_is_exact_and_a_hijacked_worker_spoils_only_its_query(
    hijacked, job, errors
):
    jobs = numbers(100)
    jobs[50] = ("live", job)
    results = hijacked.map(jobs)
    assert results[50].error in errors.split() and results[50].rows is None
    assert all_but(results, 50)


def test_the_walls_of_the_operating_system(hijacked, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    wanted = {
        "1 + 1": "2",
        "'secret' in str(os.environ)": "False",
        f"open({str(tmp_path / 'x')!r}, 'w')": "OSError",
        "open('/etc/passwd')": "OSError",
        "__import__('socket').socket()": "Error",
    }
    for code, words in wanted.items():
        assert words in hijacked.run(code).message, code
    assert not (tmp_path / "x").exists()


def test_ctrl_c_ends_a_map_and_the_pool_goes_on(live):
    with SandboxPool({"live": live}, 2, Limits(seconds=600)) as pool:
        pool.map(numbers(9))
        pids = [w.process.pid for w in pool._workers]
        # A shell may have it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            pool.map([("live", BOMBS["counting"])] * 9)
        assert all(gone(pid) for pid in pids)
        assert all_but(pool.map(numbers(50)), None)


@pytest.mark.parametrize("query", ["", pytest.param(KILLER, marks=slow)])
def test_workers_end_with_a_parent_that_is_killed(live, query):
    script = (
        "from utils.evals.sandbox import Limits, SandboxPool\n"
        f"pool = SandboxPool({{'live': {str(live)!r}}}, 2, Limits(seconds=1))\n"
        "pool.map([('live', 'SELECT 1')] * 100)\n"
        "print(*[worker.process.pid for worker in pool._workers], flush=True)\n"
        f"pool.map([('live', {query!r})] * 4)\n"
        "input()"
    )
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.3)
        parent.kill()
    assert len(pids) == 2 and all(gone(pid) for pid in pids)
