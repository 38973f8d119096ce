"""Queries per second: the pool on two workers, a process per query, bare sqlite3.

All run in turns and the medians are compared, so that other load hits them alike. A
process per query comes in two kinds: `lean`, a Python without site that builds the same
walls, two at a time on the two cores; `plain` is python -c without walls, one after
another. And `bare` is one thread, one connection and no wall.
"""

import json
import sqlite3
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from report import QUICK, ROOT, markdown, peak_mib, save, timed

from utils import tidewater
from utils.course.run import run_card
from utils.evals.sandbox import SandboxPool

LIVE = ROOT / "data" / "warehouse.sqlite"
URI = f"{LIVE.as_uri()}?mode=ro&immutable=1"
ROUNDS, PROCESSES, MOST = (1, 2, 40) if QUICK else (7, 30, 10_000)
SMALL = "SELECT region, COUNT(*) FROM customers WHERE customer_id > {} GROUP BY 1"
TINY = "SELECT customer, region FROM customers WHERE customer_id = {}"
WORKLOADS = {
    "250 eval queries": [case["sql"] for case in tidewater.load_cases()],
    "small: a count of customers": [SMALL.format(i % 420) for i in range(2_000)],
    "tiny: a customer by key": [TINY.format(1 + i % 420) for i in range(10_000)],
}
PLAIN = """
import json, sqlite3, sys
db = sqlite3.connect(sys.argv[1], uri=True)
print(json.dumps(db.execute(sys.argv[2]).fetchall()))
"""
LEAN = """
import json, resource, sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], uri=True)
allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
db.set_authorizer(lambda action, *_: int(action not in allowed))
for cap, most in ((resource.RLIMIT_AS, 256 << 20), (resource.RLIMIT_FSIZE, 0)):
    resource.setrlimit(cap, (most, most))
end = time.monotonic() + 2
db.set_progress_handler(lambda: time.monotonic() > end, 2_000)
print(json.dumps(db.execute(sys.argv[2]).fetchmany(5_000)))
"""


def processes(code, flags, at_a_time, queries):
    """Answer the first few queries by a process each."""

    def ask(sql):
        command = [sys.executable, *flags, "-c", code, URI, sql]
        done = subprocess.run(command, env={}, stdout=subprocess.PIPE, check=True)
        return [tuple(row) for row in json.loads(done.stdout)]

    with ThreadPoolExecutor(at_a_time) as threads:
        return list(threads.map(ask, queries[:PROCESSES]))


def compare(pool):
    """Return queries a second by workload and way, and how far ahead the pool is."""
    bare = sqlite3.connect(URI, uri=True)
    ways = {
        "pool": lambda qs: [r.rows for r in pool.map([("live", q) for q in qs])],
        "lean": lambda qs: processes(LEAN, ["-I", "-S"], 2, qs),
        "plain": lambda qs: processes(PLAIN, [], 1, qs),
        "bare": lambda qs: [bare.execute(q).fetchall() for q in qs],
    }
    found = {}
    for name, queries in WORKLOADS.items():
        queries = queries[:MOST]
        expected = ways["bare"](queries)
        rates = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, answer in ways.items():
                rows, seconds = timed(answer, queries)
                rates[way].append(len(rows) / seconds)
                assert rows == expected[: len(rows)]
        rate = {way: round(statistics.median(r)) for way, r in rates.items()}
        over = {w: round(rate["pool"] / rate[w], 2) for w in ("lean", "plain", "bare")}
        found[name] = rate | {"pool_over": over}
    return found


def main():
    with SandboxPool({"live": LIVE}, workers=2) as pool:
        found, seconds = timed(compare, pool)
        peaks = [peak_mib(worker.process.pid) for worker in pool._workers]
    rows = []
    for name, rate in found.items():
        speeds = [f"{rate[way]:,}" for way in ("pool", "lean", "plain", "bare")]
        over = rate["pool_over"].values()
        times = [f"{x:,.0f}" if x >= 10 else f"{x:,.2f}" for x in over]
        rows.append([name, *speeds, *times])
    header = ["queries a second", "pool", "lean", "plain", "bare"]
    table = markdown([*header, "pool : lean", ": plain", ": bare"], rows)
    card = run_card("make bench", round(seconds, 1), rounds=ROUNDS)
    results = {**found, "peak_mib_of_workers": peaks, "table": table}
    save("bench_sandbox", {"card": card, "results": results})


if __name__ == "__main__":
    main()
