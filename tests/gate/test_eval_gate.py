"""The gate: no prompt or model goes out that may lose more than POINTS points.

To copy: put your product in, record the replies of what is live and of what is to
replace it, and let CI run this file. It asks no model.
"""

import os

import pytest

from utils.evals import cases, stats
from utils.tidewater import DATA, Tidewater, read_jsonl

POINTS = 3.0
BASELINE = os.environ.get("GATE_BASELINE", "rules")
CANDIDATE = os.environ.get("GATE_CANDIDATE", "rules")
PRODUCT = Tidewater()
EVAL = cases.load(DATA / "eval.jsonl", version="1.1")


def recorded(name):
    return {row["id"]: row["reply"] for row in read_jsonl(f"recorded/{name}.jsonl")}


def right(replies, of=EVAL):
    """A case without a reply is a KeyError: a gate must not pass what was not asked."""
    answers = [PRODUCT.extract(replies[case["id"]]) for case in of]
    return [grade.correct for grade in cases.grade(PRODUCT, of, answers)]


def test_the_candidate_is_no_worse():
    names = [case["id"] for case in EVAL]
    before, after = right(recorded(BASELINE)), right(recorded(CANDIDATE))
    print(stats.gate(before, after, POINTS, names).difference.points())


# The gate itself. Two broken of 20 are -10 points, lower bound -25: it stops.
# Two of 250 are -0.8, lower bound -2: that passes at 3 POINTS.


def test_the_gate_stops_two_broken_replies_of_twenty():
    few, good, bad = EVAL[:20], recorded("rules"), recorded("launch")
    names = [case["id"] for case in few]
    before = right(good, few)
    assert stats.gate(before, before, POINTS, names).only_a == 0
    wrong = [n for n, ok in zip(names, right(bad, few), strict=True) if not ok][:2]
    worse = good | {name: bad[name] for name in wrong}
    with pytest.raises(AssertionError, match=", ".join(wrong)):
        stats.gate(before, right(worse, few), POINTS, names)
