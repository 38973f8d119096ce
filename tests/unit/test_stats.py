"""Statistics: published values, sums by hand, and the own estimators."""

import math
import warnings

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.power import NormalIndPower
from statsmodels.stats.proportion import proportion_effectsize

from utils.evals import stats
from utils.evals.stats import Interval, wilson


def split(*runs):
    """True and False by turns: split(2, 1) is two True, then one False."""
    return [i % 2 == 0 for i, run in enumerate(runs) for _ in range(run)]


def pairs(both, only_a, only_b, neither):
    a = split(both + only_a, only_b + neither)
    return a, split(both, only_a, only_b, neither)


def test_wilson_gives_the_published_intervals():
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3
    for successes, n, low, high in [(81, 263, 0.2553, 0.3662), (0, 20, 0, 0.1611)]:
        found = wilson(successes, n)
        assert (found.value, found.n) == (successes / n, n)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_intervals_are_written_for_people():
    assert wilson(91, 250).percent() == "36.4 % (30.7 to 42.5)"  # as in data/README.md
    difference = Interval(0.0204, -0.011, 0.0504, 250)
    assert difference.points() == "+2.0 points (-1.1 to +5.0)"
    assert difference.percent(digits=0) == "2 % (-1 to 5)"


def test_the_paired_p_is_mcnemars():
    # Fay, vignette exactMcNemar of R's exact2x2: 9 and 2 discordant pairs, 0.06543
    a, b = pairs(both=21, only_a=9, only_b=2, neither=12)
    assert stats.paired_difference(a, b).p == pytest.approx(0.06543, abs=5e-6)
    assert stats.paired_difference(*pairs(0, 0, 6, 0)).p == pytest.approx(2 / 2**6)
    same = stats.paired_difference([True] * 250, [True] * 250)
    assert (same.difference, same.p) == (Interval(0.0, 0.0, 0.0, 250), 1.0)


def test_paired_difference_of_the_data():
    # launch against four_rules on the eval set, as test_grading grades them
    found = stats.paired_difference(*pairs(both=88, only_a=3, only_b=110, neither=49))
    assert (found.only_a, found.only_b, found.n) == (3, 110, 250)
    assert found.p == pytest.approx(4.63e-29, rel=0.01)
    assert found.difference.value == pytest.approx((198 - 91) / 250)
    # Wald interval of a paired difference: the two must nearly agree at this size
    half = 1.96 * math.sqrt((113 / 250 - 0.428**2) / 250)
    assert found.difference.low == pytest.approx(0.428 - half, abs=0.006)
    assert found.difference.high == pytest.approx(0.428 + half, abs=0.006)


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
    assert found.low == pytest.approx(found.value - half, rel=0.05)
    assert found.high == pytest.approx(found.value + half, rel=0.05)
    assert stats.bootstrap_ratio([1.0] * 4, [1, 0, 0, 0]).high == math.inf
    assert stats.bootstrap_ratio(dollars, right, seed=0) == found


def test_holm_gives_the_published_adjustment():
    # the worked example of the encyclopedias: four hypotheses at 0.05
    adjusted = stats.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_the_smallest_effect_is_as_published():
    # Cohen 1988, table 6.4.1: effect h = 0.20 needs 392 cases a group
    rise = stats.minimum_detectable_effect(392, 0.5)
    h = 2 * math.asin(math.sqrt(0.5 + rise)) - 2 * math.asin(math.sqrt(0.5))
    assert h == pytest.approx(0.20, abs=0.0005)
    # Miller 2024: 3 points with differences of variance 1/9 take 969 questions, by a
    # normal approximation; the exact test needs a little more.
    rise = stats.minimum_detectable_effect(969, 0.5, paired_discordance=1 / 9 + 0.03**2)
    assert 0.03 < rise < 0.032


