"""How sure a number is: intervals, paired and sequential tests, reach, and judges.

Rates and differences are fractions of 1. Every function refuses empty input, columns
of different lengths and values out of range with a ValueError. The same seed gives the
same interval.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower


@dataclass(frozen=True)
class Interval:
    """An estimate from `n` cases with the bounds of its confidence interval (95 %)."""

    value: float
    low: float
    high: float
    n: int

    def percent(self, digits: int = 1) -> str:
        """Write a rate, such as '36.4 % (30.7 to 42.5)'."""
        return self._write(f".{digits}f", "%")

    def points(self, digits: int = 1) -> str:
        """Write a difference of rates, such as '+2.0 points (-1.1 to +5.0)'."""
        return self._write(f"+.{digits}f", "points")

    def _write(self, spec: str, unit: str) -> str:
        numbers = (self.value, self.low, self.high)
        value, low, high = (format(100 * x, spec) for x in numbers)
        return f"{value} {unit} ({low} to {high})"


@dataclass(frozen=True)
class Paired:
    """Two systems on the same n cases: the rate of b less that of a."""

    difference: Interval
    p: float  # exact McNemar
    only_a: int  # cases that a alone has right
    only_b: int
    n: int


@dataclass(frozen=True)
class Watched:
    """A test that is looked at after every event, and when it raised the alarm."""

    evidence: list[float]  # after each event; 1 tells nothing
    alarm: int | None  # number of the event, from 1, at which it came; None: it did not


@dataclass(frozen=True)
class JudgeRates:
    """A judge against the truth; a pass is positive."""

    tpr: Interval  # share of the right answers that it passes
    tnr: Interval  # share of the wrong answers that it fails
    accuracy: Interval
    constant: float  # accuracy of giving the commoner verdict always
    kappa: float
    true_positives: int
    false_negatives: int
    true_negatives: int
    false_positives: int


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of one rate (Wilson 1927), sound at 0 and 1 and for small n."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"need n > 0 and successes from 0 to n: {successes} of {n}")
    test = stats.binomtest(int(successes), int(n))
    low, high = test.proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(low), float(high), int(n))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Exact two-sided p that a and b are right equally often (McNemar 1947).

    Only cases on which they differ tell anything; where there is none, p is 1.
    """
    right_a, right_b = _flags(a=a, b=b)
    differing = int((right_a != right_b).sum())
    only_b = int((right_b & ~right_a).sum())
    return float(stats.binomtest(only_b, differing).pvalue) if differing else 1.0


