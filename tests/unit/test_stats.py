"""Statistics: published values, sums by hand, and the own estimators."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from statsmodels.stats.contingency_tables import mcnemar

from utils.evals import stats
from utils.evals.stats import Interval, wilson


def split(*runs):
    """True and False by turns: split(2, 1) is two True, then one False."""
    return [i % 2 == 0 for i, run in enumerate(runs) for _ in range(run)]


def pairs(both, only_a, only_b, neither):
    a = split(both + only_a, only_b + neither)
    return a, split(both, only_a, only_b, neither)


def test_intervals_are_written_for_people():
    assert wilson(91, 250).percent() == "36.4 % (30.7 to 42.5)"  # as in data/README.md
    difference = Interval(0.0204, -0.011, 0.0504, 250)
    assert difference.points() == "+2.0 points (-1.1 to +5.0)"
    assert difference.percent(digits=0) == "2 % (-1 to 5)"


def test_the_paired_p_is_mcnemars():
    # Fay, vignette exactMcNemar of R's exact2x2: 9 and 2 discordant pairs, 0.06543
    a, b = pairs(both=21, only_a=9, only_b=2, neither=12)
    assert stats.paired_difference(a, b).p == pytest.approx(0.06543, abs=5e-6)
    same = stats.paired_difference([True] * 250, [True] * 250)
    assert (same.difference, same.p) == (Interval(0.0, 0.0, 0.0, 250), 1.0)


def test_cases_of_one_cluster_count_as_one():
    # 40 clusters of 5 cases that all win or all lose tell what 40 cases tell.
    won = np.random.default_rng(0).random(40) < 0.5
    a, b, groups = [False] * 200, np.repeat(won, 5), np.repeat(np.arange(40), 5)
    whole = stats.paired_difference(a, b, groups.tolist()).difference
    few = stats.paired_difference([False] * 40, won).difference
    assert (whole.low, whole.high) == pytest.approx((few.low, few.high))
    single = stats.paired_difference(a, b).difference
    assert whole.high - whole.low > 2 * (single.high - single.low)


def test_bootstrap_of_a_ratio_is_that_of_its_sums():
    dollars, right = [1.0, 2.0, 3.0, 4.0] * 25, [True, True, False, True] * 25
    found = stats.bootstrap_ratio(dollars, right)
    assert found.value == pytest.approx(250 / 75)
    # standard error by the delta method
    residual = np.array(dollars) - found.value * np.array(right)
    half = 1.96 * math.sqrt(100) * residual.std() / 75
    want = (found.value - half, found.value + half)
    assert (found.low, found.high) == pytest.approx(want, rel=0.05)
    assert stats.bootstrap_ratio([1.0] * 4, [1, 0, 0, 0]).high == math.inf
    assert stats.bootstrap_ratio(dollars, right, seed=0) == found


def test_the_smallest_effect_is_as_published():
    # Cohen 1988, table 6.4.1: effect h = 0.20 needs 392 cases a group
    rise = stats.minimum_detectable_effect(392, 0.5)
    h = 2 * math.asin(math.sqrt(0.5 + rise)) - 2 * math.asin(math.sqrt(0.5))
    assert h == pytest.approx(0.20, abs=0.0005)
    assert stats.cases_needed(100 * rise, 0.5) in (392, 393)
    for n, base in [(250, 1.0), (2, 0.5)]:
        with pytest.warns(UserWarning, match=f"{n} cases are too few .* cases_needed"):
            assert stats.minimum_detectable_effect(n, base) == math.inf


def test_the_paired_number_is_as_published():
    # Miller 2024: 3 points with differences of variance 1/9 take 969 questions, by a
    # normal approximation; the exact test needs a little more.
    assert 969 < stats.cases_needed(3, 0.5, 1 / 9 + 0.03**2) < 1_060


def test_the_cases_needed_show_it_four_times_in_five():
    points, share = 5, 0.2
    n = stats.cases_needed(points, 0.5, share)
    # by statsmodels' McNemar test, on draws
    wins, losses = (share + points / 100) / 2, max((share - points / 100) / 2, 0)
    draw = np.random.default_rng(0).multinomial
    drawn = draw(n, [wins, losses, 1 - wins - losses], 3_000).tolist()
    tables = [[[0, a], [b, same]] for a, b, same in drawn]
    found = [mcnemar(table, exact=True).pvalue <= 0.05 for table in tables]
    assert np.mean(found) == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.03,), "percentage points, such as 3, not 0.03"),
        ((60,), "50.0% can rise by 50 points at most.* for a fall"),
        ((30, 0.5, 0.2), "systems that differ on 20.0%, not by 30"),
        ((3, 0.99, 0.1), "by 0 points at most"),
    ],
)
def test_what_no_number_of_cases_shows_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        stats.cases_needed(*arguments)


def test_e_values_of_losses_alone_can_be_summed_by_hand():
    # The mean of (2 r)**k over all rates r from 1/2 to 1, after k losses in a row.
    found = stats.sequential_test([True] * 9)
    by_hand = [(2 ** (k + 1) - 1) / (k + 1) for k in range(1, 10)]
    assert found.e_values == pytest.approx(by_hand)
    assert found.stopped_at == 7 and found.e_values[5] < 20 <= found.e_values[6]
    assert stats.sequential_test([True] * 6).stopped_at is None
    long = stats.sequential_test([False] * 5_000 + [True] * 15_000)
    assert np.isfinite(long.e_values).all() and long.stopped_at > 5_000


@pytest.mark.parametrize("limit", [0.03, 0.5, 0.9])
def test_the_e_value_is_an_average_of_likelihood_ratios(limit):
    bad = np.random.default_rng(0).random(40) < 0.4
    n, k = 40, bad.sum()

    def ratio(rate):
        odds = k * np.log(rate / limit) + (n - k) * np.log((1 - rate) / (1 - limit))
        return np.exp(odds) / (1 - limit)

    found = stats.sequential_test(bad, limit).e_values[-1]
    assert found == pytest.approx(quad(ratio, limit, 1)[0], rel=1e-6)
