"""Queries per second: the pool on two workers, a process per query, bare sqlite3.

python tests/bench/bench_sandbox.py prints a Markdown table and a line of JSON. The three
run in turns, and the medians are compared, so that other load hits all of them alike.
The process per query is the leanest with the same walls (a bare Python without site, the
caps, an authorizer, a deadline) and runs two at a time. Bare is one thread and one
connection without any wall.
"""

import json
import sqlite3
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils.sandbox import SandboxPool  # noqa: E402

LIVE = ROOT / "data" / "warehouse.sqlite"
ROUNDS, PROCESSES = 7, 40
ONE_QUERY = """
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


def process_per_query(queries: list[str]) -> list:
    command = [sys.executable, "-I", "-S", "-c", ONE_QUERY]
    uri = f"{LIVE.as_uri()}?mode=ro&immutable=1"

    def ask(sql: str) -> list:
        done = subprocess.run([*command, uri, sql], env={}, stdout=-1, check=True)
        return json.loads(done.stdout)

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(ask, queries))


def main() -> None:
    cases = (ROOT / "data" / "eval.jsonl").read_text().splitlines()
    look_up = "SELECT customer, region FROM customers WHERE customer_id = {}"
    workloads = {
        "250 eval queries": [json.loads(case)["sql"] for case in cases],
        "tiny: a customer by key": [look_up.format(1 + i % 420) for i in range(10_000)],
    }
    bare = sqlite3.connect(f"{LIVE.as_uri()}?mode=ro&immutable=1", uri=True)
    figures = {}
    with SandboxPool({"live": LIVE}, workers=2) as pool:
        runs = {
            "pool": lambda queries: [
                r.rows for r in pool.map([("live", sql) for sql in queries])
            ],
            "process": process_per_query,
            "bare": lambda queries: [bare.execute(sql).fetchall() for sql in queries],
        }
        for name, queries in workloads.items():
            assert runs["pool"](queries) == runs["bare"](queries)  # and warms both
            rates = {run: [] for run in runs}
            for _ in range(ROUNDS):
                for run, call in runs.items():
                    some = queries[:PROCESSES] if run == "process" else queries
                    begun = time.perf_counter()
                    call(some)
                    rates[run].append(len(some) / (time.perf_counter() - begun))
            figures[name] = {
                run: statistics.median(rate) for run, rate in rates.items()
            }
        peaks = [_peak_mib(worker.process.pid) for worker in pool._alive]
    print(
        "| queries a second | pool, 2 workers | process per query | bare | pool : process | pool : bare |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, rate in figures.items():
        rate["pool_to_process"] = rate["pool"] / rate["process"]
        rate["pool_to_bare"] = rate["pool"] / rate["bare"]
        print(
            f"| {name} | {rate['pool']:,.0f} | {rate['process']:,.0f} | {rate['bare']:,.0f} | "
            f"{rate['pool_to_process']:,.0f} | {rate['pool_to_bare']:.2f} |"
        )
    print(json.dumps({**figures, "peak_rss_mib": peaks}))


def _peak_mib(pid: int) -> float | None:
    status = Path(f"/proc/{pid}/status")  # Linux only
    if not status.exists():
        return None
    peak = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1024, 1)


if __name__ == "__main__":
    main()
