"""A look at new logs on a schedule: is the product wrong more often than before.

    python -m utils.costs.monitor new.jsonl --baseline good.jsonl --report report.md

All files are logs that `utils.logs.traces` reads. The baseline is of a time when all
was well, and reviewed like the new logs: a verdict says which answers are wrong. The
monitor watches the wrong answers of each group, the answers in no known group, and,
with a log of another model's answers (`--shadow`), those that differ. An answer's group
is the first table of its query, or what `--group`, a regular expression, finds in it.

The exit status is 0 without an alarm, 1 with one, 2 where nothing could be judged. The
report names traces by their ids and quotes none, so that no question leaves the logs.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.evals.grading import rows_equal
from utils.evals.stats import Interval, e_values, wilson
from utils.logs import traces
from utils.logs.traces import Trace

WRONG = {"approved": False, "thumbs_up": False, "corrected": True, "thumbs_down": True}
TABLE = r"(?is)\bselect\b.*?\bfrom\s+[\"`\[]?(\w+)"
FEWEST = 5  # reviewed answers of the baseline that make a group of its own
BLIND = 0.95  # a limit above this leaves nothing to notice
LISTED = 20  # trace ids in a report


def evidence(
    bad: ArrayLike, days: Sequence[str | int], limit: float
) -> NDArray[np.float64]:
    """Return the evidence, after each event, that events are bad more often than limit.

    Good days would use up the evidence, so a fresh bet begins each day. Their average
    is a fair bet as well, and reaches 1/alpha with a chance of alpha at most.

    Args:
        bad: a stream of events in its last axis; so has the result.
        days: the day of each event, in the order of time.
        limit: the share of bad events that is still well.

    """
    bad = np.asarray(bad, dtype=bool)
    _, starts = np.unique(np.asarray(days), return_index=True)
    total = np.zeros(bad.shape)
    for start in starts:
        total[..., :start] += 1  # not begun: the money is not yet at stake
        total[..., start:] += e_values(bad[..., start:], limit)
    return total / max(1, len(starts))


def smallest_noticed(
    limit: float, n: int, alpha: float, days: int = 7, streams: int = 100
) -> float:
    """Return the smallest share of bad events that raises an alarm 4 times in 5.

    Simulated: n events spread over some days, all bad with the same chance. NaN if not
    even bad events alone are enough.
    """
    draws = np.random.default_rng(0).random((streams, n))
    when = np.arange(n) * days // max(1, n)

    def noticed(share: float) -> bool:
        found = evidence(draws < share, when, limit)
        return bool((found >= 1 / alpha).any(axis=-1).mean() >= 0.8)

    if limit >= BLIND or not noticed(1):
        return np.nan
    low, high = limit, 1.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (low, middle) if noticed(middle) else (middle, high)
    return high


@dataclass(frozen=True)
class Stream:
    """What is watched: which new events are bad, on which day, and how many were."""

    bad: list[bool]
    days: list[str]
    before: Interval | None  # None: the baseline has no such event

    @property
    def testable(self) -> bool:
        """Whether an alarm is possible at all."""
        return bool(self.bad and self.before and self.before.high < BLIND)


def answer_of(trace: Trace) -> str:
    """Return what the last tool was called with; the reply where there was none."""
    given = (trace.arguments or {}).values()
    return " ".join(map(str, given)) or trace.reply


def group_of(trace: Trace, pattern: str) -> str:
    """Return what the pattern's last group finds in an answer, or 'none'."""
    found = re.search(pattern, answer_of(trace))
    return (found[found.lastindex or 0] if found else "none").casefold()


def same_answer(one: Trace, other: Trace) -> bool:
    """Compare two answers: by their rows where both logged some, else by their text."""
    results = [(trace.result or {}).get("rows") for trace in (one, other)]
    if all(map(_is_table, results)):
        return rows_equal(*results, ordered=False)
    texts = [answer_of(trace).casefold().split() for trace in (one, other)]
    return texts[0] == texts[1]


def _is_table(rows: object) -> bool:
    """Whether a logged result is a list of rows, and not empty."""
    return isinstance(rows, list) and bool(rows) and all(type(r) is list for r in rows)


def shadowed(logs: list[Trace], shadow: list[Trace]) -> list[tuple[Trace, Trace]]:
    """Pair each trace with the shadow's of the same question, where there is one."""
    others = {trace.question.strip(): trace for trace in shadow}
    others.pop("", None)
    pairs = [(trace, others.get(trace.question.strip())) for trace in logs]
    return [(one, other) for one, other in pairs if other]


