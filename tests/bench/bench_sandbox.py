"""Queries per second: the pool on two workers, a process per query, bare sqlite3.

`make bench` prints a Markdown table and saves it with its run card. All run in turns
and the medians are compared, so that other load hits them alike. A process per query
comes in two kinds: `lean`, a Python without site that builds the same walls, two at a
time on the two cores; `plain` is python -c without walls, one after another. And `bare`
is one thread, one connection and no wall.
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

from utils.course.run import run_card  # noqa: E402
from utils.evals.sandbox import SandboxPool  # noqa: E402

LIVE = ROOT / "data" / "warehouse.sqlite"
URI = f"{LIVE.as_uri()}?mode=ro&immutable=1"
ROUNDS, PROCESSES = 7, 30
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


def processes(code: str, flags: list[str], at_a_time: int, queries: list[str]) -> list:
    def ask(sql: str) -> list:
        command = [sys.executable, *flags, "-c", code, URI, sql]
        done = subprocess.run(command, env={}, stdout=subprocess.PIPE, check=True)
        return [tuple(row) for row in json.loads(done.stdout)]

    with ThreadPoolExecutor(at_a_time) as threads:
        return list(threads.map(ask, queries))


def peak_mib(pid: int) -> float | None:
    status = Path(f"/proc/{pid}/status")  # Linux only
    if not status.exists():
        return None
    peak = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1024, 1)


def main() -> None:
    started = time.perf_counter()
    cases = (ROOT / "data" / "eval.jsonl").read_text().splitlines()
    small = "SELECT region, COUNT(*) FROM customers WHERE customer_id > {} GROUP BY 1"
    tiny = "SELECT customer, region FROM customers WHERE customer_id = {}"
    workloads = {
        "250 eval queries": [json.loads(case)["sql"] for case in cases],
        "small: a count of customers": [small.format(i % 420) for i in range(2_000)],
        "tiny: a customer by key": [tiny.format(1 + i % 420) for i in range(10_000)],
    }
    figures = {}
    bare = sqlite3.connect(URI, uri=True)
    with SandboxPool({"live": LIVE}, workers=2) as pool:
        ways = {
            "pool": lambda qs: [r.rows for r in pool.map([("live", q) for q in qs])],
            "lean": lambda qs: processes(LEAN, ["-I", "-S"], 2, qs[:PROCESSES]),
            "plain": lambda qs: processes(PLAIN, [], 1, qs[:PROCESSES]),
            "bare": lambda qs: [bare.execute(q).fetchall() for q in qs],
        }
        for name, queries in workloads.items():
            expected = ways["bare"](queries)
            rates = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, answer in ways.items():
                    begun = time.perf_counter()
                    rows = answer(queries)
                    rates[way].append(len(rows) / (time.perf_counter() - begun))
                    assert rows == expected[: len(rows)]
            figures[name] = {w: round(statistics.median(r)) for w, r in rates.items()}
        peaks = [peak_mib(worker.process.pid) for worker in pool._workers]
    lines = [
        f"| queries a second | {' | '.join(ways)} | pool : lean | : plain | : bare |",
        "| --- |" + " --- |" * 7,
    ]
    for name, rate in figures.items():
        ratios = {way: rate["pool"] / rate[way] for way in ("lean", "plain", "bare")}
        cells = [f"{x:,}" for x in rate.values()]
        cells += [f"{x:,.{0 if x >= 10 else 2}f}" for x in ratios.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        rate["pool_over"] = {way: round(ratio, 2) for way, ratio in ratios.items()}
    seconds = round(time.perf_counter() - started, 1)
    card = run_card("make bench", seconds, rounds=ROUNDS)
    results = {**figures, "peak_mib_of_workers": peaks, "table": "\n".join(lines)}
    text = json.dumps({"card": card, "results": results}, indent=1)
    (ROOT / "runs").mkdir(exist_ok=True)
    (ROOT / "runs" / "bench_sandbox.json").write_text(text + "\n")
    print(*lines, f"Workers' peak memory, MiB: {peaks}.", sep="\n")
    print("Saved runs/bench_sandbox.json; copy it to data/runs to ship it.")


if __name__ == "__main__":
    main()
