"""An LLM as a judge: how far its verdicts can be trusted, and rates corrected for it.

What the judges of notebook 02 said is in data/judges. A pass is positive.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from statsmodels.stats.inter_rater import cohens_kappa, to_table

from utils.evals.stats import Interval, wilson


@dataclass(frozen=True)
class JudgeRates:
    """A judge against the truth."""

    tpr: Interval  # share of the right answers that it passes
    tnr: Interval  # share of the wrong answers that it fails
    accuracy: Interval
    constant: float  # accuracy of giving the commoner verdict always
    kappa: float


def judge_rates(truth: Sequence[bool], verdict: Sequence[bool]) -> JudgeRates:
    """Compare verdicts (True: pass) with a known truth, which must hold both kinds."""
    tp, fn, tn, fp = _confusion(truth, verdict)
    n = len(truth)
    return JudgeRates(
        tpr=wilson(tp, tp + fn),
        tnr=wilson(tn, tn + fp),
        accuracy=wilson(tp + tn, n),
        constant=max(tp + fn, tn + fp) / n,
        kappa=kappa(truth, verdict),
    )


def kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Agreement of two raters beyond chance (Cohen 1960).

    The labels of both are all texts or all booleans. NaN where both give one and the
    same label throughout: chance would do so too.
    """
    table, _ = to_table(np.column_stack([a, b]))
    if len(table) < 2:
        return math.nan
    return float(cohens_kappa(table, return_results=False))


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
    n, share = len(observed), np.mean(observed)
    counts = np.array(_confusion(truth, verdict))
    rng = np.random.default_rng(seed)
    shares = rng.binomial(n, share, replicates) / n
    tables = rng.multinomial(counts.sum(), counts / counts.sum(), replicates)
    # The first row is the estimate itself, the others are replicates.
    tp, fn, tn, fp = np.vstack([counts, tables]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        tpr, tnr = tp / (tp + fn), tn / (tn + fp)
        rate = (np.append(share, shares) + tnr - 1) / (tpr + tnr - 1)
    value, *drawn = np.where(tpr + tnr > 1, np.clip(rate, 0, 1), math.nan)
    if math.isnan(value):
        return Interval(math.nan, 0.0, 1.0, n)
    low = np.quantile(np.nan_to_num(drawn, nan=0.0), 0.025)
    high = np.quantile(np.nan_to_num(drawn, nan=1.0), 0.975)
    return Interval(float(value), float(low), float(high), n)


def _confusion(truth: Sequence[bool], verdict: Sequence[bool]) -> tuple[int, ...]:
    """Count true positives, false negatives, true negatives and false positives."""
    right, passed = np.asarray(truth, dtype=bool), np.asarray(verdict, dtype=bool)
    pairs = (right & passed, right & ~passed, ~right & ~passed, ~right & passed)
    return tuple(int(pair.sum()) for pair in pairs)