def watch(
    new: list[Trace], old: list[Trace], shadow: list[Trace], pattern: str
) -> dict[str, Stream]:
    """Make the streams to watch of the new logs and of the baseline."""
    reviewed = [trace for trace in old if trace.verdict in WRONG]
    counts = Counter(group_of(trace, pattern) for trace in reviewed)
    known = {name for name, n in counts.items() if n >= FEWEST and name != "none"}

    def events(logs: list[Trace]) -> dict[str, list[tuple[str, bool]]]:
        """Collect for each stream the day of each event, and whether it is bad."""
        found = {name: [] for name in [*sorted(known), "all others"]}
        found |= {"in no known group": [], "shadow differs": []}
        for trace in logs:
            day, group = trace.time[:10], group_of(trace, pattern)
            found["in no known group"].append((day, group not in known))
            if trace.verdict in WRONG:
                name = group if group in known else "all others"
                found[name].append((day, WRONG[trace.verdict]))
        for one, other in shadowed(logs, shadow):
            found["shadow differs"].append((one.time[:10], not same_answer(one, other)))
        return found

    made, before = {}, events(old)
    for name, rows in events(new).items():
        was = [bad for _, bad in before[name]]
        share = wilson(sum(was), len(was)) if was else None
        made[name] = Stream([bad for _, bad in rows], [day for day, _ in rows], share)
    return made


def look(
    new: list[Trace],
    old: list[Trace],
    shadow: list[Trace],
    pattern: str = TABLE,
    alpha: float = 0.05,
) -> tuple[str, int]:
    """Compare new logs with a baseline: the report in Markdown, and the exit status."""
    if not new or not old:
        which = "new logs hold" if not new else "baseline holds"
        return f"# Monitor: nothing to judge\n\nThe {which} no answer.\n", 2
    new, old = (sorted(logs, key=lambda trace: trace.time) for logs in (new, old))
    streams = watch(new, old, shadow, pattern)
    level = alpha / max(1, sum(one.testable for one in streams.values()))
    alarms, rows = [], []
    for name, one in streams.items():
        if not one.bad and not one.before:
            continue
        row = [_code(name), one.before.percent() if one.before else "none seen"]
        row.append(f"{sum(one.bad)} of {len(one.bad)}")
        row += ["not tested", ""]
        if one.testable:
            # More events notice less, and take long to simulate.
            size, days = min(500, len(one.bad)), min(7, len({*one.days}))
            least = smallest_noticed(one.before.high, size, level, days)
            row[3] = "nothing" if np.isnan(least) else f"{100 * least:.0f} %"
            found = evidence(one.bad, one.days, one.before.high) >= 1 / level
            if found.any():
                row[4] = f"**alarm** {one.days[int(found.argmax())]}"
                alarms.append(name)
        rows.append(row)
    said = sum(trace.verdict in WRONG for trace in new)
    compared = len(streams["shadow differs"].bad)
    blind = not (said or compared) or not any(s.testable for s in streams.values())
    status = 1 if alarms else 2 if blind else 0
    titles = ["no alarm", f"alarm: {', '.join(map(_code, alarms))}"]
    titles.append("nothing to judge")
    first, last = (trace.time[:10] or "no date" for trace in (new[0], new[-1]))
    lines = [
        f"# Monitor: {titles[status]}",
        "",
        f"{len(new)} answers, {first} to {last}: {said} reviewed, {compared} with a "
        f"shadow's answer. Baseline: {len(old)} answers. A false alarm comes in "
        f"{100 * alpha:g} % of such reports at most, if no true share is above the "
        "interval of the baseline.",
        "",
        "| watched | bad in the baseline | bad now | noticed from | |",
        "| --- | --- | --- | --- | --- |",
        *["| " + " | ".join(row) + " |" for row in rows],
        "",
        *_listed("Wrong, by a review", [t for t in new if WRONG.get(t.verdict)]),
    ]
    differ = [one for one, two in shadowed(new, shadow) if not same_answer(one, two)]
    lines += _listed("Review these first: the shadow answers differently", differ)
    return "\n".join(lines), status


def _listed(title: str, found: list[Trace]) -> list[str]:
    if not found:
        return []
    ids = [f"- {_code(trace.trace_id)}" for trace in found[:LISTED]]
    more = [f"- and {len(found) - LISTED} more"] if len(found) > LISTED else []
    return [f"## {title}", "", *ids, *more, ""]


def _code(name: str) -> str:
    """Write a stranger's word so that Markdown takes it for nothing else."""
    return "`" + re.sub(r"[`|\s]+", " ", name)[:80] + "`"


def main(words: Sequence[str] | None = None) -> int:
    """Read logs, print the report and write it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m utils.costs.monitor")
    parser.add_argument("new", help="logs to look at, in any form of utils.logs.traces")
    parser.add_argument("--baseline", required=True, help="reviewed logs of good days")
    parser.add_argument("--shadow", help="another model's answers to the questions")
    parser.add_argument("--group", default=TABLE, help="what sorts answers, a pattern")
    parser.add_argument("--alpha", type=float, default=0.05, help="false alarms")
    parser.add_argument("--report", help="where to write the report, in Markdown")
    args = parser.parse_args(words)
    try:
        files = (args.new, args.baseline, args.shadow)
        logs = [traces.load(file)[0] if file else [] for file in files]
        text, status = look(*logs, args.group, args.alpha)
    except (OSError, ValueError, re.error) as error:
        text, status = f"# Monitor: nothing to judge\n\n{error}\n", 2
    text = text.encode("utf-8", "replace").decode()  # half a character, by a cut
    if args.report:
        Path(args.report).write_text(text, encoding="utf-8")
    print(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
