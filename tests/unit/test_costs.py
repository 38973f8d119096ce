"""Prices: dated, sourced, refused when unknown; costs worked out by hand."""

import datetime as dt
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from utils.costs.prices import (
    MONTH,
    PRICE_FILE,
    UnknownPrice,
    answer_cost,
    break_even,
    call_cost,
    cpu_hour,
    load_prices,
    paid_seconds,
    per_correct,
    utilisation_for,
    wrong_answer_worth,
)


@pytest.fixture(scope="module")
def prices():
    return load_prices()


def test_every_price_has_a_source_and_a_day(prices):
    raw = json.loads(PRICE_FILE.read_text(encoding="utf-8"))
    assert raw["unit"]["models"] == "usd_per_million_tokens"
    assert set(prices.models) == set(raw["models"])
    assert set(prices.compute) == set(raw["compute"])
    entries = [*prices.models.values(), *prices.compute.values()]
    assert len(entries) == 15
    for entry in entries:
        assert entry.source.strip()
        assert dt.date(2026, 1, 1) <= entry.date <= dt.date(2026, 11, 30)


def test_prices_as_the_sources_state_them(prices):
    stated = {n: (m.input, m.cached_input, m.output) for n, m in prices.models.items()}
    assert stated == {
        "claude-haiku-5.5": (0.10, 0.01, 0.50),
        "claude-sonnet-5.5": (2, 0.05 * 2, 10),
        "claude-opus-5.5": (4, None, 20),
        "gpt-6-luna": (0.10, 0.01, 0.50),
        "gpt-6-sol": (2, 0.20, 10),
    }
    assert {m.batch_discount for m in prices.models.values()} == {0.5}
    assert prices.gpu("H100").price == 3.95
    assert prices.gpu("T4").price == 0.59
    assert prices.compute["cpu_core_second"].unit == "usd_per_core_second"


@pytest.mark.parametrize("what", ["model", "gpu"])
def test_unknown_name_is_refused_and_says_what_to_do(prices, what):
    known = {"model": "gpt-6-luna", "gpu": "L40S"}[what]
    with pytest.raises(UnknownPrice) as error:
        getattr(prices, what)("H1OO")
    for part in ("'H1OO'", known, "data/prices.json", "source and date"):
        assert part in str(error.value)


def test_cpu_seconds_are_no_gpu(prices):
    with pytest.raises(UnknownPrice):
        prices.gpu("cpu_core_second")


def test_stale_names_prices_older_than_ninety_days(prices):
    assert prices.stale(dt.date(2026, 9, 29)) == []  # Modal's list is 90 days old
    modal = prices.stale(dt.date(2026, 9, 30))
    assert modal[0] == "H100: 2026-07-01, 91 days old"
    assert len(modal) == len(prices.compute)
    late = prices.stale(dt.date(2027, 1, 6))
    assert "claude-haiku-5.5: 2026-10-07, 91 days old" in late
    assert len(late) == 15
    week = prices.stale(dt.date(2026, 10, 15), days=7)
    assert "claude-opus-5.5: 2026-10-07, 8 days old" in week


def test_cost_of_a_call_by_hand(prices):
    haiku = prices.model("claude-haiku-5.5")
    # 1000 x 0.10 + 200 x 0.50 = 200 USD per million calls
    assert call_cost(haiku, 1000, 200) == pytest.approx(0.000200)
    # 100 x 0.10 + 900 x 0.01 + 200 x 0.50 = 119
    assert call_cost(haiku, 1000, 200, cached_tokens=900) == pytest.approx(0.000119)
    assert call_cost(haiku, 1000, 200, 900, batch=True) == pytest.approx(0.0000595)
    assert isinstance(call_cost(haiku, 1, 1), float)


def test_without_a_cached_price_cached_tokens_cost_plain_input(prices):
    opus = prices.model("claude-opus-5.5")
    assert call_cost(opus, 1000, 0, cached_tokens=1000) == pytest.approx(0.004)


def test_cost_of_many_calls(prices):
    sol = prices.model("gpt-6-sol")
    costs = call_cost(sol, np.array([1000, 500]), [100, 0], cached_tokens=[0, 500])
    assert costs == pytest.approx([0.003, 0.0001])


@pytest.mark.parametrize("counts", [(10, 1, 11), (-1, 1, 0), (1, -1, 0), (1, 1, -1)])
def test_impossible_counts_are_refused(prices, counts):
    with pytest.raises(ValueError, match="cached_tokens"):
        call_cost(prices.model("gpt-6-sol"), *counts)
    with pytest.raises(ValueError, match="cached_tokens"):
        call_cost(prices.model("gpt-6-sol"), *([5, n] for n in counts))


def share(value, low, high):
    return SimpleNamespace(value=value, low=low, high=high)


def test_cost_per_correct_carries_the_interval():
    assert per_correct(0.01, share(0.5, 0.4, 0.8)) == pytest.approx(
        (0.02, 0.0125, 0.025)
    )


def test_cost_per_correct_without_a_right_answer_is_infinite():
    value, low, high = per_correct(0.01, share(0.0, -1e-17, 0.02))
    assert (value, high) == (math.inf, math.inf)
    assert low == pytest.approx(0.5)


