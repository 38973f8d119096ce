import math
import time

import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.stats import binom, binomtest, norm

from utils.evals.stats import (
    Interval,
    bootstrap_ratio,
    detectable_difference,
    holm,
    judge_rates,
    kappa,
    mcnemar,
    paired_difference,
    rogan_gladen,
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


@pytest.mark.parametrize(
    ("right", "text"),
    [  # the table of data/README.md
        (91, "36.4 % (30.7 to 42.5)"),
        (86, "34.4 % (28.8 to 40.5)"),
        (94, "37.6 % (31.8 to 43.7)"),
        (198, "79.2 % (73.7 to 83.8)"),
        (241, "96.4 % (93.3 to 98.1)"),
        (250, "100.0 % (98.5 to 100.0)"),
    ],
)
def test_wilson_gives_the_intervals_of_the_data(right, text):
    assert wilson(right, 250).percent() == text


@pytest.mark.parametrize("rate", [0.05, 0.364, 0.792, 0.964])
def test_wilson_covers_about_95_percent(rate):
    n = 250
    covers = [wilson(k, n).low <= rate <= wilson(k, n).high for k in range(n + 1)]
    assert binom.pmf(range(n + 1), n, rate) @ covers == pytest.approx(0.95, abs=0.025)


def test_a_wider_confidence_gives_a_wider_interval():
    narrow, wide = wilson(9, 20, confidence=0.8), wilson(9, 20, confidence=0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_intervals_are_written_for_people():
    difference = Interval(0.0204, -0.011, 0.0504, 250)
    assert difference.points() == "+2.0 points (-1.1 to +5.0)"
    assert difference.percent(digits=0) == "2 % (-1 to 5)"


def test_mcnemar_gives_the_published_p():
    # Fay, vignette exactMcNemar of R's exact2x2: 9 and 2 discordant pairs, 0.06543
    a, b = pairs(both=21, only_a=9, only_b=2, neither=12)
    assert mcnemar(a, b) == pytest.approx(0.06543, abs=5e-6)
    assert mcnemar(b, a) == mcnemar(a, b)
    assert mcnemar(*pairs(0, 0, 6, 0)) == pytest.approx(2 / 2**6)
    assert mcnemar(*pairs(3, 5, 5, 3)) == 1.0
    assert mcnemar(*pairs(3, 0, 0, 3)) == 1.0


def test_paired_difference_of_the_data():
    # launch against four_rules on the eval set, as test_grading grades them
    a, b = pairs(both=88, only_a=3, only_b=110, neither=49)
    found = paired_difference(a, b)
    assert (found.only_a, found.only_b, found.n) == (3, 110, 250)
    assert found.p == mcnemar(a, b) == pytest.approx(4.63e-29, rel=0.01)
    assert found.difference.value == pytest.approx((198 - 91) / 250)
    # Wald interval of a paired difference: the two must nearly agree at this size
    half = 1.96 * math.sqrt((113 / 250 - 0.428**2) / 250)
    assert found.difference.low == pytest.approx(0.428 - half, abs=0.006)
    assert found.difference.high == pytest.approx(0.428 + half, abs=0.006)
    reverse = paired_difference(b, a).difference
    assert reverse.value == -found.difference.value
    assert reverse.high == pytest.approx(-found.difference.low, abs=0.01)


def test_the_seed_decides_the_replicates():
    a, b = pairs(40, 11, 19, 30)
    assert paired_difference(a, b, seed=1) == paired_difference(a, b, seed=1)
    gain = np.subtract(b, a, dtype=float) + np.linspace(0, 0.01, 100)
    assert bootstrap_ratio(gain, seed=1) != bootstrap_ratio(gain, seed=2)
    judge = labels(83, 8, 151, 8)
    assert rogan_gladen(a, *judge, seed=1) == rogan_gladen(a, *judge, seed=1)
    assert rogan_gladen(a, *judge, seed=1) != rogan_gladen(a, *judge, seed=2)


def test_paired_bootstrap_covers_about_95_percent():
    rng, hits, n = np.random.default_rng(0), 0, 150
    for seed in range(300):
        kinds = rng.choice(4, size=n, p=[0.3, 0.1, 0.25, 0.35])
        a, b = np.isin(kinds, [0, 1]), np.isin(kinds, [0, 2])
        found = paired_difference(a, b, replicates=500, seed=seed).difference
        hits += found.low <= 0.15 <= found.high
    assert 0.91 <= hits / 300 <= 0.98


def test_clusters_widen_the_interval_and_keep_its_coverage():
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for seed in range(200):
        chance = rng.beta(1, 1, size=40)  # one chance for all 5 cases of a cluster
        b = rng.random((40, 5)) < chance[:, None]
        a, groups = np.zeros(200, bool), np.repeat(np.arange(40), 5)
        one = paired_difference(a, b.ravel(), groups.tolist(), 500, seed).difference
        two = paired_difference(a, b.ravel(), None, 500, seed).difference
        assert one.high - one.low > two.high - two.low
        hits += one.low <= 0.5 <= one.high
        naive += two.low <= 0.5 <= two.high
    assert 0.89 <= hits / 200 <= 0.98
    assert naive / 200 < 0.85


def test_clusters_of_one_are_no_clusters():
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


def test_no_case_differs():
    same = paired_difference([True] * 250, [True] * 250)
    assert same.difference == Interval(0.0, 0.0, 0.0, 250)
    assert (same.p, same.only_a, same.only_b) == (1.0, 0, 0)


def test_ten_thousand_replicates_are_quick():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 250)) < 0.5
    start = time.perf_counter()
    paired_difference(a, b)
    paired_difference(a, b, clusters=np.arange(250) // 5)
    rogan_gladen(a, *labels(83, 8, 151, 8))
    assert time.perf_counter() - start < 3


def test_holm_gives_the_published_adjustment():
    # the worked example of the encyclopedias: four hypotheses at 0.05
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02]) == [0.02]
    assert holm([0.9, 0.8, 1.0]) == [1.0, 1.0, 1.0]


