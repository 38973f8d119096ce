"""Exercises that check themselves: `check("02.1", answer)`.

What is right stands in data/exercises.json, a row an exercise: a number with the
distance that still counts as right, a word, or calls of a function with what each must
return. A test computes all of them from the data. Six answers are tried by a few lines
here. None of it calls the modules that the exercises are about.
"""

import copy
import itertools
import json
import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from utils.course.run import ROOT

DATA = ROOT / "data"
ROWS = json.loads((DATA / "exercises.json").read_text(encoding="utf-8"))
TESTS: dict[str, Callable[[Any], bool]] = {}


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
    try:
        right = TESTS[name](answer) if name in TESTS else _fits(row, answer)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        return Verdict(
            False, f"{name}: the answer cannot be checked ({why}). {row['hint']}"
        )
    message = f"{name}: right." if right else f"{name}: not yet. {row['hint']}"
    return Verdict(right, message)


def _fits(row: dict[str, Any], answer: Any) -> bool:
    """Whether an answer is the row's word or number, or returns the row's values."""
    if "calls" not in row:
        if isinstance(answer, str):
            answer = answer.strip().lower().rstrip(":")
        return _same(answer, row["answer"], row.get("tolerance", 0))
    for inputs, value in row["calls"]:
        if not _same(answer(*copy.deepcopy(inputs)), value):
            return False
    return True


def _same(found: Any, value: Any, tolerance: float = 1e-6) -> bool:
    if isinstance(value, list):
        pairs = itertools.zip_longest(found, value)
        return all(_same(*pair) for pair in pairs)
    if isinstance(value, str):
        return found == value
    return math.isclose(found, value, rel_tol=0, abs_tol=tolerance)


def _test_of(name: str) -> Callable:
    """Make a function the test of an exercise's answer."""

    def keep(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
        TESTS[name] = test
        return test

    return keep


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


@_test_of("01.3")
def _timed_out(answer: dict) -> bool:
    spans = [one["attributes"] for one in answer["spans"] if one["kind"] == "llm"]
    chat, reply = (f"gen_ai.{way}.messages" for way in ("input", "output"))
    asked = [said for said in spans[0][chat] if said["role"] == "user"]
    known = answer["trace_id"] and answer["time"] and asked[-1]["content"]
    late = spans[-1]["error.type"] == "timeout" and not spans[-1].get(reply)
    return bool(known and late)


@_test_of("02.3")
def _lucky(answer: str) -> bool:
    live, *twins = _query(answer)
    right, *right_on_twins = _query(MARCH)
    return live == right and twins != right_on_twins


@_test_of("04.1")
def _other_spelling(answer: str) -> bool:
    text = answer.lower()
    days = ">=" in text and "<" in text.replace("<>", "") and "between" not in text
    named = " as " in text.partition(" from ")[0]  # the column, not the table
    return days and named and _query(answer) == _query(MARCH)


@_test_of("05.3")
def _worst_bill(answer: tuple[str, float]) -> bool:
    name, usd = answer
    price = json.loads((DATA / "prices.json").read_text(encoding="utf-8"))
    gpu = price["compute"][name]
    hours = 24 * 2 * 0.5  # calls, attempts, half an hour each
    return gpu["unit"] == "usd_per_hour" and abs(usd - hours * gpu["price"]) <= 0.01


SLOWEST = (
    "select carrier,round(avg(julianday(delivered_date)-julianday(shipped_date)),1) "
    "from shipments where is_test=0 and not delivered_date is null and "
    "segment='office' and shipped_date between '2025-02-01' and '2026-01-31' "
    "group by 1 order by 2 desc limit 1"
)


@_test_of("07.2")
def _gamed(answer: tuple[Callable, str]) -> bool:
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
    fooled = _query(found) != right and pay(found) >= pay(SLOWEST)
    return fooled and max(map(pay, wrong)) < least


@_test_of("07.3")
def _short_if_right(answer: Callable[[bool, int], float]) -> bool:
    wrong = {answer(False, n) for n in (0, 1, 80, 5_000)}
    right = [answer(True, n) for n in (20, 80, 200, 400, 5_000, 100_000)]
    falls = all(a > b for a, b in itertools.pairwise(right[:4]))
    return len(wrong) == 1 and falls and min(right) > max(wrong)


@_test_of("11.3")
def _late_by_region(answer: str) -> bool:
    right = (
        "SELECT region, ROUND(100.0*AVG(julianday(delivered_date)"
        "-julianday(promised_date)>3),1) FROM shipments WHERE is_test=0 AND "
        "delivered_date IS NOT NULL AND promised_date BETWEEN '2026-05-01' AND "
        "'2026-05-31' GROUP BY region"
    )
    for rows, wanted in zip(_query(answer), _query(right), strict=True):
        mine = dict(rows)
        if mine.keys() != dict(wanted).keys():
            return False
        if any(abs(mine[region] - share) > 0.011 for region, share in wanted):
            return False
    return True