def test_cost_per_correct_refuses_per_cent_and_nonsense():
    for cost, right in (
        (0.01, share(36.4, 30.7, 42.5)),
        (-0.01, share(0.5, 0.4, 0.6)),
        (0.01, share(0.5, math.nan, 0.6)),
    ):
        with pytest.raises(ValueError, match="0 to 1"):
            per_correct(cost, right)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", None),
        ("source", " "),
        ("date", None),
        ("date", "2026-09"),
        ("input", -0.1),
        ("input", "0.10"),
        ("input", math.nan),
        ("output", math.inf),
        ("output", True),
        ("batch_discount", 50),
        ("cached_input", -1),
    ],
)
def test_a_bad_entry_is_named(tmp_path, field, value):
    raw = json.loads(PRICE_FILE.read_text(encoding="utf-8"))
    path = tmp_path / "prices.json"
    for mend in ("wrong", "missing"):
        if mend == "wrong":
            raw["models"]["gpt-6-sol"][field] = value
        else:
            del raw["models"]["gpt-6-sol"][field]
        path.write_text(json.dumps(raw))
        with pytest.raises(ValueError, match=f"'gpt-6-sol': {field} missing or wrong"):
            load_prices(path)


# --- a machine of one's own ----------------------------------------------------------


def test_an_hour_of_cpu_by_hand(prices):
    # 2 cores x 0.0000131 + 4 GiB x 0.00000222 = 0.00003508 USD a second
    assert cpu_hour(prices, 2, 4) == pytest.approx(0.126288)
    with pytest.raises(ValueError, match="cores"):
        cpu_hour(prices, 0, 4)


def test_an_answer_by_hand():
    # 3.60 USD an hour are 0.001 a second; 4 answers a second; half of the time idle
    assert answer_cost(3.6, 4) == pytest.approx(0.00025)
    assert answer_cost(3.6, 4, 0.5) == pytest.approx(0.0005)
    for wrong in ((-1, 4, 0.5), (1, 0, 0.5), (1, 4, 0), (1, 4, 30), (1, 4, math.nan)):
        with pytest.raises(ValueError, match="utilisation"):
            answer_cost(*wrong)


def test_the_utilisation_at_which_an_answer_costs_so_much():
    assert utilisation_for(0.0005, 3.6, 4) == pytest.approx(0.5)
    assert answer_cost(3.6, 4, utilisation_for(0.0004, 3.6, 4)) == pytest.approx(0.0004)
    assert utilisation_for(0.0001, 3.6, 4) > 1  # not even when it is never idle
    assert utilisation_for(0, 3.6, 4) == math.inf
    assert utilisation_for(-0.1, 3.6, 4) == math.inf


def test_a_machine_that_never_sleeps_is_paid_from_question_to_question():
    # 1,000 questions a month on one machine: each pays a thousandth of the month.
    assert paid_seconds(2, 1_000) == pytest.approx(MONTH / 1_000)
    # 3 a second take two machines of 2 a second.
    assert paid_seconds(2, 3 * MONTH) == pytest.approx(2 / 3)
    assert paid_seconds(2, 2 * MONTH) == pytest.approx(0.5)  # no quiet time at all


def test_a_machine_that_sleeps_at_once_is_paid_for_work_and_cold_starts():
    # one question in a month: half a second of work, and 6 s of start
    assert paid_seconds(2, 1, 0, 6) == pytest.approx(6.5, rel=1e-5)
    assert paid_seconds(2, 1, 300, 6) == pytest.approx(306.5, rel=1e-3)
    assert paid_seconds(2, 1, 0, 0) == pytest.approx(0.5)
    # Sleeping never costs more than staying awake while a start costs nothing.
    for month in (10, 1e4, 1e6, 5e6):
        assert paid_seconds(2, month, 300) <= paid_seconds(2, month) + 1e-9


def test_paid_seconds_against_a_simulated_month():
    rng = np.random.default_rng(0)
    service, per_month, idle, cold = 0.5, 60_000, 60, 0.0
    came = np.cumsum(rng.exponential(MONTH / per_month, 200_000))
    free, paid = 0.0, 0.0
    for when in came:
        quiet = max(0.0, when - free)
        paid += min(quiet, idle) + service
        free = max(when, free) + service
    mine = paid_seconds(1 / service, per_month, idle, cold)
    assert paid / len(came) == pytest.approx(mine, rel=0.01)


def test_nonsense_about_paid_seconds_is_refused():
    for wrong in ((0, 1), (1, 0), (1, 1, -1), (1, 1, 1, -1)):
        with pytest.raises(ValueError):
            paid_seconds(*wrong)


def test_break_even_by_hand():
    assert break_even(100, 0.01, 0.06) == pytest.approx(2_000)
    assert break_even(0, 0.01, 0.06) == 0
    assert break_even(100, 0.06, 0.06) == math.inf
    with pytest.raises(ValueError, match="0 or more"):
        break_even(-1, 0.01, 0.06)


def test_what_a_wrong_answer_may_cost_by_hand():
    # saves 0.02 an answer, is wrong 10 times in 100 more often
    assert wrong_answer_worth(0.01, 0.9, 0.03, 1.0) == pytest.approx(0.2)
    assert wrong_answer_worth(0.01, 1.0, 0.03, 1.0) == math.inf
    assert wrong_answer_worth(0.04, 0.9, 0.03, 1.0) == 0
    assert wrong_answer_worth(0.04, 0.9, 0.03, 0.9) == 0
    with pytest.raises(ValueError, match="swap"):
        wrong_answer_worth(0.04, 1.0, 0.03, 0.9)
    with pytest.raises(ValueError, match="0 to 1"):
        wrong_answer_worth(0.04, 85.6, 0.03, 0.9)
