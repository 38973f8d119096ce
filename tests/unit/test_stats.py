"""Statistics and judges: published values, sums by hand, and the own estimators."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.stats import binom, binomtest, norm

from utils.evals.judge import judge_rates, kappa, rogan_gladen
from utils.evals.stats import (
    Interval,
    bootstrap_ratio,
    holm,
    minimum_detectable_effect,
    paired_difference,
    sequential_test,
    wilson,
)


def split(*runs):
    """True and False by turns: split(2, 1) is two True, then one False."""
    return [i % 2 == 0 for i, run in enumerate(runs) for _ in range(run)]


def pairs(both, only_a, only_b, neither):
    a = split(both + only_a, only_b + neither)
    return a, split(both, only_a, only_b, neither)


def labels(tp, fn, tn, fp):
    """Truth and verdict with these counts."""
    return split(tp + fn, tn + fp), split(tp, fn, fp, tn)


# Intervals and pairs


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    found = wilson(successes, n)
    assert (found.value, found.n) == (successes / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_intervals_are_written_for_people():
    assert wilson(91, 250).percent() == "36.4 % (30.7 to 42.5)"  # as in data/README.md
    assert wilson(250, 250).percent() == "100.0 % (98.5 to 100.0)"
    difference = Interval(0.0204, -0.011, 0.0504, 250)
    assert difference.points() == "+2.0 points (-1.1 to +5.0)"
    assert difference.percent(digits=0) == "2 % (-1 to 5)"


def test_the_paired_p_is_mcnemars():
    # Fay, vignette exactMcNemar of R's exact2x2: 9 and 2 discordant pairs, 0.06543
    a, b = pairs(both=21, only_a=9, only_b=2, neither=12)
    assert paired_difference(a, b).p == pytest.approx(0.06543, abs=5e-6)
    assert paired_difference(b, a).p == paired_difference(a, b).p
    assert paired_difference(*pairs(0, 0, 6, 0)).p == pytest.approx(2 / 2**6)
    assert paired_difference(*pairs(3, 5, 5, 3)).p == 1.0


def test_paired_difference_of_the_data():
    # launch against four_rules on the eval set, as test_grading grades them
    a, b = pairs(both=88, only_a=3, only_b=110, neither=49)
    found = paired_difference(a, b)
    assert (found.only_a, found.only_b, found.n) == (3, 110, 250)
    assert found.p == pytest.approx(4.63e-29, rel=0.01)
    assert found.difference.value == pytest.approx((198 - 91) / 250)
    # Wald interval of a paired difference: the two must nearly agree at this size
    half = 1.96 * math.sqrt((113 / 250 - 0.428**2) / 250)
    assert found.difference.low == pytest.approx(0.428 - half, abs=0.006)
    assert found.difference.high == pytest.approx(0.428 + half, abs=0.006)
    # Lists, arrays and series of booleans or of 0 and 1 are all the same.
    series = pd.Series(b, index=range(5, 255))
    assert paired_difference(np.array(a), series) == found
    assert paired_difference([int(x) for x in a], b) == found


def test_where_no_case_differs_the_interval_has_no_width():
    same = paired_difference([True] * 250, [True] * 250)
    assert same.difference == Interval(0.0, 0.0, 0.0, 250)
    assert (same.p, same.only_a, same.only_b) == (1.0, 0, 0)


def test_clusters_widen_the_interval_and_keep_its_coverage():
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for seed in range(100):
        chance = rng.beta(1, 1, size=40)  # one chance for all 5 cases of a cluster
        b = (rng.random((40, 5)) < chance[:, None]).ravel()
        a, groups = np.zeros(200, bool), np.repeat(np.arange(40), 5).tolist()
        whole = paired_difference(a, b, groups, 500, seed).difference
        single = paired_difference(a, b, None, 500, seed).difference
        assert whole.high - whole.low > single.high - single.low
        hits += whole.low <= 0.5 <= whole.high
        naive += single.low <= 0.5 <= single.high
    assert hits >= 88 and naive < 85
    a, b = pairs(40, 11, 19, 30)
    names = [f"case {i}" for i in range(100)]
    assert paired_difference(a, b, names) == paired_difference(a, b)


def test_bootstrap_of_a_ratio_is_that_of_its_sums():
    dollars, right = [1.0, 2.0, 3.0, 4.0] * 25, [True, True, False, True] * 25
    found = bootstrap_ratio(dollars, right)
    assert found.value == pytest.approx(250 / 75)
    # standard error by the delta method
    residual = np.array(dollars) - found.value * np.array(right)
    half = 1.96 * math.sqrt(100) * residual.std() / 75
    assert found.low == pytest.approx(found.value - half, rel=0.05)
    assert found.high == pytest.approx(found.value + half, rel=0.05)
    assert bootstrap_ratio([1.0] * 4, [1, 0, 0, 0]).high == math.inf
    assert bootstrap_ratio([2.0] * 9) == Interval(2.0, 2.0, 2.0, 9)
    assert bootstrap_ratio(dollars, right, seed=0) == found
    uneven = np.linspace(0, 1, 100)
    assert bootstrap_ratio(uneven, seed=1) != bootstrap_ratio(uneven, seed=2)


def test_holm_gives_the_published_adjustment():
    # the worked example of the encyclopedias: four hypotheses at 0.05
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8, 1.0]) == [1.0, 1.0, 1.0]


# The smallest effect that n cases show


def test_of_two_samples_it_is_cohens():
    # Cohen 1988, table 6.4.1: effect h = 0.20 needs 392 cases a group
    rise = minimum_detectable_effect(392, 0.5)
    h = 2 * math.asin(math.sqrt(0.5 + rise)) - 2 * math.asin(math.sqrt(0.5))
    assert h == pytest.approx(0.20, abs=0.0005)


def test_of_one_sample_twice_it_is_near_the_formulas():
    # Normal approximations, so the exact test needs a little more than either.
    z_alpha, z_power = norm.ppf([0.975, 0.8])
    # Miller 2024: 3 points with differences of variance 1/9 take 969 questions
    n = round((z_alpha + z_power) ** 2 / 9 / 0.03**2)
    assert n == 969
    rise = minimum_detectable_effect(n, 0.5, paired_discordance=1 / 9 + 0.03**2)
    assert 0.03 < rise < 0.032
    # Connor 1987, Biometrics 43, 207
    share, rise = 0.3, minimum_detectable_effect(250, 0.4, paired_discordance=0.3)
    spread = z_alpha * math.sqrt(share) + z_power * math.sqrt(share - rise**2)
    assert spread / math.sqrt(250) < rise < 1.06 * spread / math.sqrt(250)


def test_the_exact_paired_test_finds_it_four_times_in_five():
    n, base, share = 60, 0.5, 0.4
    rise = minimum_detectable_effect(n, base, paired_discordance=share)
    power = 0.0
    for differing in range(1, n + 1):
        wins = np.arange(differing + 1)
        found = [binomtest(int(k), differing).pvalue <= 0.05 for k in wins]
        chances = binom.pmf(wins, differing, (share + rise) / (2 * share))
        power += binom.pmf(differing, n, share) * (chances @ found)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_effects_out_of_reach_are_infinite():
    assert minimum_detectable_effect(250, 1.0) == math.inf
    assert minimum_detectable_effect(20, 0.5, paired_discordance=0.1) == math.inf
    # two systems that differ on 30 % cannot both be nearly always right
    assert minimum_detectable_effect(250, 0.81, paired_discordance=0.3) == math.inf
    assert minimum_detectable_effect(250, 0.80, paired_discordance=0.3) < 0.1 + 1e-9


# The anytime-valid test


def test_e_values_of_losses_alone_can_be_summed_by_hand():
    # The mean of (2 r)**k over all rates r from 1/2 to 1, after k losses in a row.
    found = sequential_test([True] * 9)
    by_hand = [(2 ** (k + 1) - 1) / (k + 1) for k in range(1, 10)]
    assert found.e_values == pytest.approx(by_hand)
    assert found.stopped_at == 7 and found.e_values[5] < 20 <= found.e_values[6]
    assert sequential_test([False]).e_values == pytest.approx([0.5])
    assert sequential_test([True] * 6).stopped_at is None


@pytest.mark.parametrize("limit", [0.03, 0.5, 0.9])
def test_the_e_value_is_an_average_of_likelihood_ratios(limit):
    bad = np.random.default_rng(0).random(40) < 0.4
    found = sequential_test(bad, limit).e_values
    for n in (1, 7, 40):
        k = int(bad[:n].sum())

        def ratio(rate, n=n, k=k):
            odds = k * np.log(rate / limit) + (n - k) * np.log((1 - rate) / (1 - limit))
            return np.exp(odds) / (1 - limit)

        assert found[n - 1] == pytest.approx(quad(ratio, limit, 1)[0], rel=1e-6)


@pytest.mark.parametrize("limit", [0.05, 0.5, 0.8])
def test_at_the_limit_the_e_value_is_expected_to_stay(limit):
    past = (np.random.default_rng(1).random(60) < limit).tolist()
    for n in (1, 10, 60):
        now = sequential_test(past[:n], limit).e_values[-1]
        worse = sequential_test([*past[:n], True], limit).e_values[-1]
        better = sequential_test([*past[:n], False], limit).e_values[-1]
        assert limit * worse + (1 - limit) * better == pytest.approx(now)


@pytest.mark.parametrize(("limit", "alpha"), [(0.1, 0.2), (0.5, 0.05)])
def test_false_alarms_keep_to_alpha_though_one_looks_after_every_event(limit, alpha):
    drawn = np.random.default_rng(0).random((1_000, 600)) < limit
    ends = [sequential_test(bad, limit, alpha).stopped_at for bad in drawn]
    false = sum(end is not None for end in ends)
    # Not above alpha by more than chance, and not so rare that it never fires.
    assert alpha / 4 < false / len(drawn)
    assert binomtest(false, len(drawn), alpha, alternative="greater").pvalue > 0.001
    # A test meant for one look, looked at after every event, does not keep to it.
    hits, seen = drawn.cumsum(axis=1), np.arange(1, 601)
    assert (binom.sf(hits - 1, seen, limit) <= alpha).any(axis=1).mean() > 2 * alpha


def test_e_values_stay_numbers_for_long_sequences():
    for bad in ([True] * 20_000, [False] * 20_000, split(*[1] * 20_000)):
        found = sequential_test(bad)
        assert np.isfinite(found.e_values).all() and min(found.e_values) >= 0
        assert (found.stopped_at is not None) == all(bad)
    late = sequential_test([False] * 5_000 + [True] * 15_000)
    assert late.stopped_at > 5_000


# Judges


def test_kappa_gives_the_published_values():
    a, b = pairs(both=20, only_a=5, only_b=10, neither=15)
    assert kappa(a, b) == pytest.approx(0.4)
    # Fleiss, Statistical Methods for Rates and Proportions: three diagnoses, 0.68
    counts = {"pp": 75, "pn": 1, "po": 4, "np": 5, "nn": 4, "no": 1, "oo": 10}
    rows = [pair for pair, n in counts.items() for _ in range(n)]
    assert kappa(*zip(*rows, strict=True)) == pytest.approx(0.6765, abs=5e-5)
    assert kappa(["a", "b"], ["b", "a"]) == -1.0
    assert kappa(["pass"] * 5, ["pass", "fail"] * 2 + ["pass"]) == 0.0
    assert math.isnan(kappa(["pass"] * 5, ["pass"] * 5))


def test_rates_of_the_judges_in_the_data():
    policy = judge_rates(*labels(83, 8, 151, 8))
    assert policy.tpr == wilson(83, 91) and policy.tnr == wilson(151, 159)
    assert policy.accuracy == wilson(234, 250)
    assert policy.constant == 159 / 250
    by_chance = (91 * 91 + 159 * 159) / 250**2
    assert policy.kappa == pytest.approx((234 / 250 - by_chance) / (1 - by_chance))
    plain = judge_rates(*labels(91, 0, 0, 159))
    assert (plain.tpr.value, plain.tnr.value, plain.kappa) == (1.0, 0.0, 0.0)
    assert plain.accuracy.value < plain.constant


@pytest.mark.parametrize(
    ("passed", "judge", "rate"),
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
def test_rogan_gladen_gives_the_corrected_rate(passed, judge, rate):
    found = rogan_gladen(split(*passed), *labels(*judge))
    assert found.value == pytest.approx(rate)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.n == sum(passed)


def test_rogan_gladen_covers_about_95_percent():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(200):
        truth = rng.random(200) < 0.5
        verdict = np.where(truth, rng.random(200) < 0.9, rng.random(200) < 0.15)
        observed = rng.random(400) < 0.4 * 0.9 + 0.6 * 0.15
        found = rogan_gladen(observed, truth, verdict, replicates=500, seed=seed)
        hits += found.low <= 0.4 <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_a_judge_no_better_than_chance_tells_nothing():
    for judge in (labels(91, 0, 0, 159), labels(5, 5, 5, 5), labels(1, 9, 1, 9)):
        found = rogan_gladen(split(60, 40), *judge)
        assert math.isnan(found.value)
        assert (found.low, found.high, found.n) == (0.0, 1.0, 100)
    # Nearly chance: about a quarter of the replicates tell nothing, so each bound goes
    # to its end; dropping those replicates would hide it.
    found = rogan_gladen(split(50, 50), *labels(11, 9, 11, 9))
    assert not math.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)