def test_detectable_difference_of_two_samples_is_that_of_cohen():
    # Cohen 1988, table 6.4.1: effect h = 0.20 needs 392 cases a group
    rise = detectable_difference(392, 0.5)
    h = 2 * math.asin(math.sqrt(0.5 + rise)) - 2 * math.asin(math.sqrt(0.5))
    assert h == pytest.approx(0.20, abs=0.0005)


def test_detectable_difference_of_one_sample_twice_is_near_the_formulas():
    # Normal approximations, so the exact test needs a little more than either.
    z_alpha, z_power = norm.ppf([0.975, 0.8])
    # Miller 2024: 3 points with differences of variance 1/9 take 969 questions
    n = round((z_alpha + z_power) ** 2 / 9 / 0.03**2)
    assert n == 969
    rise = detectable_difference(n, 0.5, paired_discordance=1 / 9 + 0.03**2)
    assert 0.03 < rise < 0.032
    # Connor 1987, Biometrics 43, 207
    share, rise = 0.3, detectable_difference(250, 0.4, paired_discordance=0.3)
    spread = z_alpha * math.sqrt(share) + z_power * math.sqrt(share - rise**2)
    assert spread / math.sqrt(250) < rise < 1.06 * spread / math.sqrt(250)


@pytest.mark.parametrize(("n", "base", "share"), [(250, 0.36, 0.3), (60, 0.5, 0.4)])
def test_the_exact_paired_test_finds_the_detectable_difference(n, base, share):
    rise = detectable_difference(n, base, paired_discordance=share)
    rng = np.random.default_rng(0)
    chances = [(share - rise) / 2, (share + rise) / 2, 1 - share]
    draws = rng.multinomial(n, chances, size=4000)
    known = {}
    for only_a, only_b, _ in draws.tolist():
        found = known.setdefault((only_a, only_b), None)
        if found is None:
            known[only_a, only_b] = binomtest(only_b, only_a + only_b).pvalue <= 0.05
    power = np.mean([known[only_a, only_b] for only_a, only_b, _ in draws.tolist()])
    assert power == pytest.approx(0.8, abs=0.02)


def test_a_two_sample_test_finds_the_detectable_difference():
    n, base = 250, 0.364
    rise = detectable_difference(n, base)
    rng = np.random.default_rng(0)
    a, b = rng.binomial(n, base, 20_000) / n, rng.binomial(n, base + rise, 20_000) / n
    pooled = (a + b) / 2
    z = (b - a) / np.sqrt(2 * pooled * (1 - pooled) / n)
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.015)


