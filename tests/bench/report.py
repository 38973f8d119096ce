"""What the benchmarks share; they import it first, for it finds the course's `utils`.

With --quick they run on next to nothing: to see that they work, not to measure.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
QUICK = "--quick" in sys.argv
# PyTorch's own choice. In a quick run the machine may be busy, and then threads that
# wait for each other take ten times as long.
THREADS = 1 if QUICK else os.cpu_count()


def timed(function, *arguments):
    """Call a function; return what it returns and the seconds it took."""
    started = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - started


def peak_mib(pid="self"):
    """Return a process's peak memory; on Linux only, else not a number."""
    status = Path(f"/proc/{pid}/status")  # rusage would begin at the parent's peak
    if not status.exists():
        return float("nan")
    peak = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return round(int(peak.split()[1]) / 1024, 1)


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def save(name, content):
    """Print the table and save all to runs/; `content` has "results" and a card."""
    path = ROOT / "runs" / f"{name}{'_quick' * QUICK}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(content["results"]["table"])
    print(
        f"\nSaved {path.relative_to(ROOT)}.", "" if QUICK else "Copy it to data/runs."
    )