def test_the_exact_paired_test_finds_it_four_times_in_five():
    n, base, share = 60, 0.5, 0.4
    rise = stats.minimum_detectable_effect(n, base, paired_discordance=share)
    power = 0.0
    for differing in range(1, n + 1):
        wins = np.arange(differing + 1)
        found = [binomtest(int(k), differing).pvalue <= 0.05 for k in wins]
        chances = binom.pmf(wins, differing, (share + rise) / (2 * share))
        power += binom.pmf(differing, n, share) * (chances @ found)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_effects_out_of_reach_are_infinite():
    # two systems that differ on 30 % cannot both be nearly always right
    effect = stats.minimum_detectable_effect
    with pytest.warns(UserWarning, match="250 cases are too few .* cases_needed"):
        assert effect(250, 0.81, paired_discordance=0.3) == math.inf
    assert effect(250, 0.80, paired_discordance=0.3) < 0.1 + 1e-9
    for n, base, share in [(250, 1.0, None), (30, 0.5, 0.2), (2, 0.5, None)]:
        with pytest.warns(UserWarning, match=f"{n} cases are too few"):
            assert effect(n, base, paired_discordance=share) == math.inf


def test_separate_samples_need_as_many_cases_as_statsmodels_says():
    for points, rate in [(5, 0.364), (3, 0.5), (10, 0.9)]:
        effect = proportion_effectsize(rate + points / 100, rate)
        n = NormalIndPower().solve_power(effect, alpha=0.05, power=0.8)
        assert stats.cases_needed(points, rate) == math.ceil(n)


@pytest.mark.parametrize(
    ("points", "rate", "share"), [(5, 0.5, 0.2), (20, 0.5, 0.2), (3, 0.97, 0.03)]
)
def test_the_cases_needed_are_the_first_that_show_it(points, rate, share):
    n = stats.cases_needed(points, rate, share)
    effect = stats.minimum_detectable_effect
    assert effect(n, rate, paired_discordance=share) <= points / 100 + 1e-9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert effect(n - 1, rate, paired_discordance=share) > points / 100
    # by statsmodels' McNemar test, on draws
    wins, losses = (share + points / 100) / 2, (share - points / 100) / 2
    drawn = np.random.default_rng(0).multinomial(
        n, [wins, max(losses, 0), 1 - wins - max(losses, 0)], 3_000
    )
    tables = [[[0, a], [b, same]] for a, b, same in drawn.tolist()]
    found = [mcnemar(table, exact=True).pvalue <= 0.05 for table in tables]
    assert np.mean(found) == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.03,), "percentage points, such as 3, not 0.03"),
        ((3, 1.0), "100.0% can rise by 0 points at most.* for a fall"),
        ((60,), "by 50 points at most"),
        ((30, 0.5, 0.2), "systems that differ on 20.0%, not by 30"),
        ((3, 0.99, 0.1), "by 0 points at most"),
    ],
)
def test_what_no_number_of_cases_shows_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        stats.cases_needed(*arguments)


@pytest.mark.parametrize(
    ("n", "broken", "mended", "passes"),
    [(20, 0, 0, True), (20, 2, 0, False), (250, 2, 0, True), (250, 30, 30, False)],
)
def test_a_gate_stops_what_may_be_more_than_three_points_worse(
    n, broken, mended, passes
):
    before, after = pairs(n - broken - mended, broken, mended, 0)
    if passes:
        assert stats.gate(before, after).only_a == broken
        return
    names = [f"q{i}" for i in range(n)]
    with pytest.raises(
        AssertionError, match=f"on {n} cases.*Broken: q.*Mended"
    ) as told:
        stats.gate(before, after, 3, names)
    assert str(told.value).count("q") == broken + mended
    for wrong in ((before, after[1:]), ([], []), (before, after, 3, names[1:])):
        with pytest.raises(ValueError, match="differ in length, or hold 0"):
            stats.gate(*wrong)


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
    found = stats.sequential_test(bad, limit).e_values
    for n in (1, 7, 40):
        k = int(bad[:n].sum())

        def ratio(rate, n=n, k=k):
            odds = k * np.log(rate / limit) + (n - k) * np.log((1 - rate) / (1 - limit))
            return np.exp(odds) / (1 - limit)

        assert found[n - 1] == pytest.approx(quad(ratio, limit, 1)[0], rel=1e-6)
