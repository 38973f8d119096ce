"""How sure a number is: intervals, paired and sequential tests, and what n can show.

Rates and differences are fractions of 1; what is called `points` is in percentage
points, as people say it. The same seed gives the same interval.
"""

import math
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower

ALPHA, POWER = 0.05, 0.8  # of the questions how many cases it takes


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

    def points(self) -> str:
        """Write a difference of rates, such as '+2.0 points (-1.1 to +5.0)'."""
        return self._write("+.1f", "points")

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
class EProcess:
    """An anytime-valid test, looked at after every event, and its stopping time."""

    e_values: list[float]  # evidence after each event; 1 tells nothing
    stopped_at: int | None  # number of the event, from 1, that ends it; None: none did


def wilson(successes: int, n: int) -> Interval:
    """Score interval of one rate (Wilson 1927), sound at 0 and 1 and for small n."""
    test = stats.binomtest(int(successes), int(n))
    low, high = test.proportion_ci(0.95, method="wilson")
    return Interval(successes / n, float(low), float(high), int(n))


def paired_difference(
    a: Sequence[bool],
    b: Sequence[bool],
    clusters: Iterable[Hashable] | None = None,
    replicates: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Rate of b less that of a on the same cases, with a bootstrap interval.

    `p` is the exact two-sided test that both are right equally often (McNemar 1947):
    only cases on which they differ tell anything; where there is none, p is 1 and the
    interval has no width. `clusters` names the group of each case, such as its
    template: groups are resampled whole. McNemar's p knows no groups, so with clusters
    go by the interval.
    """
    gain = np.asarray(b, dtype=int) - np.asarray(a, dtype=int)
    only_a, only_b = int((gain < 0).sum()), int((gain > 0).sum())
    differing = only_a + only_b
    p = float(stats.binomtest(only_b, differing).pvalue) if differing else 1.0
    difference = bootstrap_ratio(gain, None, clusters, replicates, seed)
    return Paired(difference, p, only_a, only_b, len(gain))


def sequential_test(
    bad: Sequence[bool], limit: float = 0.5, alpha: float = 0.05
) -> EProcess:
    """Test whether events are bad more often than `limit`, however often one looks.

    It stops when the e-value reaches 1 / alpha. As long as each event is bad with a
    chance of `limit` at most, whatever came before it, it ever stops with a chance of
    alpha at most (Ville's inequality). For a new system beside an old one take only
    cases that one of the two alone has right, bad where that is the old one: if the
    new one is no worse, the chance is 1/2 at most.

    The e-values are those of `e_values`.
    """
    found = e_values(bad, limit)
    reached = np.flatnonzero(found >= 1 / alpha)
    return EProcess(found.tolist(), int(reached[0]) + 1 if len(reached) else None)


def e_values(bad: ArrayLike, limit: float = 0.5) -> NDArray[np.float64]:
    """Return the evidence that events are bad more often than `limit`, after each.

    `bad` has a stream of events in its last axis; so has the result. The e-value is the
    likelihood of the events under a higher rate over that under `limit`, averaged over
    all rates from `limit` to 1 (Robbins 1970; Ramdas et al. 2023, arXiv 2210.01948).
    """
    flags = np.asarray(bad, dtype=bool)
    hits = flags.cumsum(axis=-1)
    misses = np.arange(1, flags.shape[-1] + 1) - hits
    # Where the tail is too small for a float, the e-value is 0: late, never early.
    with np.errstate(divide="ignore"):
        tail = np.log(special.betaincc(hits + 1, misses + 1, limit))
    average = special.betaln(hits + 1, misses + 1) + tail - math.log1p(-limit)
    at_limit = hits * math.log(limit) + misses * math.log1p(-limit)
    # The largest float is e**709.
    return np.exp(np.minimum(average - at_limit, 700))


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
    bottom = np.ones_like(top)
    if denominator is not None:
        bottom = np.asarray(denominator, dtype=float)
    groups = np.arange(len(top))
    if clusters is not None:
        groups, _ = pd.factorize(pd.Series(list(clusters)))
    sums = np.bincount(groups, top), np.bincount(groups, bottom)
    with np.errstate(divide="ignore", invalid="ignore"):
        resampled = stats.bootstrap(
            sums,
            lambda x, y, axis: x.sum(axis) / y.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=replicates,
            batch=max(1, 2_000_000 // len(sums[0])),  # bounds the memory
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    low, high = np.quantile(resampled, [0.025, 0.975], method="inverted_cdf")
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high), len(top))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for testing them all (Holm 1979), in the order given."""
    return multipletests(p_values, method="holm")[1].tolist()


def gate(
    before: Sequence[bool],
    after: Sequence[bool],
    points: float = 3.0,
    names: Sequence[str] | None = None,
) -> Paired:
    """Stop a release that may be worse: AssertionError where the bound is too low.

    `before` and `after` are right or wrong on the same cases. The paired difference
    must lie above -`points` percentage points with its whole interval; the message
    names the cases that broke, by `names` or by place. Where no case differs the
    interval has no width: n cases alike still allow some 3/n of all to be broken.
    """
    __tracebackhide__ = True  # pytest then shows the message alone
    names = range(len(before)) if names is None else names
    if not 0 < len(before) == len(after) == len(names):
        counts = f"{len(before)}, {len(after)}, {len(names)}"
        raise ValueError(f"lengths of before, after and names: {counts}")
    pairs = list(zip(names, before, after, strict=True))
    broken = [str(name) for name, was, now in pairs if was and not now]
    mended = [str(name) for name, was, now in pairs if now and not was]
    found = paired_difference(before, after)
    if found.difference.low < -points / 100:
        raise AssertionError(
            f"{found.difference.points()} on {found.n} cases: the lower bound is under "
            f"-{points:g} points. Broken: {', '.join(broken)}. "
            f"Mended: {', '.join(mended) or 'none'}."
        )
    return found


def minimum_detectable_effect(n: int, base_rate: float) -> float:
    """Smallest rise over `base_rate` that two samples of n each show, 4 times in 5.

    Cohen's arcsine approximation (1988), a little hopeful within a few cases of 0 or n.
    Infinite, with a warning, where n is too small for any rise. Ask before an eval, not
    after it (Miller 2024, arXiv 2411.00640).
    """
    effect = NormalIndPower().solve_power(nobs1=n, alpha=ALPHA, power=POWER)
    angle = math.asin(math.sqrt(base_rate)) + effect / 2
    if angle <= math.pi / 2:
        return math.sin(angle) ** 2 - base_rate
    message = f"{n} cases are too few to show any rise over {base_rate:.1%}"
    warnings.warn(f"{message}; ask cases_needed how many it takes", stacklevel=2)
    return math.inf


def cases_needed(
    points: float, rate: float = 0.5, paired_discordance: float | None = None
) -> int:
    """Count the cases that show a rise of `points` over `rate`, 4 times in 5.

    The number is that of each of two separate samples. For the same cases twice give
    `paired_discordance`, the share on which the two systems differ, from a pilot
    (only_a + only_b) / n: the power is then that of the exact McNemar test, averaged
    over the number of such cases (Schork and Williams 1980). For a fall give as `rate`
    where it ends. ValueError where no number of cases can show it.
    """
    _check_points(points)
    rise, share = points / 100, paired_discordance
    most, differ = 1 - rate, ""
    if share is not None:
        # b wins only where the two differ and a is wrong
        most = min(share, 2 * (1 - rate) - share)
        differ = f" by systems that differ on {share:.1%}"
    if rise > most + 1e-12:
        raise ValueError(
            f"a rate of {rate:.1%} can rise by {100 * max(most, 0):.3g} points at most"
            f"{differ}, not by {points:g}; for a fall give the rate where it ends"
        )
    if share is None:
        angles = math.asin(math.sqrt(min(rate + rise, 1))), math.asin(math.sqrt(rate))
        effect = 2 * (angles[0] - angles[1])
        return math.ceil(NormalIndPower().solve_power(effect, alpha=ALPHA, power=POWER))
    few, enough = 1, 2
    while _paired_power(enough, rise, share) < POWER:
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        found = _paired_power(middle, rise, share) >= POWER
        few, enough = (few, middle) if found else (middle, enough)
    return enough


def _check_points(points: float) -> None:
    if not 0.1 <= points <= 100:  # a fraction by mistake would ask for a million cases
        raise ValueError(f"points are percentage points, such as 3, not {points!r}")


def _paired_power(n: int, rise: float, share: float) -> float:
    """Chance that the exact McNemar test finds a rise, averaged over what differs."""
    # Counts outside of these bounds come up once in 10**10 times.
    first, last = stats.binom.ppf(1e-10, n, share), stats.binom.isf(1e-10, n, share)
    differing = np.arange(first, last + 1)
    critical = stats.binom.isf(ALPHA / 2, differing, 0.5) + 1
    for_b = min((share + rise) / (2 * share), 1.0)
    found = stats.binom.sf(critical - 1, differing, for_b)
    found += stats.binom.cdf(differing - critical, differing, for_b)
    return float(stats.binom.pmf(differing, n, share) @ found)
