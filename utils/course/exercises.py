"""Exercises that check themselves: `check("02.1", answer)`.

What is right stands in data/exercises.json, a row an exercise: a number with the
distance that still counts as right, words, or calls of a function with what each must
return. Beside them stand hints: one for each place of a list, each call, and each wrong
value that readers often get (`near`); `hint` is for all else. A few answers are tried
by a few lines here. None of it calls the modules that the exercises are about.
"""

import copy
import itertools
import json
import math
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from utils.course.run import ROOT

DATA = ROOT / "data"
ROWS = json.loads((DATA / "exercises.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Verdict:
    """The verdict on an answer; true if it is right."""

    right: bool
    message: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.message


def check(name: str, answer: Any) -> Verdict:
    """Check the answer to an exercise; a wrong one gets a hint.

    Raises:
        ValueError: there is no exercise of this name; the message lists them.

    """
    if name not in ROWS:
        raise ValueError(f"no exercise {name!r}; there are {', '.join(ROWS)}")
    row = ROWS[name]
    empty = isinstance(answer, str | list | dict) and not answer
    if answer is ... or answer is None or empty:
        return Verdict(False, f"{name}: no answer yet.")
    test = TESTS.get(name) or (_call if "calls" in row else _compare)
    try:
        hint = test(row, answer)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        hint = f"The answer cannot be checked ({why}). {row['hint']}"
    return Verdict(not hint, f"{name}: not yet. {hint}" if hint else f"{name}: right.")


def _call(row: dict[str, Any], answer: Any) -> str:
    """Call a function with each row's inputs."""
    if not callable(answer):
        return "A function is asked for: give its name, without brackets."
    for inputs, value, hint in row["calls"]:
        found = answer(*copy.deepcopy(inputs))
        if not _same(found, value):
            given = ", ".join(map(repr, inputs))
            return f"For ({given}) it returns {found!r}. {hint}"
    return ""


def _compare(row: dict[str, Any], answer: Any) -> str:
    """Compare with the right answer, then with wrong ones that readers often get."""
    right, tolerance = row["answer"], row.get("tolerance", 0)
    answer = _plain(answer, right)
    if _same(answer, right, tolerance):
        return ""
    for wrong, hint in row.get("near", []):
        if _same(answer, wrong, tolerance):
            return hint
    if isinstance(right, list) and len(answer) == len(right):
        places = zip(answer, right, row.get("hints", []), strict=False)
        for place, (one, other, hint) in enumerate(places, start=1):
            if not _same(one, other, tolerance):
                return f"Look at number {place} again. {hint}"
    return row["hint"]


def _plain(answer: Any, right: Any) -> Any:
    """Read what means the same: words in other forms, a number or a list as text."""
    if isinstance(right, list):
        if isinstance(answer, str):
            answer = re.findall(r"[^\s,;\[\]()]+", answer)
        parts = sorted(answer) if isinstance(answer, set) else answer
        return [_plain(one, right[0]) for one in parts]
    if hasattr(answer, "item"):  # a number or truth value of numpy's
        answer = answer.item()
    if isinstance(answer, bool) and isinstance(right, str):
        return "yes" if answer else "no"
    if isinstance(answer, str):
        answer = answer.strip(" \n.:%'\"").lower()
        return answer if isinstance(right, str) else float(answer.replace(",", ""))
    return answer


def _same(found: Any, value: Any, tolerance: float = 1e-6) -> bool:
    if value is None:  # NaN says the same
        return found is None or found != found
    if found is None or isinstance(value, str):
        return found == value
    if isinstance(value, list):
        found = list(found)
        pairs = zip(found, value, strict=False)
        return len(found) == len(value) and all(_same(*p, tolerance) for p in pairs)
    return math.isclose(found, value, abs_tol=tolerance)


def _query(sql: str) -> list[list[tuple]]:
    """Return a query's rows, sorted, on each of the three warehouses."""
    found = []
    for name in ("warehouse", "twin_a", "twin_b"):
        address = f"{(DATA / name).as_uri()}.sqlite?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as warehouse:
            found.append(sorted(warehouse.execute(sql), key=repr))
    return found


MARCH = (
    "select count(*) from tickets where is_test=0 and topic<>'spam' "
    "and opened_date between '2026-03-01' and '2026-03-31'"
)


def _timed_out(row: dict, answer: dict) -> str:
    spans = [one["attributes"] for one in answer["spans"] if one["kind"] == "llm"]
    chat, reply = (f"gen_ai.{way}.messages" for way in ("input", "output"))
    if not (answer["trace_id"] and answer["time"]):
        return "A trace needs an id and a time: later steps join and sort by them."
    if not [said for said in spans[0][chat] if said["role"] == "user"][-1]["content"]:
        return "The question is missing: without it nobody can ask it again."
    if "timeout" not in spans[-1]["error.type"].lower():
        return "'error.type' says what happened, here 'timeout'."
    if spans[-1].get(reply):
        return "It holds a reply: then it would count as answered and be trained on."
    return ""


def _lucky(row: dict, answer: str) -> str:
    live, *twins = _query(answer)
    right, *right_on_twins = _query(MARCH)
    if live != right:
        return f"On the live warehouse it gives {live[:2]}. {row['hint']}"
    if twins == right_on_twins:
        return "It is right on all three databases, so nothing shows that it is wrong."
    return ""


SLOWEST = (
    "select carrier,round(avg(julianday(delivered_date)-julianday(shipped_date)),1) "
    "from shipments where is_test=0 and not delivered_date is null and "
    "segment='office' and shipped_date between '2025-02-01' and '2026-01-31' "
    "group by 1 order by 2 desc limit 1"
)


def _gamed(row: dict, answer: tuple[Callable, str]) -> str:
    rule, found = answer
    first = (DATA / "practice.jsonl").read_text(encoding="utf-8").partition("\n")[0]
    case, right = json.loads(first), _query(SLOWEST)

    def pay(sql: str) -> float:
        same = [a == b for a, b in zip(_query(sql), right, strict=True)]
        grade = SimpleNamespace(correct=all(same), correct_on_live=same[0], error=None)
        return rule(case, sql or None, grade)

    wrong = [
        SLOWEST.replace("segment='office' and ", ""),
        SLOWEST.removesuffix(" limit 1"),
        "select 'ups',5.1 from shipments limit 1",
        "select 1 from shipments limit 1",
        "select * from shipments",
        "",
    ]
    capitals = SLOWEST.upper().replace("'OFFICE'", "'office'")
    least = min(pay(SLOWEST), pay(capitals))
    for sql in wrong:
        if not pay(sql) < least:  # nor if it is NaN
            return f"It pays this as much as a right one: {sql!r}. {row['hint']}"
    if _query(found) == right:
        return "The query is right, so the reward is not gamed by it."
    if not pay(found) >= pay(SLOWEST):
        return f"That query is paid {pay(found)}, `right` {pay(SLOWEST)}: search on."
    return ""


def _short_if_right(row: dict, answer: Callable[[bool, int], float]) -> str:
    wrong = {answer(False, n) for n in (0, 1, 80, 5_000)}
    right = [answer(True, n) for n in (20, 80, 200, 400, 5_000, 100_000)]
    if len(wrong) > 1:
        return f"Wrong answers are paid by their length. {row['hint']}"
    if not min(right) > max(wrong):
        return "A long right answer (try 100,000) is paid no more than a wrong one."
    falls = all(a > b for a, b in itertools.pairwise(right[:4]))
    return "" if falls else "Of two right answers the shorter must be paid more."


LATE = (
    "SELECT region, 100.0*AVG(julianday(delivered_date)"
    "-julianday(promised_date)>3) FROM shipments WHERE is_test=0 AND "
    "delivered_date IS NOT NULL AND promised_date BETWEEN '2026-05-01' AND "
    "'2026-05-31' GROUP BY region"
)


def _late_by_region(row: dict, answer: str) -> str:
    found = [[*map(list, rows)] for rows in _query(answer)]
    for old, new, hint in [
        ["", "", ""],
        *row["near"],
    ]:  # the right one, then wrong ones
        value = [[*map(list, rows)] for rows in _query(LATE.replace(old, new))]
        if _same(found, value, 0.0501):
            return hint
    return row["hint"]


TESTS = {  # each returns "" for a right answer, else a hint
    "01.3": _timed_out,
    "02.3": _lucky,
    "07.2": _gamed,
    "07.3": _short_if_right,
    "11.3": _late_by_region,
}
