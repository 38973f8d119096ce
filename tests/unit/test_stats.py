"""Statistics and judges: published values, sums by hand, and the own estimators."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import binom, binomtest

from utils.evals import judge, stats
from utils.evals.stats import Interval, wilson


def split(*runs):
    """True and False by turns: split(2, 1) is two True, then one False."""
    return [i % 2 == 0 for i, run in enumerate(runs) for _ in range(run)]


def pairs(both, only_a, only_b, neither):
    a = split(both + only_a, only_b + neither)
    return a, split(both, only_a, only_b, neither)


def labels(tp, fn, tn, fp):
    """Truth and verdict with these counts."""
    return split(tp + fn, tn + fp), split(tp, fn, fp, tn)


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
    assert effect(250, 0.81, paired_discordance=0.3) == math.inf
    assert effect(250, 0.80, paired_discordance=0.3) < 0.1 + 1e-9
    assert effect(250, 1.0) == math.inf


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


def test_kappa_gives_the_published_values():
    assert judge.kappa(*pairs(20, 5, 10, 15)) == pytest.approx(0.4)
    # Fleiss, Statistical Methods for Rates and Proportions: three diagnoses, 0.68
    counts = {"pp": 75, "pn": 1, "po": 4, "np": 5, "nn": 4, "no": 1, "oo": 10}
    rows = [pair for pair, n in counts.items() for _ in range(n)]
    assert judge.kappa(*zip(*rows, strict=True)) == pytest.approx(0.6765, abs=5e-5)
    assert math.isnan(judge.kappa(["pass"] * 5, ["pass"] * 5))


def test_rates_of_the_judges_in_the_data():
    policy = judge.judge_rates(*labels(83, 8, 151, 8))
    assert policy.tpr == wilson(83, 91) and policy.tnr == wilson(151, 159)
    assert policy.accuracy == wilson(234, 250)
    assert policy.constant == 159 / 250
    plain = judge.judge_rates(*labels(91, 0, 0, 159))
    assert (plain.tpr.value, plain.tnr.value, plain.kappa) == (1.0, 0.0, 0.0)
    assert plain.accuracy.value < plain.constant


@pytest.mark.parametrize(
    ("passed", "counts", "rate"),
    [
        # the worked example of R's epiR::epi.prev: 23 of 150, 96 %, 89 %: 5.1 of 100
        ((23, 127), (96, 4, 89, 11), (23 / 150 + 0.89 - 1) / 0.85),
        # a perfect judge changes nothing
        ((30, 70), (50, 0, 50, 0), 0.3),
        # below the false positives alone: no less than 0; likewise no more than 1
        ((6, 145), (96, 4, 93, 7), 0.0),
        ((99, 1), (90, 10, 90, 10), 1.0),
    ],
)
def test_rogan_gladen_gives_the_corrected_rate(passed, counts, rate):
    found = judge.rogan_gladen(split(*passed), *labels(*counts))
    assert found.value == pytest.approx(rate)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n == sum(passed)


def test_rogan_gladen_covers_about_95_percent():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        truth = rng.random(200) < 0.5
        verdict = np.where(truth, rng.random(200) < 0.9, rng.random(200) < 0.15)
        observed = rng.random(400) < 0.4 * 0.9 + 0.6 * 0.15
        found = judge.rogan_gladen(observed, truth, verdict, replicates=500, seed=seed)
        hits += found.low <= 0.4 <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_a_judge_no_better_than_chance_tells_nothing():
    for known in (labels(91, 0, 0, 159), labels(1, 9, 1, 9)):
        found = judge.rogan_gladen(split(60, 40), *known)
        assert math.isnan(found.value)
        assert (found.low, found.high, found.n) == (0.0, 1.0, 100)
    # Nearly chance: about a quarter of the replicates tell nothing, so each bound goes
    # to its end; dropping those replicates would hide it.
    for passed, value in [(5, 0.0), (50, 0.5), (95, 1.0)]:
        observed = split(passed, 100 - passed)
        found = judge.rogan_gladen(observed, *labels(11, 9, 11, 9))
        assert (found.value, found.low, found.high) == (value, 0.0, 1.0)