def paired_difference(
    a: Sequence[bool],
    b: Sequence[bool],
    clusters: Iterable[Hashable] | None = None,
    replicates: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Rate of b less that of a on the same cases, with a bootstrap interval.

    `clusters` names the group of each case, such as its template: groups are resampled
    whole. McNemar's p knows no groups, so with clusters go by the interval. Where no
    case differs the interval has no width; `detectable_difference` tells more then.
    """
    right_a, right_b = _flags(a=a, b=b)
    gain = right_b.astype(int) - right_a
    difference = bootstrap_ratio(gain, None, clusters, replicates, seed)
    only_a, only_b = int((gain < 0).sum()), int((gain > 0).sum())
    return Paired(difference, mcnemar(a, b), only_a, only_b, len(gain))


def sequential_test(
    bad: Sequence[bool], limit: float = 0.5, alpha: float = 0.05
) -> Watched:
    """Watch whether events are bad more often than `limit`, however often one looks.

    The alarm comes when the evidence reaches 1 / alpha. As long as each event is bad
    with a chance of `limit` at most, whatever came before it, it ever comes with a
    chance of alpha at most (Ville's inequality). For a new system beside an old one
    take only cases that one of the two alone has right, bad where that is the old one:
    if the new one is no worse, the chance is 1/2 at most.

    The evidence is the likelihood of the events under a higher rate over that under
    `limit`, averaged over all rates from `limit` to 1 (Robbins 1970, Annals of
    Mathematical Statistics 41; Ramdas et al. 2023, arXiv 2210.01948).
    """
    (flags,) = _flags(bad=bad)
    if not (0 < limit < 1 and 0 < alpha < 1):
        raise ValueError(f"need limit and alpha between 0 and 1: {limit}, {alpha}")
    seen = np.arange(1, len(flags) + 1)
    hits = flags.cumsum()
    misses = seen - hits
    # Where the tail is too small for a float, the evidence is 0: late, never early.
    with np.errstate(divide="ignore"):
        tail = np.log(special.betaincc(hits + 1, misses + 1, limit))
    average = special.betaln(hits + 1, misses + 1) + tail - math.log1p(-limit)
    at_limit = hits * math.log(limit) + misses * math.log1p(-limit)
    evidence = np.exp(
        np.minimum(average - at_limit, 700)
    )  # the largest float is e**709
    reached = np.flatnonzero(evidence >= 1 / alpha)
    return Watched(evidence.tolist(), int(reached[0]) + 1 if len(reached) else None)


def bootstrap_ratio(
    numerator: Sequence[float],
    denominator: Sequence[float] | None = None,
    clusters: Iterable[Hashable] | None = None,
    replicates: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Sum over sum, such as dollars over right answers; without denominator, the mean.

    Percentile interval over resampled cases, or whole clusters (Efron and Tibshirani
    1993); too narrow below some 20 of them. A replicate with denominator 0 counts as
    infinite.
    """
    top = np.asarray(numerator, dtype=float)
    bottom = (
        np.ones_like(top) if denominator is None else np.asarray(denominator, float)
    )
    codes = np.arange(len(top)) if clusters is None else _codes(clusters)
    if not len(top) == len(bottom) == len(codes):
        raise ValueError(f"lengths differ: {len(top)}, {len(bottom)}, {len(codes)}")
    if not np.isfinite([top, bottom]).all() or (bottom < 0).any() or not bottom.any():
        raise ValueError(
            "need finite numbers, and a denominator of 0 or more, not all 0"
        )
    sums = np.bincount(codes, top), np.bincount(codes, bottom)
    if (count := len(sums[0])) < 2 or replicates < 1:
        raise ValueError("a bootstrap needs two cases or clusters, and a replicate")
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = stats.bootstrap(
            sums,
            lambda x, y, axis: x.sum(axis) / y.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=replicates,
            batch=max(1, 2_000_000 // count),  # bounds the memory
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high), len(top))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for testing them all (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=float)
    if not p.size or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"need at least one p value, all from 0 to 1, not {p_values}")
    return multipletests(p, method="holm")[1].tolist()


def detectable_difference(
    n: int,
    base_rate: float,
    power: float = 0.8,
    alpha: float = 0.05,
    paired_discordance: float | None = None,
) -> float:
    """Smallest rise over `base_rate` that n cases show with this power; inf if none.

    For two separate samples of n each: Cohen's arcsine approximation (1988), a little
    hopeful within a few cases of 0 or n. For the same n cases twice give
    `paired_discordance`, the share on which the two systems differ, from a pilot
    (only_a + only_b) / n: the power of the exact McNemar test, averaged over the number
    of such cases (Schork and Williams 1980). Ask before an eval, not after it (Miller
    2024, arXiv 2411.00640).
    """
    share = 1.0 if paired_discordance is None else paired_discordance
    if n < 1 or not 0 <= base_rate <= 1 or not 0 < share <= 1:
        raise ValueError(
            "need n > 0, base_rate in [0, 1], paired_discordance in (0, 1]"
        )
    if not 0 < alpha < power < 1:
        raise ValueError(f"need 0 < alpha < power < 1, not {alpha} and {power}")
    if paired_discordance is None:
        effect = NormalIndPower().solve_power(nobs1=n, alpha=alpha, power=power)
        angle = math.asin(math.sqrt(base_rate)) + effect / 2
        return math.sin(angle) ** 2 - base_rate if angle <= math.pi / 2 else math.inf
    differing = np.arange(n + 1)
    critical = stats.binom.isf(alpha / 2, differing, 0.5) + 1

    def surplus(rise: float) -> float:
        for_b = (share + rise) / (2 * share)
        found = stats.binom.sf(critical - 1, differing, for_b)
        found += stats.binom.cdf(differing - critical, differing, for_b)
        return float(stats.binom.pmf(differing, n, share) @ found) - power

    most = min(share, 2 * (1 - base_rate) - share)  # b wins only what a has wrong
    reachable = most > 0 and surplus(most) >= 0
    return optimize.brentq(surplus, 0, most) if reachable else math.inf


def kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance (Cohen 1960).

    NaN where both give one and the same label throughout: chance would do so too.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"need two ratings of one length, not {len(a)} and {len(b)}")
    codes = _codes([*a, *b])
    if not codes.any():
        return math.nan
    table = np.zeros([codes.max() + 1] * 2)
    np.add.at(table, tuple(codes.reshape(2, -1)), 1)
    return float(cohens_kappa(table, return_results=False))