def test_detectable_difference_falls_with_n_and_with_agreement():
    rises = [detectable_difference(n, 0.4) for n in (60, 250, 1000)]
    assert rises == sorted(rises, reverse=True)
    shares = (0.1, 0.3, 0.5)
    rises = [detectable_difference(250, 0.4, paired_discordance=s) for s in shares]
    assert rises == sorted(rises)
    assert rises[0] < detectable_difference(250, 0.4)


def test_differences_out_of_reach_are_infinite():
    assert detectable_difference(250, 1.0) == math.inf
    assert detectable_difference(20, 0.9) == math.inf
    assert detectable_difference(20, 0.5, paired_discordance=0.1) == math.inf
    # two systems that differ on 30 % cannot both be nearly always right
    assert detectable_difference(250, 0.96, paired_discordance=0.3) == math.inf
    assert detectable_difference(250, 0.80, paired_discordance=0.3) < 0.1 + 1e-9
    assert detectable_difference(250, 0.81, paired_discordance=0.3) == math.inf


def test_kappa_gives_the_published_values():
    a, b = pairs(both=20, only_a=5, only_b=10, neither=15)
    assert kappa(a, b) == pytest.approx(0.4)
    # Fleiss, Statistical Methods for Rates and Proportions: three diagnoses, 0.68
    table = {
        (0, 0): 75,
        (0, 1): 1,
        (0, 2): 4,
        (1, 0): 5,
        (1, 1): 4,
        (1, 2): 1,
        (2, 2): 10,
    }
    names = ["psychotic", None, 3]
    rows = [(names[i], names[j]) for (i, j), n in table.items() for _ in range(n)]
    assert kappa(*zip(*rows, strict=True)) == pytest.approx(0.6765, abs=5e-5)


def test_kappa_of_raters_who_do_not_vary():
    assert math.isnan(kappa(["pass"] * 5, ["pass"] * 5))
    assert kappa(["pass"] * 5, ["pass", "fail"] * 2 + ["pass"]) == 0.0
    assert kappa(["a", "b"], ["a", "b"]) == 1.0
    assert kappa(["a", "b"], ["b", "a"]) == -1.0


def test_rates_of_the_judges_in_the_data():
    policy = judge_rates(*labels(83, 8, 151, 8))
    assert policy.tpr == wilson(83, 91) and policy.tnr == wilson(151, 159)
    assert policy.accuracy == wilson(234, 250)
    assert policy.constant == 159 / 250
    assert policy.kappa == pytest.approx(
        (234 / 250 - 0.53699) / (1 - 0.53699), abs=1e-4
    )
    assert (policy.true_positives, policy.false_negatives) == (83, 8)
    assert (policy.true_negatives, policy.false_positives) == (151, 8)
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


def test_rogan_gladen_of_the_published_example_is_five_in_a_hundred():
    found = rogan_gladen(split(23, 127), *labels(96, 4, 89, 11))
    assert round(100 * found.value, 1) == 5.1
    assert found.low == 0.0


def test_rogan_gladen_covers_about_95_percent():
    rng, hits = np.random.default_rng(0), 0
    for seed in range(300):
        truth = rng.random(200) < 0.5
        verdict = np.where(truth, rng.random(200) < 0.9, rng.random(200) < 0.15)
        observed = rng.random(400) < 0.4 * 0.9 + 0.6 * 0.15
        found = rogan_gladen(observed, truth, verdict, replicates=500, seed=seed)
        hits += found.low <= 0.4 <= found.high
    assert 0.91 <= hits / 300 <= 0.98


def test_fewer_labels_widen_the_interval():
    observed = split(150, 250)
    few = rogan_gladen(observed, *labels(9, 1, 18, 2))
    many = rogan_gladen(observed, *labels(90, 10, 180, 20))
    assert few.value == pytest.approx(many.value)
    assert few.high - few.low > 1.5 * (many.high - many.low)
    assert many.high - many.low > wilson(150, 400).high - wilson(150, 400).low


