"""Bills: quality before dollars, and every price worked out by hand."""

import math
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from utils.costs import bill
from utils.costs.load import Promise
from utils.costs.prices import MONTH, load_prices
from utils.evals.stats import Interval

near = pytest.approx


def points(value, low, high, n=100):
    return Interval(value / 100, low / 100, high / 100, n)


@pytest.mark.parametrize(
    ("gap", "word", "claim"),
    [
        (points(0, 0, 0), "as right", "stands"),
        (points(-1, -2, 0), "as right", "stands"),  # the margin itself is allowed
        (points(-1, -2.1, 0), "open", "open"),
        (points(-4, -6, -2.1), "less right", "falls"),
        (points(3, 1, 5), "as right", "stands"),
    ],
)
def test_a_system_that_is_less_right_never_stands(gap, word, claim):
    assert bill.judge_quality(gap, 0.02) == word
    assert bill.judge_claim(word, ratio=0.2) == claim
    assert bill.judge_claim(word, ratio=0.0) == claim  # however cheap
    assert bill.judge_claim(word, ratio=0.21) == "falls"


def test_cases_that_settle_an_open_question():
    # The low end is 2 points below; 1 point is allowed: four times the cases.
    assert bill.cases_to_settle(points(-1, -3, 1), 0.02) == near(400)
    # It probably is less right: the high end, 2 points above, must come down by half.
    assert bill.cases_to_settle(points(-3, -4, -1), 0.02) == near(400)
    assert bill.cases_to_settle(points(-2, -4, 1), 0.02) == math.inf


def test_traffic_by_hand():
    noon = datetime(2026, 7, 1, 12)
    times = [noon + timedelta(minutes=m) for m in (30, 0, 4)] + [noon.replace(hour=3)]
    # Three of four in one hour; the mean hour has a sixth.
    assert bill.peak_over_mean(times) == near(18)
    gaps = bill.gaps_in_minutes(times)
    assert gaps.tolist() == [540, 4, 26]
    assert bill.misses(gaps, 5) == near(2 / 3)
    assert bill.misses(gaps, 5, growth=10) == near(1 / 3)
    assert bill.misses(gaps, 5, growth=1e6) == 0


def test_service_times_are_those_of_clients_who_wait_for_nobody():
    row = [0.0, 0.1, 0.5, 200, 60]
    refused = [0.0, None, 0.01, 429, 0]

    def load(quantization, clients, engines, *rows):
        one = {"quantization": quantization, "clients": clients, "engines": engines}
        return one | {"rows": list(rows), "quiet": True}

    both = load("Q8_0", 2, 2, row, refused)
    loads = [load("Q8_0", 1, 1, row, row), both, load("Q8_0", 4, 2, row)]
    assert bill.service_times(loads, "Q8_0") == ([0.5], both)
    with pytest.raises(LookupError, match="F16"):
        bill.service_times(loads, "F16")


@pytest.fixture
def one():
    """A machine of two servers that always take half a second, for 3.60 USD an hour."""
    price = load_prices().model("claude-sonnet-5.5")
    return bill.Comparison(
        seconds=[0.5] * 10,
        slots=2,
        promise=Promise(1.0, 2.0),
        usd_per_hour=3.6,
        peak=2.0,
        price=price.model_copy(update={"cache": None}),
        tokens_in=[1000, 1000],
        tokens_out=[0, 200],
        gaps=[1.0, 100.0],
        logged=1000.0,
        own_right=0.8,
        api_right=1.0,
    )


def test_both_sides_by_hand(one):
    # 1,000 x 2 + 100 x 10 = 3,000 USD a million
    assert one.call(1e6) == (near(0.003), "no cache")
    assert one.api(1e6) == near(0.003)
    assert replace(one, thinking=100).api(1e6) == near(0.004)
    assert replace(one, tokens_cost=0.1).api(1e6) == near(0.0003)
    # 0.001 USD a second, all month; 0.8 are right
    assert one.machines(1000) == 1
    usd = 0.001 * MONTH / 1000 / 0.8
    assert one.running(1000) == near(usd)
    assert one.all_in(1000) == near(usd)
    kept = replace(one, people=500, once=1200, months=12)
    assert kept.all_in(1000) == near(usd + 600 / 1000 / 0.8)
    # A quarter is passed on, and each such call costs what a call costs.
    assert replace(one, passed=0.25).running(1000) == near(usd + 0.25 * 0.003 / 0.8)
    # Per answer 0.003 - 0.8 usd are saved at 0.2 fewer right ones.
    volume = 2e6
    worth = (0.003 - 0.001 * MONTH * one.machines(volume) / volume) / 0.2
    assert one.wrong_answer(volume) == near(worth)
    assert replace(one, own_right=1.0).wrong_answer(volume) == math.inf
    assert one.wrong_answer(1000) == 0


def test_rare_calls_find_the_cache_empty(one):
    cached = replace(one, price=load_prices().model("claude-sonnet-5.5"))
    # Half of the gaps outlast five minutes, and the hour: 0.1 + (4 - 0.1) / 2 is worse
    # than 2.5 / 2 + 0.1 / 2 = 1.3 USD a million of the 1,000 tokens in; and 0.001 out.
    assert cached.call(1000) == (near(0.0013 + 0.001), "5-minute cache")
    usd, way = cached.call(2000)  # gaps of 0.5 and 50 minutes: the hour holds both
    assert (usd, way) == (near(0.0001 + 0.001), "60-minute cache")
    half = replace(cached, passed=0.5)
    passed = half.running(2000) - cached.running(2000)
    assert passed == near(0.5 * 0.0023 / 0.8)


def test_break_even_is_where_the_prices_meet(one):
    kept = replace(one, people=2000)
    volume = kept.break_even()
    assert kept.all_in(volume) == near(kept.api(volume), rel=0.01)
    assert kept.all_in(volume / 2) > kept.api(volume / 2)
    assert replace(one, tokens_cost=0.01).break_even() == math.inf
    assert replace(one, usd_per_hour=0.0).break_even() == near(bill.FEWEST, rel=0.01)
    knobs = {
        "people": ("people", 1000, 4000),
        "price": ("tokens_cost", 2.0, 0.01),
        "none": ("peak", 2.0, 2.0),
    }
    swings = bill.swings(kept, knobs)
    assert [*swings] == ["price", "people", "none"]  # never is the widest
    assert swings["none"] == (volume, volume) and swings["price"][1] == math.inf
    assert swings["people"][0] < volume < swings["people"][1]


def test_words():
    assert bill.count(4_160_453) == "4.2 million" and bill.count(87_432) == "87,000"
    assert bill.count(math.inf) == "no volume"
    assert bill.plain({"a": (1.0, math.inf)}) == {"a": [1.0, None]}
    before = {"cost": False, "latency": None}
    assert bill.explain(before, before) == "no signal changed"
    told = bill.explain(before, {"cost": True, "latency": None})
    assert told == "cost was off and is on"