def judge_rates(truth: Sequence[bool], verdict: Sequence[bool]) -> JudgeRates:
    """How far a judge's verdicts (True: pass) can be trusted, where truth is known."""
    tp, fn, tn, fp = counts = _confusion(truth, verdict)
    tpr, tnr = wilson(tp, tp + fn), wilson(tn, tn + fp)
    accuracy, constant = (
        wilson(tp + tn, sum(counts)),
        max(tp + fn, tn + fp) / sum(counts),
    )
    return JudgeRates(tpr, tnr, accuracy, constant, kappa(truth, verdict), *counts)


def rogan_gladen(
    observed: Sequence[bool],
    truth: Sequence[bool],
    verdict: Sequence[bool],
    replicates: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Correct the pass rate of `observed` verdicts for the judge (Rogan, Gladen 1978).

    (observed rate + TNR - 1) / (TPR + TNR - 1), kept within 0 and 1. TPR and TNR come
    from `verdict` on other cases, of known `truth`; both sets are resampled. A judge no
    better than chance (TPR + TNR <= 1) tells nothing: value NaN, interval 0 to 1. A
    replicate with such a judge counts as 0 in the lower bound and as 1 in the upper.
    """
    (seen,) = _flags(observed=observed)
    counts = np.array(_confusion(truth, verdict))
    if replicates < 1:
        raise ValueError("a bootstrap needs a replicate")
    rng = np.random.default_rng(seed)
    rates = rng.binomial(len(seen), seen.mean(), replicates) / len(seen)
    tables = rng.multinomial(counts.sum(), counts / counts.sum(), replicates)
    # The first row is the estimate itself, the others are replicates.
    tp, fn, tn, fp = np.vstack([counts, tables]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        tpr, tnr = tp / (tp + fn), tn / (tn + fp)
        rate = (np.append(seen.mean(), rates) + tnr - 1) / (tpr + tnr - 1)
    value, *drawn = np.where(tpr + tnr > 1, np.clip(rate, 0, 1), math.nan)
    if math.isnan(value):
        return Interval(math.nan, 0.0, 1.0, len(seen))
    low = np.quantile(np.nan_to_num(drawn, nan=0.0), 0.025)
    high = np.quantile(np.nan_to_num(drawn, nan=1.0), 0.975)
    return Interval(float(value), float(low), float(high), len(seen))


def _confusion(truth: Sequence[bool], verdict: Sequence[bool]) -> tuple[int, ...]:
    """Count true positives, false negatives, true negatives and false positives."""
    right, passed = _flags(truth=truth, verdict=verdict)
    if right.all() or not right.any():
        raise ValueError("rating a judge takes both right and wrong cases")
    pairs = (right & passed, right & ~passed, ~right & ~passed, ~right & passed)
    return tuple(int(pair.sum()) for pair in pairs)


def _flags(**columns: Sequence[bool]) -> list[NDArray[np.bool_]]:
    """Columns as arrays of booleans; not empty, and of one length."""
    for name, column in columns.items():
        if not len(column) or not set(column) <= {0, 1}:
            raise ValueError(f"{name} must hold True and False only, at least one")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"lengths differ: {lengths}")
    return [np.array(list(column), dtype=bool) for column in columns.values()]


def _codes(labels: Iterable[Hashable]) -> NDArray[np.int_]:
    """Labels as integers from 0, in the order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], int)