def test_a_judge_no_better_than_chance_tells_nothing():
    for judge in (labels(91, 0, 0, 159), labels(5, 5, 5, 5), labels(1, 9, 1, 9)):
        found = rogan_gladen(split(60, 40), *judge)
        assert math.isnan(found.value)
        assert (found.low, found.high, found.n) == (0.0, 1.0, 100)


def test_replicates_with_a_judge_no_better_than_chance_are_kept():
    # Nearly chance: about a quarter of the replicates tell nothing, so each bound goes
    # to its end; dropping those replicates would hide it.
    found = rogan_gladen(split(50, 50), *labels(11, 9, 11, 9))
    assert not math.isnan(found.value)
    assert (found.low, found.high) == (0.0, 1.0)
    # One wrong case only: it is missing from about a third of the replicates.
    found = rogan_gladen(split(50, 50), *labels(19, 0, 1, 0))
    assert found.value == 0.5
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_evidence_of_losses_alone_is_a_sum_that_can_be_done_by_hand():
    # The mean of (2 r)**k over all rates r from 1/2 to 1, after k losses in a row.
    found = sequential_test([True] * 9)
    by_hand = [(2 ** (k + 1) - 1) / (k + 1) for k in range(1, 10)]
    assert found.evidence == pytest.approx(by_hand)
    assert found.alarm == 7 and found.evidence[5] < 20 <= found.evidence[6]
    assert sequential_test([False]).evidence == pytest.approx([0.5])
    assert sequential_test([True] * 6).alarm is None


@pytest.mark.parametrize("limit", [0.03, 0.2, 0.5, 0.9])
def test_the_evidence_is_an_average_of_likelihood_ratios(limit):
    bad = np.random.default_rng(0).random(40) < 0.4
    found = sequential_test(bad, limit).evidence
    for n in (1, 7, 40):
        k = int(bad[:n].sum())

        def ratio(rate, n=n, k=k):
            odds = k * np.log(rate / limit) + (n - k) * np.log((1 - rate) / (1 - limit))
            return np.exp(odds) / (1 - limit)

        assert found[n - 1] == pytest.approx(quad(ratio, limit, 1)[0], rel=1e-6)


@pytest.mark.parametrize("limit", [0.05, 0.5, 0.8])
def test_at_the_limit_the_evidence_is_expected_to_stay(limit):
    past = (np.random.default_rng(1).random(60) < limit).tolist()
    for n in (1, 10, 60):
        now = sequential_test(past[:n], limit).evidence[-1]
        worse, better = (
            sequential_test([*past[:n], bad], limit).evidence[-1]
            for bad in (True, False)
        )
        assert limit * worse + (1 - limit) * better == pytest.approx(now)


def alarms(rate, limit, alpha, watched=300, length=600, seed=0):
    """How many of so many sequences, looked at after every event, raise the alarm."""
    drawn = np.random.default_rng(seed).random((watched, length)) < rate
    found = (sequential_test(bad, limit, alpha).alarm for bad in drawn)
    return sum(alarm is not None for alarm in found)


@pytest.mark.parametrize("limit", [0.1, 0.5])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_false_alarms_keep_to_alpha_though_one_looks_after_every_event(limit, alpha):
    watched = 1500
    false = alarms(limit, limit, alpha, watched)
    # Not above alpha by more than chance, and not so rare that it never fires.
    assert alpha / 4 < false / watched
    assert binomtest(false, watched, alpha, alternative="greater").pvalue > 0.001
    assert alarms(0.8 * limit, limit, alpha, watched) < false


def test_a_test_for_one_look_does_not_keep_to_alpha_when_peeked_at():
    # The trial above, with the test that it replaces.
    drawn = np.random.default_rng(0).random((1500, 600)) < 0.5
    hits, seen = drawn.cumsum(axis=1), np.arange(1, 601)
    false = (binom.sf(hits - 1, seen, 0.5) <= 0.05).any(axis=1).mean()
    assert false > 0.2


def test_a_worse_system_is_found_and_the_worse_the_sooner():
    assert alarms(0.75, 0.5, 0.05, length=150) > 0.99 * 300
    assert alarms(0.35, 0.1, 0.05, length=150) > 0.99 * 300
    assert alarms(0.65, 0.5, 0.05, length=150) > 0.6 * 300
    drawn = np.random.default_rng(2).random((200, 300))
    delays = [
        np.median([sequential_test(row < rate).alarm or 301 for row in drawn])
        for rate in (0.65, 0.75, 0.9)
    ]
    assert delays[0] > delays[1] > delays[2] > 6


def test_the_evidence_stays_a_number_for_long_sequences():
    for bad in ([True] * 20_000, [False] * 20_000, split(*[1] * 20_000)):
        found = sequential_test(bad, 0.5)
        assert np.isfinite(found.evidence).all()
        assert min(found.evidence) >= 0
        assert (found.alarm is not None) == all(bad)
    late = sequential_test([False] * 5_000 + [True] * 15_000, 0.5)
    assert late.alarm > 5_000


def test_columns_may_be_lists_arrays_or_series():
    a, b = pairs(40, 11, 19, 30)
    expected = paired_difference(a, b)
    assert paired_difference(np.array(a), pd.Series(b, index=range(5, 105))) == expected
    assert paired_difference([int(x) for x in a], [float(x) for x in b]) == expected
    frame = pd.Series(a, index=range(5, 105))
    assert kappa(frame, b) == kappa(a, b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wilson(0, 0), "n > 0"),
        (lambda: wilson(-1, 5), "successes from 0 to n"),
        (lambda: wilson(6, 5), "6 of 5"),
        (lambda: wilson(1, 5, confidence=1.5), "confidence"),
        (lambda: mcnemar([], []), "a must hold"),
        (lambda: mcnemar([True], [True, False]), "lengths differ.*'a': 1, 'b': 2"),
        (lambda: mcnemar([True, None], [True, True]), "a must hold True and False"),
        (lambda: mcnemar([True, True], ["pass", "fail"]), "b must hold"),
        (lambda: paired_difference([True], [True]), "two cases or clusters"),
        (lambda: paired_difference([True] * 9, [True] * 9, [1] * 9), "two cases or"),
        (lambda: paired_difference([True] * 9, [True] * 9, [1] * 8), "lengths differ"),
        (lambda: paired_difference([True] * 9, [True] * 9, None, 0), "a replicate"),
        (lambda: bootstrap_ratio([]), "not all 0"),
        (lambda: bootstrap_ratio([1, math.nan]), "finite"),
        (lambda: bootstrap_ratio([1, 2], [0, 0]), "not all 0"),
        (lambda: bootstrap_ratio([1, 2], [1, -1]), "0 or more"),
        (lambda: bootstrap_ratio([1, 2], [1]), "lengths differ"),
        (lambda: holm([]), "at least one"),
        (lambda: holm([0.5, 1.5]), "from 0 to 1"),
        (lambda: holm([math.nan]), "from 0 to 1"),
        (lambda: detectable_difference(0, 0.5), "n > 0"),
        (lambda: detectable_difference(9, 1.5), "base_rate"),
        (lambda: detectable_difference(9, 0.5, power=1.0), "power"),
        (lambda: detectable_difference(9, 0.5, alpha=0.0), "alpha"),
        (lambda: detectable_difference(9, 0.5, paired_discordance=0.0), "discordance"),
        (lambda: kappa([], []), "one length"),
        (lambda: kappa([1], [1, 2]), "one length"),
        (lambda: judge_rates([True, True], [True, False]), "both right and wrong"),
        (lambda: judge_rates([True, False], [True]), "lengths differ"),
        (lambda: rogan_gladen([], [True, False], [True, False]), "observed must hold"),
        (lambda: rogan_gladen([True], [False] * 2, [True] * 2), "both right and wrong"),
        (lambda: rogan_gladen([True], [True, False], [True, False], 0), "a replicate"),
        (lambda: sequential_test([]), "bad must hold"),
        (lambda: sequential_test([True, None]), "bad must hold True and False"),
        (lambda: sequential_test([True], limit=0.0), "limit and alpha"),
        (lambda: sequential_test([True], limit=1.0), "limit and alpha"),
        (lambda: sequential_test([True], alpha=0.0), "limit and alpha"),
        (lambda: sequential_test([True], alpha=math.nan), "limit and alpha"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
